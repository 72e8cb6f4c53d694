//! The target: answers 200 to everything, and counts what came: numbers, repetitions, times since the sending.
//!
//! One thread. `GET /seen` says what came since the last time, and forgets it; `GET /distinct` only counts.

use std::collections::HashMap;
use std::net::TcpListener;

use serde::{Deserialize, Serialize};

use crate::body::{self, Numbers};
use crate::epoll::{Connection, Poll};
use crate::histogram::{Histogram, Percentiles};
use crate::http;

/// What has come.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    pub hits: u64,
    pub distinct: u64,
    /// In seconds, from the first to the last.
    pub span: f64,
    /// Numbers lower than one that came before.
    pub out_of_order: u64,
    /// From the sending to here.
    pub latency: Percentiles,
    /// The numbers, as [`Numbers::to_text`] writes them.
    pub numbers: String,
}

#[derive(Default)]
struct Counted {
    numbers: Numbers,
    hits: u64,
    distinct: u64,
    first: u64,
    last: u64,
    highest: u64,
    out_of_order: u64,
    latency: Histogram,
}

impl Counted {
    fn hit(&mut self, body: &[u8]) {
        // Warm-ups and wrk send others.
        let Some((number, sent)) = body::read(body) else { return };
        let now = body::now();
        self.hits += 1;
        self.distinct += u64::from(self.numbers.add(number));
        self.first = if self.first == 0 { now } else { self.first };
        self.last = now;
        self.out_of_order += u64::from(number < self.highest);
        self.highest = self.highest.max(number);
        self.latency.add(now.saturating_sub(sent));
    }

    fn seen(&self) -> Seen {
        Seen {
            hits: self.hits,
            distinct: self.distinct,
            span: (self.last - self.first) as f64 / 1e9,
            out_of_order: self.out_of_order,
            latency: self.latency.percentiles(),
            numbers: self.numbers.to_text(),
        }
    }
}

/// The role of a process.
pub fn run(listen: &str) -> ! {
    let listener = TcpListener::bind(listen).expect("the address is free");
    let mut poll = Poll::new();
    poll.add(&listener, 0);
    let (mut connections, mut next) = (HashMap::new(), 1);
    let mut counted = Counted::default();
    loop {
        for (token, writable) in poll.wait(None) {
            if token == 0 {
                let Ok((stream, _)) = listener.accept() else { continue };
                connections.insert(next, Connection::new(stream, &poll, next, Vec::new()));
                next += 1;
                continue;
            }
            let Some(connection) = connections.get_mut(&token) else { continue };
            if writable {
                connection.flush(&poll);
            }
            if !connection.read() || !answer(connection, &poll, &mut counted) {
                connections.remove(&token);
            }
        }
    }
}

/// Answers every request that is complete.
fn answer(connection: &mut Connection, poll: &Poll, counted: &mut Counted) -> bool {
    loop {
        let Some(layout) = http::layout(&connection.input) else { return true };
        if connection.input.len() < layout.length {
            return true;
        }
        let text = if connection.input.starts_with(b"GET /distinct") {
            Some(counted.distinct.to_string())
        } else if connection.input.starts_with(b"GET /seen") {
            Some(serde_json::to_string(&std::mem::take(counted).seen()).unwrap())
        } else {
            None
        };
        let open = if let Some(text) = text {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
            connection.write(poll, answer.as_bytes())
        } else {
            counted.hit(&connection.input[layout.body..layout.length]);
            connection.write(poll, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        };
        connection.input.drain(..layout.length);
        if !open || layout.closes {
            return false;
        }
    }
}
