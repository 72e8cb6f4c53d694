//! What the broker allows: publishes with confirms as fast as a window lets them, deliveries with acks.

use std::time::{Duration, Instant};

use super::{Client, Queue, Unconfirmed, ack, id, kind, plain, u32_at, u64_at};
use crate::body::{self, Numbers};
use crate::histogram::{Histogram, Percentiles};

/// What was measured.
pub struct Measured {
    pub per_second: f64,
    pub latency: Percentiles,
}

/// Publishes for a while with so many unconfirmed.
pub fn publish(queue: &Queue, window: usize, size: usize, time: Duration) -> Measured {
    let mut client = Client::connect(&queue.broker);
    client.confirms();
    let mut body = body::body(size);
    let (mut sent, mut unconfirmed) = (0, Unconfirmed::<Instant>::new());
    let (mut latency, mut out, start) = (Histogram::default(), Vec::new(), Instant::now());
    let mut measured = 0;
    loop {
        while start.elapsed() < time && unconfirmed.len() < window && out.len() < 1 << 18 {
            body::stamp(&mut body, sent, body::now());
            plain(&mut out, &queue.name, sent, &body);
            sent += 1;
            unconfirmed.publish(Instant::now());
        }
        client.write(&out);
        out.clear();
        if unconfirmed.len() == 0 {
            break;
        }
        loop {
            let (kind, payload) = client.next().expect("a confirm");
            if kind == kind::METHOD {
                assert_eq!(u32_at(&payload, 0), id::ACK, "every publish is taken");
                unconfirmed.confirm(&payload, |at| {
                    if start.elapsed() < time {
                        latency.add(u64::try_from(at.elapsed().as_nanos()).unwrap());
                        measured += 1;
                    }
                });
            }
            if !client.has_more() {
                break;
            }
        }
    }
    Measured { per_second: f64::from(measured) / time.as_secs_f64(), latency: latency.percentiles() }
}

/// Takes so many messages, and acknowledges each, or all that are there at once. They are all there afterwards, each
/// once, or this fails.
pub fn consume(queue: &Queue, count: u64, prefetch: u16, together: bool) -> Measured {
    let mut client = Client::connect(&queue.broker);
    let (mut numbers, mut out, mut tag, mut first) = (Numbers::default(), Vec::new(), 0, false);
    let start = Instant::now();
    client.consumes(&queue.name, prefetch);
    let (mut acked, mut taken) = (0, 0);
    while taken < count {
        let (kind, payload) = client.next().expect("a delivery");
        match kind {
            kind::METHOD if u32_at(&payload, 0) == id::DELIVER => {
                tag = u64_at(&payload, 5 + usize::from(payload[4]));
                first = true;
            }
            kind::BODY if std::mem::take(&mut first) => {
                taken += 1;
                assert!(numbers.add(body::read(&payload).expect("a body of ours").0), "each once");
                if !together {
                    ack(&mut out, tag, false);
                }
            }
            _ => {}
        }
        if !client.has_more() || taken == count {
            if together && tag > acked {
                ack(&mut out, tag, true);
                acked = tag;
            }
            client.write(&out);
            out.clear();
        }
    }
    Measured { per_second: taken as f64 / start.elapsed().as_secs_f64(), latency: Percentiles::default() }
}
