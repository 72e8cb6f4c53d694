//! HTTP load from one thread, over connections that are kept, one request in flight on each.
//!
//! Without a rate each connection sends its next request when the last is answered. With one, requests are due at fixed
//! times, and latency counts from then, whether a connection was free or not. Nothing is abandoned at the end: every
//! request is answered, so that what was accepted can be accounted for.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::body::{self, Numbers};
use crate::epoll::{Connection, Poll, Timer};
use crate::histogram::{Histogram, Percentiles};
use crate::http;

/// What shall be sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Load {
    pub address: String,
    pub connections: usize,
    pub size: usize,
    /// Requests a second; none: as many as are answered.
    pub rate: Option<f64>,
    pub seconds: f64,
    /// Sent before, and not measured.
    pub warmup: f64,
    /// Each body has a number of its own, from here on.
    pub first: u64,
    /// Even numbers have a header `X-Key: good`, odd ones `X-Key: lost`.
    pub mixed: bool,
}

/// What came of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answered {
    pub sent: u64,
    /// Answers of 2xx, and only they, were accepted.
    pub accepted: u64,
    pub others: u64,
    /// Connections that broke with a request under way.
    pub broken: u64,
    pub per_second: f64,
    pub latency: Percentiles,
    /// The numbers that were accepted, as [`Numbers::to_text`] writes them.
    pub numbers: String,
}

const KEY: &str = "X-Key: good\r\n";

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(20);

struct Caller {
    connection: Connection,
    number: u64,
    due: Duration,
    waits: bool,
}

struct Sending<'a> {
    load: &'a Load,
    request: Vec<u8>,
    head: usize,
    /// Where the value of the key stands.
    key: Option<usize>,
    start: Instant,
    numbers: Numbers,
    latency: Histogram,
    answered: Answered,
    measured: u64,
}

/// The role of a process: the load as JSON, then what came of it.
pub fn run(load: &str) {
    let load: Load = serde_json::from_str(load).unwrap();
    println!("{}", serde_json::to_string(&send(&load)).unwrap());
}

fn send(load: &Load) -> Answered {
    let mut poll = Poll::new();
    let body = body::body(load.size);
    let mut request = http::head(&load.address, "/in", if load.mixed { KEY } else { "" }, body.len());
    let key = load.mixed.then(|| memchr::memmem::find(&request, KEY.as_bytes()).unwrap() + KEY.len() - 6);
    let head = request.len();
    request.extend(body);
    let connect = |token| Connection::open(&load.address, &poll, token).expect("it listens");
    let mut callers: Vec<Caller> = (0..load.connections)
        .map(|token| Caller { connection: connect(token), number: 0, due: Duration::ZERO, waits: false })
        .collect();
    let timer = Timer::new(&poll, usize::MAX >> 1);
    let (mut idle, mut due): (Vec<usize>, VecDeque<Duration>) =
        ((0..load.connections).rev().collect(), VecDeque::new());
    let mut sending = Sending {
        load,
        request,
        head,
        key,
        start: Instant::now(),
        numbers: Numbers::default(),
        latency: Histogram::default(),
        answered: Answered::default(),
        measured: 0,
    };
    let end = Duration::from_secs_f64(load.warmup + load.seconds);
    let mut turn = 0_u32;
    loop {
        let now = sending.start.elapsed();
        if let Some(rate) = load.rate {
            let mut next = Duration::from_secs_f64(f64::from(turn) / rate);
            while next <= now && next < end {
                due.push_back(next);
                turn += 1;
                next = Duration::from_secs_f64(f64::from(turn) / rate);
            }
            if next < end {
                timer.set(next.saturating_sub(now));
            }
        } else if now < end {
            due.extend(std::iter::repeat_n(now, idle.len()));
        }
        while !due.is_empty() {
            let Some(index) = idle.pop() else { break };
            let Some(due) = due.pop_front() else { break };
            sending.send(&mut callers[index], &poll, due);
        }
        if idle.len() == callers.len() && now >= end && due.is_empty() || now > end + PATIENCE {
            break;
        }
        for (token, writable) in poll.wait(Some(Duration::from_secs(1))) {
            let Some(caller) = callers.get_mut(token) else {
                timer.clear();
                continue;
            };
            if writable {
                caller.connection.flush(&poll);
            }
            let open = caller.connection.read();
            if sending.take(caller, open) {
                if !open {
                    caller.connection = Connection::open(&load.address, &poll, token).expect("it listens");
                }
                idle.push(token);
            }
        }
    }
    let mut answered = sending.answered;
    answered.broken += (callers.len() - idle.len()) as u64;
    answered.per_second = sending.measured as f64 / load.seconds;
    answered.latency = sending.latency.percentiles();
    answered.numbers = sending.numbers.to_text();
    answered
}

impl Sending<'_> {
    fn send(&mut self, caller: &mut Caller, poll: &Poll, due: Duration) {
        caller.number = self.load.first + self.answered.sent;
        caller.due = due;
        caller.waits = true;
        self.answered.sent += 1;
        let late = self.start.elapsed().saturating_sub(due).as_nanos();
        if let Some(key) = self.key {
            let value = if caller.number.is_multiple_of(2) { b"good" } else { b"lost" };
            self.request[key..key + value.len()].copy_from_slice(value);
        }
        body::stamp(&mut self.request[self.head..], caller.number, body::now() - u64::try_from(late).unwrap());
        caller.connection.write(poll, &self.request);
    }

    /// Whether the caller is free again.
    fn take(&mut self, caller: &mut Caller, open: bool) -> bool {
        if !caller.waits {
            assert!(open, "connections are kept");
            return false;
        }
        let layout = http::layout(&caller.connection.input);
        let Some(layout) = layout.filter(|layout| layout.length <= caller.connection.input.len()) else {
            if !open {
                self.answered.broken += 1;
                caller.waits = false;
            }
            return !open;
        };
        let now = self.start.elapsed();
        match http::status(&caller.connection.input) {
            200..300 => {
                self.numbers.add(caller.number);
                self.answered.accepted += 1;
                let measured = self.load.rate.map_or(now, |_| caller.due).as_secs_f64() - self.load.warmup;
                if measured >= 0.0 && measured < self.load.seconds {
                    self.measured += 1;
                    self.latency.add(u64::try_from(now.saturating_sub(caller.due).as_nanos()).unwrap());
                }
            }
            _ => self.answered.others += 1,
        }
        assert!(!layout.closes, "connections are kept");
        caller.connection.input.drain(..layout.length);
        caller.waits = false;
        true
    }
}
