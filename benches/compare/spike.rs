//! The least that can do the job: one thread for each role, one connection and one channel to the broker. Publishes are
//! mandatory and confirmed, and each answer is the message's own; deliveries are acknowledged by settled prefix.
//!
//! It has no retries, no time-outs, no reconnects and no limits. It is not a product but a bound: what a product can
//! come near to on this machine.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{TcpListener, TcpStream};

use crate::amqp::{self, Client, Queue, Unconfirmed, id, kind, u32_at, u64_at};
use crate::epoll::{Connection, Poll};
use crate::http;
use crate::process::{await_go, say_ready};

const BROKER: usize = 0;
const LISTENER: usize = 1;
/// Tokens of HTTP connections come behind the others.
const FIRST: usize = 2;

const ACCEPTED: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n";
const NOT_STORED: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

/// HTTP in, published, confirmed, answered.
pub fn ingress(listen: &str, queue: &Queue) -> ! {
    let listener = TcpListener::bind(listen).expect("the address is free");
    let mut client = Client::connect(&queue.broker);
    client.confirms();
    let mut poll = Poll::new();
    let (stream, rest) = client.into_parts();
    let mut broker = Connection::new(stream, &poll, BROKER, rest);
    poll.add(&listener, LISTENER);
    say_ready();
    let (mut callers, mut next) = (HashMap::<usize, Connection>::new(), FIRST);
    let (mut unconfirmed, mut returned) = (Unconfirmed::<(u64, usize)>::new(), HashSet::new());
    let (mut published, mut out) = (0_u64, Vec::new());
    loop {
        for (token, writable) in poll.wait(None) {
            match token {
                LISTENER => {
                    let Ok((stream, _)) = listener.accept() else { continue };
                    callers.insert(next, Connection::new(stream, &poll, next, Vec::new()));
                    next += 1;
                }
                BROKER => {
                    if writable {
                        broker.flush(&poll);
                    }
                    assert!(broker.read(), "the broker stays");
                    amqp::frames(&mut broker.input, |kind, payload| match (kind, method(kind, payload)) {
                        // A returned message comes with its head, and its confirm comes behind it.
                        (kind::HEADER, _) => {
                            returned.insert(message_number(payload));
                        }
                        (_, method @ (id::ACK | id::NACK)) => unconfirmed.confirm(payload, |(number, caller)| {
                            let stored = method == id::ACK && (returned.is_empty() || !returned.remove(&number));
                            if let Some(caller) = callers.get_mut(&caller) {
                                caller.write(&poll, if stored { ACCEPTED } else { NOT_STORED });
                            }
                        }),
                        _ => {}
                    });
                }
                token => {
                    let Some(caller) = callers.get_mut(&token) else { continue };
                    if writable {
                        caller.flush(&poll);
                    }
                    let open = caller.read();
                    let layout = http::layout(&caller.input);
                    if let Some(layout) = layout.filter(|layout| layout.length <= caller.input.len()) {
                        amqp::plain(&mut out, &queue.name, published, &caller.input[layout.body..layout.length]);
                        unconfirmed.publish((published, token));
                        published += 1;
                        caller.input.drain(..layout.length);
                    }
                    if !open {
                        callers.remove(&token);
                    }
                }
            }
        }
        if !out.is_empty() {
            assert!(broker.write(&poll, &out), "the broker stays");
            out.clear();
        }
    }
}

fn method(kind: u8, payload: &[u8]) -> u32 {
    if kind == kind::METHOD { u32_at(payload, 0) } else { 0 }
}

/// Of what we published: content type, delivery mode, and the number as message id.
fn message_number(header: &[u8]) -> u64 {
    let id = header.last_chunk::<12>().unwrap();
    std::str::from_utf8(id).unwrap().parse().unwrap()
}

/// Consumed, HTTP out, acknowledged.
pub fn forward(queue: &Queue, backend: &str, concurrency: usize) -> ! {
    let mut client = Client::connect(&queue.broker);
    let mut poll = Poll::new();
    let mut targets: Vec<Connection> = (0..concurrency)
        .map(|index| Connection::new(TcpStream::connect(backend).unwrap(), &poll, FIRST + index, Vec::new()))
        .collect();
    say_ready();
    await_go();
    client.consumes(&queue.name, 256);
    let (stream, rest) = client.into_parts();
    let mut broker = Connection::new(stream, &poll, BROKER, rest);
    let mut idle: Vec<usize> = (0..concurrency).collect();
    let mut carries = vec![0; concurrency];
    let mut waiting = VecDeque::<(u64, Vec<u8>)>::new();
    // By delivery tag, from the first unsettled one on.
    let (mut settled, mut first) = (VecDeque::<bool>::new(), 1);
    let (mut tag, mut length, mut body, mut out) = (0, 0, Vec::new(), Vec::new());
    let mut ready = vec![(BROKER, false)];
    loop {
        for (token, writable) in ready {
            let connection = if token == BROKER { &mut broker } else { &mut targets[token - FIRST] };
            if writable {
                connection.flush(&poll);
            }
            assert!(connection.read(), "both sides stay");
            if token == BROKER {
                amqp::frames(&mut broker.input, |kind, payload| match (kind, method(kind, payload)) {
                    (_, id::DELIVER) => tag = u64_at(payload, 5 + usize::from(payload[4])),
                    (kind::HEADER, _) => length = usize::try_from(u64_at(payload, 4)).unwrap(),
                    (kind::BODY, _) => {
                        body.extend_from_slice(payload);
                        if body.len() == length {
                            waiting.push_back((tag, std::mem::take(&mut body)));
                            settled.push_back(false);
                        }
                    }
                    _ => {}
                });
                continue;
            }
            let answered = http::layout(&connection.input).filter(|layout| layout.length <= connection.input.len());
            if let Some(layout) = answered {
                assert_eq!(http::status(&connection.input), 200, "it has no retries");
                connection.input.drain(..layout.length);
                let index = token - FIRST;
                settled[usize::try_from(carries[index] - first).unwrap()] = true;
                idle.push(index);
            }
        }
        let before = first;
        while settled.front() == Some(&true) {
            settled.pop_front();
            first += 1;
        }
        if first > before {
            amqp::ack(&mut out, first - 1, true);
            assert!(broker.write(&poll, &out), "the broker stays");
            out.clear();
        }
        while !waiting.is_empty()
            && let Some(index) = idle.pop()
            && let Some((tag, body)) = waiting.pop_front()
        {
            carries[index] = tag;
            let mut request = http::head(backend, "/", "", body.len());
            request.extend(body);
            assert!(targets[index].write(&poll, &request), "the target stays");
        }
        ready = poll.wait(None);
    }
}
