//! A client of AMQP 0-9-1 that costs next to nothing: one connection, one channel. It shows what the broker allows, where
//! a whole client library on the same cores takes part of that away.

mod limits;
mod queue;

pub use limits::{consume, publish};
pub use queue::{Kind, Queue, plain};

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// What both sides agree on.
pub const FRAME_MAX: usize = 131_072;
/// What a frame has beside its payload.
const FRAME_REST: usize = 8;

/// Class and method, as they begin a method's payload.
pub mod id {
    const fn method(class: u32, method: u32) -> u32 {
        (class << 16) + method
    }

    pub const CONNECTION_CLOSE: u32 = method(10, 50);
    pub const CHANNEL_CLOSE: u32 = method(20, 40);
    pub const PUBLISH: u32 = method(60, 40);
    pub const DELIVER: u32 = method(60, 60);
    pub const ACK: u32 = method(60, 80);
    pub const NACK: u32 = method(60, 120);
    pub(super) const START: u32 = method(10, 10);
    pub(super) const START_OK: u32 = method(10, 11);
    pub(super) const TUNE: u32 = method(10, 30);
    pub(super) const TUNE_OK: u32 = method(10, 31);
    pub(super) const OPEN: u32 = method(10, 40);
    pub(super) const OPEN_OK: u32 = method(10, 41);
    pub(super) const CHANNEL_OPEN: u32 = method(20, 10);
    pub(super) const CHANNEL_OPEN_OK: u32 = method(20, 11);
    pub(super) const DECLARE: u32 = method(50, 10);
    pub(super) const DECLARE_OK: u32 = method(50, 11);
    pub(super) const DELETE: u32 = method(50, 40);
    pub(super) const DELETE_OK: u32 = method(50, 41);
    pub(super) const QOS: u32 = method(60, 10);
    pub(super) const QOS_OK: u32 = method(60, 11);
    pub(super) const CONSUME: u32 = method(60, 20);
    pub(super) const CONSUME_OK: u32 = method(60, 21);
    pub(super) const SELECT: u32 = method(85, 10);
    pub(super) const SELECT_OK: u32 = method(85, 11);
}

/// The kinds of frames.
pub mod kind {
    pub const METHOD: u8 = 1;
    pub const HEADER: u8 = 2;
    pub const BODY: u8 = 3;
}

/// A payload that is being written.
#[derive(Default)]
pub struct Payload(pub Vec<u8>);

