//! A target that answers what a test says, and keeps what it was asked.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use stagepost::core::message::Message;
use stagepost::core::outcome::Outcome;
use stagepost::store::BoxFuture;
use stagepost::target::{Answer, AnswerBody, Attempt, Target};
use tokio::time::Instant;

use super::store::{Event, moment};

/// One attempt, as the target saw it.
#[derive(Debug, Clone)]
pub(crate) struct Hit {
    /// Since the target was made.
    pub(crate) at: Duration,
    pub(crate) id: String,
    /// Of this message, as the header says.
    pub(crate) attempt: u32,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) append: Option<String>,
    pub(crate) method: String,
}

/// What the target does with a hit: how long it takes, and what comes of it.
pub(crate) type Script = dyn Fn(&Hit) -> (Duration, Outcome) + Send + Sync;

pub(crate) struct ScriptedTarget {
    start: Instant,
    script: Box<Script>,
    hits: Mutex<Vec<Hit>>,
    running: Mutex<Vec<Arc<Message>>>,
    most_running: Mutex<usize>,
    answer: Bytes,
    succeeded: Mutex<Vec<(u64, Event)>>,
}

impl ScriptedTarget {
    pub(crate) fn new(script: impl Fn(&Hit) -> (Duration, Outcome) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            script: Box::new(script),
            hits: Mutex::default(),
            running: Mutex::default(),
            most_running: Mutex::default(),
            answer: Bytes::from_static(b"settled"),
            succeeded: Mutex::default(),
        })
    }

    /// Answers at once, always the same.
    pub(crate) fn answering(status: u16) -> Arc<Self> {
        Self::new(move |_| at_once(status))
    }

    pub(crate) fn hits(&self) -> Vec<Hit> {
        self.hits.lock().unwrap().clone()
    }

    pub(crate) fn seconds(&self) -> Vec<f64> {
        self.hits().iter().map(|hit| (hit.at.as_secs_f64() * 100.0).round() / 100.0).collect()
    }

    /// `id:attempt` of every hit.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.hits().iter().map(|hit| format!("{}:{}", hit.id, hit.attempt)).collect()
    }

    /// What was answered with success, in order.
    pub(crate) fn timeline(&self) -> Vec<(u64, Event)> {
        self.succeeded.lock().unwrap().clone()
    }

    pub(crate) fn succeeded(&self) -> Vec<String> {
        let id = |(_, event)| if let Event::Succeeded(id) = event { id } else { unreachable!() };
        self.timeline().into_iter().map(id).collect()
    }

    pub(crate) fn most_running(&self) -> usize {
        *self.most_running.lock().unwrap()
    }
}

/// A status without delay.
pub(crate) fn at_once(status: u16) -> (Duration, Outcome) {
    (Duration::ZERO, response(status))
}

pub(crate) fn response(status: u16) -> Outcome {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", "text/plain".parse().unwrap());
    Outcome::Response { status: StatusCode::from_u16(status).unwrap(), headers }
}

pub(crate) fn response_with(status: u16, name: &'static str, value: &str) -> Outcome {
    let Outcome::Response { status, mut headers } = response(status) else { unreachable!() };
    headers.insert(name, value.parse().unwrap());
    Outcome::Response { status, headers }
}

impl fmt::Debug for ScriptedTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScriptedTarget")
    }
}

struct Running<'a>(&'a ScriptedTarget, Arc<Message>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.lock().unwrap().retain(|other| !Arc::ptr_eq(other, &self.1));
    }
}

impl Target for ScriptedTarget {
    fn send(&self, attempt: Attempt) -> BoxFuture<'_, Answer> {
        Box::pin(async move {
            let number = attempt.headers.get("stagepost-attempt").and_then(|value| value.to_str().ok());
            let hit = Hit {
                at: self.start.elapsed(),
                id: attempt.message.id.to_string(),
                attempt: number.and_then(|number| number.parse().ok()).unwrap_or(0),
                headers: attempt.headers,
                body: attempt.body,
                append: attempt.append,
                method: attempt.method.to_string(),
            };
            let running = Running(self, Arc::clone(&attempt.message));
            {
                let mut all = self.running.lock().unwrap();
                assert!(all.iter().all(|other| other.id != running.1.id), "two attempts of one message at once");
                all.push(Arc::clone(&running.1));
                let mut most = self.most_running.lock().unwrap();
                *most = (*most).max(all.len());
            }
            self.hits.lock().unwrap().push(hit.clone());
            let (after, outcome) = (self.script)(&hit);
            tokio::time::sleep(after).await;
            if outcome.status().is_some_and(|status| status / 100 == 2) {
                self.succeeded.lock().unwrap().push((moment(), Event::Succeeded(hit.id)));
            }
            Answer { outcome, body: AnswerBody::Complete(self.answer.clone()), repeated: false, elapsed: after }
        })
    }
}
