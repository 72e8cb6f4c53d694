//! Queues: declared, filled, emptied, counted.

use std::time::Duration;

use super::{Client, Payload, Unconfirmed, frame, id, kind, u32_at, u64_at};
use crate::body::{self, Numbers};
use crate::settings::KEYS;

/// The kinds of durable queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Quorum,
    Classic,
}

impl Kind {
    /// As a manifest says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quorum => "Quorum",
            Self::Classic => "Classic",
        }
    }
}

/// A queue on a broker, by name.
#[derive(Debug, Clone)]
pub struct Queue {
    pub broker: String,
    pub name: String,
}

/// What lay in a queue.
#[derive(Default)]
pub struct Found {
    pub numbers: Numbers,
    pub twice: u64,
}

impl Queue {
    pub fn declare(&self, kind: Kind) {
        let kind = kind.name().to_lowercase();
        let declare = Payload::method(id::DECLARE).bytes(&[0, 0]).short(&self.name).bytes(&[0b10]);
        let declare = declare.table(&[("x-queue-type", &kind)]);
        Client::connect(&self.broker).call(1, &declare, id::DECLARE_OK);
    }

    pub fn delete(&self) {
        let delete = Payload::method(id::DELETE).bytes(&[0, 0]).short(&self.name).bytes(&[0]);
        Client::connect(&self.broker).call(1, &delete, id::DELETE_OK);
    }

    /// Messages that are ready.
    pub fn ready(&self) -> u64 {
        let look = Payload::method(id::DECLARE).bytes(&[0, 0]).short(&self.name).bytes(&[1]).table(&[]);
        let answer = Client::connect(&self.broker).call(1, &look, id::DECLARE_OK);
        u32_at(&answer, 5 + usize::from(answer[4])).into()
    }

    /// Publishes so many messages, and waits until all are confirmed.
    pub fn fill(&self, count: u64, size: usize) {
        let mut client = Client::connect(&self.broker);
        client.confirms();
        let mut body = body::body(size);
        let (mut sent, mut unconfirmed, mut out) = (0, Unconfirmed::new(), Vec::new());
        let window = if size > 100_000 { 16 } else { 256 };
        while sent < count || unconfirmed.len() > 0 {
            while sent < count && unconfirmed.len() < window {
                body::stamp(&mut body, sent, body::now());
                message(&mut out, &self.name, sent, &body);
                unconfirmed.publish(());
                sent += 1;
            }
            client.write(&out);
            out.clear();
            let (kind, payload) = client.next().expect("a confirm");
            if kind == kind::METHOD {
                assert_eq!(u32_at(&payload, 0), id::ACK, "every publish is taken");
                unconfirmed.confirm(&payload, drop);
            }
        }
    }

    /// Takes everything out, until nothing has come for a while.
    pub fn drain(&self) -> Found {
        let mut client = Client::connect(&self.broker);
        client.consumes(&self.name, 500);
        client.patience(Duration::from_millis(if self.ready() == 0 { 500 } else { 3000 }));
        let (mut found, mut first, mut acked, mut tag) = (Found::default(), false, 0, 0);
        let mut out = Vec::new();
        while let Ok((kind, payload)) = client.next() {
            match kind {
                kind::METHOD if u32_at(&payload, 0) == id::DELIVER => {
                    tag = u64_at(&payload, 5 + usize::from(payload[4]));
                    first = true;
                }
                kind::BODY if std::mem::take(&mut first) => {
                    client.patience(Duration::from_millis(700));
                    let (number, _) = body::read(&payload).expect("a body of ours");
                    found.twice += u64::from(!found.numbers.add(number));
                }
                _ => {}
            }
            if tag >= acked + 100 || !client.has_more() && tag > acked {
                super::ack(&mut out, tag, true);
                client.write(&out);
                out.clear();
                acked = tag;
            }
        }
        found
    }
}

/// The frames of a message as Stagepost stores it, whoever stores it here: what consumers are measured with is the same
/// for all.
pub fn message(to: &mut Vec<u8>, queue: &str, number: u64, body: &[u8]) {
    publish_frame(to, queue);
    let key = (number % KEYS).to_string();
    let headers = [
        ("http-user-agent", "compare"),
        ("http-x-key", &key),
        ("x-stagepost-method", "POST"),
        ("x-stagepost-path", "/in"),
        ("x-stagepost-route", "default/in/post"),
    ];
    // Content type (15), headers (13), delivery mode (12), correlation id (10), message id (7).
    let flags: u16 = 1 << 15 | 1 << 13 | 1 << 12 | 1 << 10 | 1 << 7;
    let id = format!("00000000-0000-7000-8000-{number:012}");
    let head = head(body.len(), flags).short("application/json").table(&headers).bytes(&[2]).short(&id).short(&id);
    frame(to, kind::HEADER, 1, &head.0);
    super::body_frames(to, body);
}

/// The frames of a message with as little as is needed.
pub fn plain(to: &mut Vec<u8>, queue: &str, number: u64, body: &[u8]) {
    publish_frame(to, queue);
    let head = head(body.len(), 1 << 15 | 1 << 12 | 1 << 7).short("application/json").bytes(&[2]);
    frame(to, kind::HEADER, 1, &head.short(&format!("{number:012}")).0);
    super::body_frames(to, body);
}

/// Mandatory, over the default exchange.
fn publish_frame(to: &mut Vec<u8>, queue: &str) {
    let publish = Payload::method(id::PUBLISH).bytes(&[0, 0]).short("").short(queue).bytes(&[1]);
    frame(to, kind::METHOD, 1, &publish.0);
}

fn head(length: usize, flags: u16) -> Payload {
    let head = Payload::default().bytes(&60_u16.to_be_bytes()).bytes(&[0, 0]);
    head.bytes(&(length as u64).to_be_bytes()).bytes(&flags.to_be_bytes())
}