impl Payload {
    pub fn method(id: u32) -> Self {
        Self::default().bytes(&id.to_be_bytes())
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn short(self, text: &str) -> Self {
        self.bytes(&[u8::try_from(text.len()).unwrap()]).bytes(text.as_bytes())
    }

    pub fn long(self, bytes: &[u8]) -> Self {
        self.bytes(&u32::try_from(bytes.len()).unwrap().to_be_bytes()).bytes(bytes)
    }

    /// A table of texts.
    pub fn table(self, entries: &[(&str, &str)]) -> Self {
        let write = |table: Self, (name, value): &(&str, &str)| table.short(name).bytes(b"S").long(value.as_bytes());
        self.long(&entries.iter().fold(Self::default(), write).0)
    }
}

/// Writes a frame on the channel.
pub fn frame(to: &mut Vec<u8>, kind: u8, channel: u16, payload: &[u8]) {
    to.push(kind);
    to.extend_from_slice(&channel.to_be_bytes());
    to.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
    to.extend_from_slice(payload);
    to.push(0xCE);
}

/// The body frames of a message.
pub fn body_frames(to: &mut Vec<u8>, body: &[u8]) {
    for part in body.chunks(FRAME_MAX - FRAME_REST) {
        frame(to, kind::BODY, 1, part);
    }
}

/// Acknowledges one delivery, or all up to it.
pub fn ack(to: &mut Vec<u8>, tag: u64, multiple: bool) {
    let payload = Payload::method(id::ACK).bytes(&tag.to_be_bytes()).bytes(&[u8::from(multiple)]);
    frame(to, kind::METHOD, 1, &payload.0);
}

pub fn u32_at(payload: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(payload[at..at + 4].try_into().unwrap())
}

pub fn u64_at(payload: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(payload[at..at + 8].try_into().unwrap())
}

/// Calls for each whole frame of a buffer, with kind and payload; leaves the rest.
pub fn frames(input: &mut Vec<u8>, mut each: impl FnMut(u8, &[u8])) {
    let mut used = 0;
    while let Some(head) = input.get(used..used + 7) {
        let end = used + 7 + u32_at(head, 3) as usize;
        if input.len() <= end {
            break;
        }
        assert_eq!(input[end], 0xCE, "a frame ends");
        let payload = &input[used + 7..end];
        expect_no_close(input[used], payload);
        each(input[used], payload);
        used = end + 1;
    }
    input.drain(..used);
}

fn expect_no_close(kind: u8, payload: &[u8]) {
    let closes = kind == kind::METHOD && matches!(u32_at(payload, 0), id::CONNECTION_CLOSE | id::CHANNEL_CLOSE);
    assert!(!closes, "the broker closes: {}", String::from_utf8_lossy(&payload[6..]));
}

/// What was published and is not confirmed, in order: the broker confirms one, or all up to one, in any order.
pub struct Unconfirmed<T> {
    waiting: VecDeque<Option<T>>,
    /// Up to here all are confirmed.
    before: u64,
}

impl<T> Unconfirmed<T> {
    pub fn new() -> Self {
        Self { waiting: VecDeque::new(), before: 0 }
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn publish(&mut self, what: T) {
        self.waiting.push_back(Some(what));
    }

    /// A confirm has come: calls for everything that it confirms.
    pub fn confirm(&mut self, payload: &[u8], mut each: impl FnMut(T)) {
        let (tag, multiple) = (u64_at(payload, 4), payload[12] & 1 == 1);
        let last = usize::try_from(tag - self.before - 1).unwrap();
        let first = if multiple { 0 } else { last };
        self.waiting.range_mut(first..=last).filter_map(Option::take).for_each(&mut each);
        while self.waiting.front().is_some_and(Option::is_none) {
            self.waiting.pop_front();
            self.before += 1;
        }
    }
}

/// A connection that waits for what it reads.
pub struct Client {
    stream: TcpStream,
    input: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the broker listens");
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let input = BufReader::with_capacity(256 * 1024, stream.try_clone().unwrap());
        let mut client = Self { stream, input };
        client.write(b"AMQP\0\0\x09\x01");
        client.expect(id::START);
        let login = Payload::method(id::START_OK).table(&[]).short("PLAIN").long(b"\0guest\0guest").short("en_US");
        client.call(0, &login, id::TUNE);
        let tune = Payload::method(id::TUNE_OK).bytes(&2047_u16.to_be_bytes());
        let tune = tune.bytes(&u32::try_from(FRAME_MAX).unwrap().to_be_bytes()).bytes(&[0, 0]);
        client.send(0, &tune);
        client.call(0, &Payload::method(id::OPEN).short("/").short("").bytes(&[0]), id::OPEN_OK);
        client.call(1, &Payload::method(id::CHANNEL_OPEN).short(""), id::CHANNEL_OPEN_OK);
        client
    }

    /// From now on publishes are confirmed.
    pub fn confirms(&mut self) {
        self.call(1, &Payload::method(id::SELECT).bytes(&[0]), id::SELECT_OK);
    }

    /// Starts to consume.
    pub fn consumes(&mut self, queue: &str, prefetch: u16) {
        let qos = Payload::method(id::QOS).bytes(&[0; 4]).bytes(&prefetch.to_be_bytes()).bytes(&[0]);
        self.call(1, &qos, id::QOS_OK);
        let consume = Payload::method(id::CONSUME).bytes(&[0, 0]).short(queue).short("c").bytes(&[0]).table(&[]);
        self.call(1, &consume, id::CONSUME_OK);
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the broker reads");
    }

    fn send(&mut self, channel: u16, payload: &Payload) {
        let mut bytes = Vec::new();
        frame(&mut bytes, kind::METHOD, channel, &payload.0);
        self.write(&bytes);
    }

    fn call(&mut self, channel: u16, payload: &Payload, answer: u32) -> Vec<u8> {
        self.send(channel, payload);
        self.expect(answer)
    }

    fn expect(&mut self, wanted: u32) -> Vec<u8> {
        loop {
            let (kind, payload) = self.next().expect("the broker answers");
            if kind == kind::METHOD && u32_at(&payload, 0) == wanted {
                return payload;
            }
        }
    }

    /// The next frame.
    pub fn next(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 7];
        self.input.read_exact(&mut head)?;
        let mut payload = vec![0; u32_at(&head, 3) as usize + 1];
        self.input.read_exact(&mut payload)?;
        payload.pop();
        expect_no_close(head[0], &payload);
        Ok((head[0], payload))
    }

    /// Whether [`next`](Self::next) may have to wait.
    pub fn has_more(&self) -> bool {
        !self.input.buffer().is_empty()
    }

    /// How long [`next`](Self::next) waits at most.
    pub fn patience(&self, most: Duration) {
        self.stream.set_read_timeout(Some(most)).unwrap();
    }

    /// For a loop of its own: the stream, and what was read of it already.
    pub fn into_parts(mut self) -> (TcpStream, Vec<u8>) {
        let rest = self.input.buffer().to_vec();
        self.input.consume(rest.len());
        (self.stream, rest)
    }
}
