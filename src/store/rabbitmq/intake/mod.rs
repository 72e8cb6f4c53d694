//! The broker's frames, looked through before the client library reads them.
//!
//! Another client may have published what that library gives a whole connection up over: bytes that are no UTF-8 where
//! AMQP says text, or tables in tables until its stack ends. The broker hands such a message out again after every
//! reconnect, so one of them would stop its queue for good. Here the bytes that are no text become `?`, and what is
//! nested too deeply becomes a header of plain bytes. Nothing changes its length, and bodies pass as they are.
//!
//! The same look keeps the account of publishes: which were returned, by their ids and before their confirm can be
//! read, and whether a confirm is for something that was published at all. A frame that breaks the protocol is an
//! error, which ends the connection, rather than something to wait for the rest of.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Kind, channel, size; and the octet behind the payload.
const FRAME_HEAD: usize = 7;
const FRAME_END: u8 = 0xCE;
const FRAME_OVERHEAD: usize = FRAME_HEAD + 1;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// Until the broker has said what its largest frame is, and if it says "any".
const MAX_FRAME: usize = 16 << 20;
/// The least that a broker may say.
const MIN_FRAME: usize = 4096;

/// Tables and arrays in each other. The client library calls itself for each; nobody writes half as many by hand.
const MAX_DEPTH: usize = 16;

/// Room that is asked for in one read.
const READ: usize = 64 << 10;

/// What the broker has said about the publishes of each channel.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<HashMap<u16, Account>>);

#[derive(Debug, Default)]
struct Account {
    /// How many were published; the highest tag that can be confirmed.
    published: u64,
    /// A return has begun, and its properties come next.
    returning: bool,
    /// The ids of what was returned, not yet taken note of.
    returned: Vec<String>,
}

impl Ledger {
    /// A publishing channel begins.
    pub(super) fn open(&self, channel: u16) {
        self.lock().insert(channel, Account::default());
    }

    /// One more publish goes out.
    pub(super) fn publishes(&self, channel: u16) {
        if let Some(account) = self.lock().get_mut(&channel) {
            account.published += 1;
        }
    }

    /// The ids of what was returned since this was asked last. A message whose return has not been read by now has no
    /// confirm that was read either.
    pub(super) fn returned(&self, channel: u16) -> Vec<String> {
        self.lock().get_mut(&channel).map(|account| std::mem::take(&mut account.returned)).unwrap_or_default()
    }

    fn returning(&self, channel: u16) {
        if let Some(account) = self.lock().get_mut(&channel) {
            account.returning = true;
        }
    }

    fn properties(&self, channel: u16, message_id: &str) {
        if let Some(account) = self.lock().get_mut(&channel)
            && std::mem::take(&mut account.returning)
        {
            account.returned.push(message_id.to_owned());
        }
    }

