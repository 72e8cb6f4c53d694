//! Callers that note what they saw, and when.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use crate::support::checker::{Checker, Id, Saw};
use crate::support::http::{Connection, Failed};
use crate::support::{Stagepost, millis};

/// One request and its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) id: Id,
    pub(crate) begun: Instant,
    pub(crate) ended: Instant,
    /// `None`: the connection ended without an answer.
    pub(crate) status: Option<u16>,
}

impl Call {
    pub(crate) fn took(&self) -> Duration {
        self.ended - self.begun
    }
}

type Headers = dyn Fn(Id) -> Vec<(&'static str, String)> + Send + Sync;

/// Threads that POST to `/in` until they are told to stop.
pub(crate) struct Traffic {
    shared: Arc<Shared>,
    senders: Vec<std::thread::JoinHandle<()>>,
}

struct Shared {
    checker: Checker,
    calls: Mutex<Vec<Call>>,
    address: RwLock<SocketAddr>,
    stop: AtomicBool,
    headers: Box<Headers>,
}

impl Traffic {
    /// Each sender sends one message after the other, `pace` from one to the next; after a refusal it waits a little
    /// longer.
    pub(crate) fn start(run: &Stagepost, senders: u32, pace: Duration) -> Self {
        Self::with_headers(run, senders, pace, |_| Vec::new())
    }

    /// The same, with headers by message.
    pub(crate) fn with_headers(
        run: &Stagepost,
        senders: u32,
        pace: Duration,
        headers: impl Fn(Id) -> Vec<(&'static str, String)> + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            checker: Checker::default(),
            calls: Mutex::default(),
            address: RwLock::new(run.listen()),
            stop: AtomicBool::new(false),
            headers: Box::new(headers),
        });
        let senders = (0..senders)
            .map(|sender| {
                let shared = shared.clone();
                std::thread::spawn(move || shared.send(sender, pace))
            })
            .collect();
        Self { shared, senders }
    }

    /// What the callers were told.
    pub(crate) fn checker(&self) -> &Checker {
        &self.shared.checker
    }

    /// The ingress is elsewhere now.
    pub(crate) fn moved(&self, to: SocketAddr) {
        *self.shared.address.write().unwrap() = to;
    }

    /// Everything so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap().clone()
    }

    /// What was begun since then.
    pub(crate) fn calls_since(&self, since: Instant) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.begun >= since).collect()
    }

    /// When the first of the messages that were sent since then was stored.
    pub(crate) fn first_stored_since(&self, since: Instant) -> Option<Instant> {
        let calls = self.shared.calls.lock().unwrap();
        let stored = calls.iter().filter(|call| call.begun >= since && call.status == Some(202));
        stored.map(|call| call.ended).min()
    }

    /// The longest time since then in which nothing was stored.
    pub(crate) fn longest_gap_since(&self, since: Instant) -> Duration {
        let calls = self.shared.calls.lock().unwrap();
        let mut stored: Vec<Instant> = calls
            .iter()
            .filter(|call| call.ended >= since && call.status == Some(202))
            .map(|call| call.ended)
            .collect();
        stored.push(since);
        stored.sort();
        stored.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// The longest that any caller waited.
    pub(crate) fn slowest(&self) -> Duration {
        self.calls().iter().map(Call::took).max().unwrap_or_default()
    }

    /// Stops the senders and waits for them.
    pub(crate) fn finish(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for sender in self.senders.drain(..) {
            sender.join().unwrap();
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        // A failed test must not leave senders behind.
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn send(&self, sender: u32, pace: Duration) {
        let mut connection = None;
        let mut number = 0;
        let mut next = Instant::now();
        while !self.stop.load(Ordering::SeqCst) {
            let to = *self.address.read().unwrap();
            let Some((mut open, opened_to)) = connection.take().or_else(|| Some((Connection::open(to).ok()?, to)))
            else {
                std::thread::sleep(millis(20));
                continue;
            };
            if opened_to != to {
                continue;
            }
            let id = Id { sender, number };
            let headers = (self.headers)(id);
            let headers: Vec<(&str, &[u8])> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
            let begun = Instant::now();
            let answer: Result<_, Failed> =
                Connection::request(&mut open, "POST", "/in", &headers, id.payload().as_bytes());
            let (saw, status) = match answer {
                Ok(answer) => {
                    if !answer.closes() {
                        connection = Some((open, to));
                    }
                    (if answer.status == 202 { Saw::Ok } else { Saw::Fail }, Some(answer.status))
                }
                Err(Failed::NotSent(_)) => continue,
                Err(Failed::Unknown(_)) => (Saw::Unknown, None),
            };
            self.checker.saw(id, saw);
            self.calls.lock().unwrap().push(Call { id, begun, ended: Instant::now(), status });
            number += 1;
            // On a schedule, so that slow answers don't make less load; what was missed is not caught up.
            next = (next + pace).max(begun);
            let pause = if saw == Saw::Ok { Duration::ZERO } else { millis(50) };
            std::thread::sleep(next.saturating_duration_since(Instant::now()).max(pause));
        }
    }
}