    fn may_confirm(&self, channel: u16, tag: u64) -> bool {
        self.lock().get(&channel).is_none_or(|account| tag <= account.published)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u16, Account>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes from the broker, handed on frame by frame.
#[derive(Debug)]
pub(super) struct Frames {
    ledger: std::sync::Arc<Ledger>,
    buffer: Vec<u8>,
    /// From here on nothing was handed on.
    start: usize,
    /// Up to here it may be.
    checked: usize,
    /// Up to here there are bytes.
    end: usize,
    /// Bytes that follow and pass unseen: the rest of a body.
    passing: usize,
    max_frame: usize,
    /// A frame has come: it is a broker.
    begun: bool,
}

impl Frames {
    pub(super) fn new(ledger: std::sync::Arc<Ledger>) -> Self {
        Self {
            ledger,
            buffer: Vec::new(),
            start: 0,
            checked: 0,
            end: 0,
            passing: 0,
            max_frame: MAX_FRAME,
            begun: false,
        }
    }

    /// Hands on what may be; returns how much that is.
    pub(super) fn take(&mut self, target: &mut [u8]) -> usize {
        let count = target.len().min(self.checked - self.start);
        target[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
        self.start += count;
        if self.start == self.end {
            (self.start, self.checked, self.end) = (0, 0, 0);
        }
        count
    }

    /// Where the next bytes go; say afterwards how many came.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.start > 0 && self.buffer.len() - self.end < READ {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.checked, self.end) = (self.checked - self.start, self.end - self.start);
            self.start = 0;
        }
        if self.buffer.len() - self.end < READ {
            self.buffer.resize(self.end + READ, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// So many bytes came.
    pub(super) fn came(&mut self, count: usize) -> io::Result<()> {
        self.end += count;
        loop {
            let passing = self.passing.min(self.end - self.checked);
            self.checked += passing;
            self.passing -= passing;
            if self.passing > 0 {
                return Ok(());
            }
            let frame = &mut self.buffer[self.checked..self.end];
            let Some(head) = frame.first_chunk::<FRAME_HEAD>() else { return Ok(()) };
            let [kind, channel @ .., s1, s2, s3, s4] = *head;
            let channel = u16::from_be_bytes(channel);
            let size = u32::from_be_bytes([s1, s2, s3, s4]) as usize;
            match kind {
                METHOD | HEADER | BODY | HEARTBEAT => self.begun = true,
                // Another version of AMQP, TLS, or another protocol: the client library knows what to say of those.
                _ if !self.begun => {
                    self.passing = usize::MAX;
                    continue;
                }
                _ => return Err(broken(format!("a frame of the unknown kind {kind}"))),
            }
            let whole = size.saturating_add(FRAME_OVERHEAD);
            if whole > self.max_frame {
                return Err(broken(format!("a frame of {whole} bytes, and {} were agreed on", self.max_frame)));
            }
            if kind == BODY {
                self.passing = whole;
                continue;
            }
            if frame.len() < whole {
                return Ok(());
            }
            if frame[whole - 1] != FRAME_END {
                return Err(broken("a frame that does not end where it should"));
            }
            let mut payload = Cursor { bytes: &mut frame[FRAME_HEAD..whole - 1], at: 0 };
            // What is shorter than it should be is the client library's to complain about.
            let seen = match kind {
                METHOD => method(&mut payload, channel, &self.ledger),
                HEADER => content_header(&mut payload, channel, &self.ledger),
                _ => None,
            };
            match seen {
                Some(Seen::Tune(max)) => {
                    self.max_frame = if max == 0 { MAX_FRAME } else { (max as usize).max(MIN_FRAME) };
                }
                Some(Seen::UnknownConfirm(tag)) => {
                    return Err(broken(format!("a confirm for publish {tag}, which was never made")));
                }
                Some(Seen::Nothing) | None => {}
            }
            self.checked += whole;
        }
    }
}

/// What the connection itself must know of a frame.
enum Seen {
    Nothing,
    Tune(u32),
    UnknownConfirm(u64),
}

fn broken(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the broker sent {what}"))
}

fn method(payload: &mut Cursor<'_>, channel: u16, ledger: &Ledger) -> Option<Seen> {
    match (payload.u16()?, payload.u16()?) {
        // connection.tune
        (10, 30) => {
            payload.skip(2)?;
            return Some(Seen::Tune(payload.u32()?));
        }
        // basic.return: code, text, exchange, routing key
        (60, 50) => {
            ledger.returning(channel);
            payload.skip(2)?;
            payload.text()?;
            payload.text()?;
            payload.text()?;
        }
        // basic.deliver: consumer, tag, redelivered, exchange, routing key
        (60, 60) => {
            payload.text()?;
            payload.skip(9)?;
            payload.text()?;
            payload.text()?;
        }
        // basic.get-ok: tag, redelivered, exchange, routing key
        (60, 71) => {
            payload.skip(9)?;
            payload.text()?;
            payload.text()?;
        }
        // basic.ack and basic.nack
        (60, 80 | 120) => {
            let tag = payload.u64()?;
            if !ledger.may_confirm(channel, tag) {
                return Some(Seen::UnknownConfirm(tag));
            }
        }
        _ => {}
    }
    Some(Seen::Nothing)
}

/// The properties of `basic`, one flag each from the highest bit down.
#[derive(Clone, Copy)]
enum Property {
    Text,
    MessageId,
    Headers,
    Fixed(usize),
}

const PROPERTIES: [Property; 14] = [
    Property::Text,     // content type
    Property::Text,     // content encoding
    Property::Headers,  // headers
    Property::Fixed(1), // delivery mode
    Property::Fixed(1), // priority
    Property::Text,     // correlation id
    Property::Text,     // reply to
    Property::Text,     // expiration
    Property::MessageId,
    Property::Fixed(8), // timestamp
    Property::Text,     // type
    Property::Text,     // user id
    Property::Text,     // app id
    Property::Text,     // cluster id
];

fn content_header(payload: &mut Cursor<'_>, channel: u16, ledger: &Ledger) -> Option<Seen> {
    // Class, weight, size of the body.
    payload.skip(12)?;
    let flags = payload.u16()?;
    let mut message_id = None;
    for (number, property) in PROPERTIES.into_iter().enumerate() {
        if flags & (0x8000 >> number) == 0 {
            continue;
        }
        match property {
            Property::Text => {
                payload.text()?;
            }
            Property::MessageId => message_id = Some(payload.text()?),
            Property::Headers => payload.headers()?,
            Property::Fixed(size) => payload.skip(size)?,
        }
    }
    let message_id = message_id.and_then(|range| std::str::from_utf8(payload.bytes.get(range)?).ok());
    ledger.properties(channel, message_id.unwrap_or_default());
    Some(Seen::Nothing)
}

/// Reads on in a payload, and mends what it reads. `None`: the payload is shorter than it says.
struct Cursor<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Cursor<'_> {
    fn skip(&mut self, count: usize) -> Option<()> {
        let at = self.at.checked_add(count).filter(|at| *at <= self.bytes.len())?;
        self.at = at;
        Some(())
    }

    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = *self.bytes.get(self.at..)?.first_chunk::<N>()?;
        self.at += N;
        Some(bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.fixed().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.fixed().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.fixed().map(u64::from_be_bytes)
    }

    /// A length in one byte, and so much UTF-8; what is not becomes `?`.
    fn text(&mut self) -> Option<Range<usize>> {
        let [length] = self.fixed()?;
        let from = self.at;
        self.skip(length.into())?;
        mend(&mut self.bytes[from..self.at]);
        Some(from..self.at)
    }

    /// The table of headers. One that cannot be read at all becomes a single header of plain bytes.
    fn headers(&mut self) -> Option<()> {
        let from = self.at;
        let size = self.u32()? as usize;
        let end = self.at.checked_add(size).filter(|end| *end <= self.bytes.len())?;
        self.at = from;
        if self.table(0, end).is_none() || self.at != end {
            let content = &mut self.bytes[from + 4..end];
            let wrapped = u32::try_from(content.len().checked_sub(7)?).ok()?.to_be_bytes();
            content[..3].copy_from_slice(b"\x01?x");
            content[3..7].copy_from_slice(&wrapped);
            self.at = end;
        }
        Some(())
    }

    /// A table that ends at `end` at the latest.
    fn table(&mut self, depth: usize, end: usize) -> Option<()> {
        let size = self.u32()? as usize;
        let end = self.at.checked_add(size).filter(|at| *at <= end)?;
        while self.at < end {
            self.text()?;
            self.value(depth, end)?;
        }
        (self.at == end).then_some(())
    }

    fn value(&mut self, depth: usize, end: usize) -> Option<()> {
        let at = self.at;
        let [kind] = self.fixed()?;
        match kind {
            b't' | b'b' | b'B' => self.skip(1),
            b's' | b'U' | b'u' => self.skip(2),
            b'I' | b'i' | b'f' => self.skip(4),
            b'D' => self.skip(5),
            b'L' | b'l' | b'd' | b'T' => self.skip(8),
            b'V' => Some(()),
            b'S' | b'x' => {
                let size = self.u32()? as usize;
                self.skip(size)
            }
            // A table and an array begin as plain bytes do: with their length.
            b'F' | b'A' if depth + 1 >= MAX_DEPTH => {
                self.bytes[at] = b'x';
                let size = self.u32()? as usize;
                self.skip(size)
            }
            b'F' => self.table(depth + 1, end),
            b'A' => {
                let size = self.u32()? as usize;
                let end = self.at.checked_add(size).filter(|at| *at <= end)?;
                while self.at < end {
                    self.value(depth + 1, end)?;
                }
                (self.at == end).then_some(())
            }
            _ => None,
        }
    }
}

fn mend(text: &mut [u8]) {
    let mut from = 0;
    while let Err(error) = std::str::from_utf8(&text[from..]) {
        from += error.valid_up_to();
        let count = error.error_len().unwrap_or(text.len() - from);
        text[from..from + count].fill(b'?');
        from += count;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lapin::types::{AMQPValue, FieldTable, generation, parsing};
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind];
        frame.extend(channel.to_be_bytes());
        frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend(payload);
        frame.push(FRAME_END);
        frame
    }

    fn short(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).unwrap()], text].concat()
    }

    /// A content header with a table of headers and a message id.
    fn content(table: &[u8], message_id: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        payload.extend(0x2080_u16.to_be_bytes());
        payload.extend(u32::try_from(table.len()).unwrap().to_be_bytes());
        payload.extend(table);
        payload.extend(short(message_id));
        frame(HEADER, 1, &payload)
    }

    /// What is handed on of these bytes when they come in pieces of this size.
    fn through(ledger: &Arc<Ledger>, bytes: &[u8], piece: usize) -> io::Result<Vec<u8>> {
        let mut frames = Frames::new(ledger.clone());
        let mut out = Vec::new();
        for piece in bytes.chunks(piece) {
            let mut piece = piece;
            while !piece.is_empty() {
                let room = frames.room();
                let count = room.len().min(piece.len());
                room[..count].copy_from_slice(&piece[..count]);
                frames.came(count)?;
                piece = &piece[count..];
                let mut target = [0; 100];
                loop {
                    let count = frames.take(&mut target);
                    if count == 0 {
                        break;
                    }
                    out.extend(&target[..count]);
                }
            }
        }
        Ok(out)
    }

    fn table_of(frame: &[u8]) -> FieldTable {
        let payload = &frame[FRAME_HEAD + 14..];
        parsing::parse_field_table(payload).unwrap().1
    }

    fn encoded(table: &FieldTable) -> Vec<u8> {
        let bytes: Vec<u8> = generation::gen_field_table(table)(Vec::new().into()).unwrap().into_inner().0;
        bytes[4..].to_vec()
    }

    #[test]
    fn what_is_well_formed_passes_unchanged_in_pieces_of_any_size() {
        let mut inner = FieldTable::default();
        inner.insert("grün".into(), AMQPValue::LongString(vec![0xff, 0].into()));
        let mut table = FieldTable::default();
        table.insert("inner".into(), AMQPValue::FieldTable(inner));
        table.insert("number".into(), AMQPValue::LongInt(-1));
        let deliver = [&[0, 60, 0, 60][..], &short(b"tag"), &[0; 9], &short(b""), &short("grün".as_bytes())].concat();
        let bytes = [
            frame(METHOD, 1, &deliver),
            content(&encoded(&table), "ä".as_bytes()),
            frame(BODY, 1, &[0xff; 5000]),
            frame(HEARTBEAT, 0, &[]),
        ]
        .concat();
        for piece in [1, 2, 7, 100, 100_000] {
            assert_eq!(through(&Arc::default(), &bytes, piece).unwrap(), bytes, "{piece}");
        }
    }

    #[test]
    fn what_is_no_text_becomes_question_marks() {
        let table = [&short(b"na\xffme")[..], b"V"].concat();
        let out = through(&Arc::default(), &content(&table, b"id \xc3\x28 \xe2\x82"), 10).unwrap();
        assert_eq!(table_of(&out).inner().keys().next().unwrap().as_str(), "na?me");
        assert!(out.windows(8).any(|window| window == b"id ?( ??" || window == b"id ?( ?\xce"), "{out:?}");
        let deliver = [&[0, 60, 0, 60][..], &short(b"tag"), &[0; 9], &short(b"\xff"), &short(b"a\xff\xff")].concat();
        let out = through(&Arc::default(), &frame(METHOD, 1, &deliver), 1000).unwrap();
        assert!(out.ends_with(b"\x01?\x03a??\xce"), "{out:?}");
    }

    #[test]
    fn what_is_nested_too_deeply_becomes_plain_bytes() {
        let mut nested = Vec::new();
        for level in 0..20_000 {
            let mut outer = short(b"");
            outer.push(if level % 2 == 0 { b'F' } else { b'A' });
            if level % 2 == 1 {
                nested = [&b"F"[..], &u32::try_from(nested.len()).unwrap().to_be_bytes(), &nested].concat();
            }
            outer.extend(u32::try_from(nested.len()).unwrap().to_be_bytes());
            outer.extend(&nested);
            nested = outer;
            if nested.len() > 120_000 {
                break;
            }
        }
        let out = through(&Arc::default(), &content(&nested, b"id"), 1000).unwrap();
        let mut table = table_of(&out);
        let mut depth = 0;
        loop {
            depth += 1;
            let Some(value) = table.inner().values().next().cloned() else { panic!("an end without bytes") };
            let value = match value {
                AMQPValue::FieldArray(array) => {
                    depth += 1;
                    array.as_slice()[0].clone()
                }
                value => value,
            };
            match value {
                AMQPValue::FieldTable(inner) => table = inner,
                AMQPValue::ByteArray(bytes) => {
                    assert!(bytes.len() > 1000);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(depth <= MAX_DEPTH + 1, "{depth}");
    }

    #[test]
    fn a_table_that_can_not_be_read_becomes_one_header_and_the_rest_stays() {
        let out = through(&Arc::default(), &content(b"\x01aZ whatever", b"id"), 1000).unwrap();
        assert_eq!(table_of(&out).inner().keys().next().unwrap().as_str(), "?");
        assert!(out.ends_with(b"\x02id\xce"), "{out:?}");
    }

    #[test]
    fn what_breaks_the_protocol_is_an_error_at_once() {
        let tune = frame(METHOD, 0, &[0, 10, 0, 30, 0, 0, 0, 2, 0, 0, 0, 0]);
        let large = |kind: u8| [&[kind, 0, 1][..], &131_065_u32.to_be_bytes()].concat();
        let mut unended = frame(HEARTBEAT, 0, &[]);
        unended[7] = 0;
        let garbage = [tune.clone(), vec![b'H'; 100]].concat();
        for bytes in [garbage, [tune.clone(), large(BODY)].concat(), [tune, large(METHOD)].concat(), unended] {
            let error = through(&Arc::default(), &bytes, 3).unwrap_err();
            assert!(error.to_string().starts_with("the broker sent a frame"), "{error}");
        }
        for greeting in [&b"AMQP\0\x01\0\0"[..], b"HTTP/1.1 400 Bad Request", b"\x15\x03\x03\0\x02\x02\x28"] {
            assert_eq!(through(&Arc::default(), greeting, 3).unwrap(), greeting);
        }
    }

    #[test]
    fn the_ledger_knows_what_was_returned_and_what_can_be_confirmed() {
        let ledger = Arc::<Ledger>::default();
        ledger.open(1);
        ledger.publishes(1);
        let back = [&[0, 60, 0, 50, 1, 56][..], &short(b"NO_ROUTE"), &short(b""), &short(b"key")].concat();
        let bytes = [frame(METHOD, 1, &back), content(b"", b"id-1")].concat();
        through(&ledger, &bytes, 5).unwrap();
        assert_eq!(ledger.returned(1), ["id-1"]);
        assert!(ledger.returned(1).is_empty() && ledger.returned(2).is_empty());
        // A delivery's properties are no return.
        through(&ledger, &content(b"", b"id-2"), 5).unwrap();
        assert!(ledger.returned(1).is_empty());
        for (method, tag, fine) in [(80, 1, true), (80, 0, true), (80, 2, false), (120, u64::MAX, false)] {
            let confirm = [&[0, 60, 0, method][..], &u64::to_be_bytes(tag), &[1]].concat();
            assert_eq!(through(&ledger, &frame(METHOD, 1, &confirm), 100).is_ok(), fine, "{method} {tag}");
            assert!(through(&ledger, &frame(METHOD, 2, &confirm), 100).is_ok(), "not a publishing channel");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_what_is_handed_on_has_its_length(
            payload in proptest::collection::vec(any::<u8>(), 0..300), kind in 1u8..4, piece in 1usize..40,
        ) {
            let bytes = frame(kind, 1, &payload);
            let ledger = Arc::<Ledger>::default();
            prop_assert_eq!(through(&ledger, &bytes, piece).unwrap().len(), bytes.len());
            let _ = through(&ledger, &payload, piece);
        }

        #[test]
        fn a_table_is_readable_afterwards_whatever_it_was(content_bytes in proptest::collection::vec(any::<u8>(), 7..200)) {
            let out = through(&Arc::default(), &content(&content_bytes, b"id"), 1000).unwrap();
            let read = parsing::parse_field_table(&out[FRAME_HEAD + 14..]);
            prop_assert!(read.is_ok(), "{:?}", read.err());
        }
    }
}
