//! What a method or a content header carries: read as far as we must know it, and mended where the client library
//! would give up over it.

use std::ops::Range;

use super::ledger::Ledger;

/// Tables and arrays in each other. The client library calls itself for each; nobody writes half as many by hand.
pub(super) const MAX_DEPTH: usize = 16;

/// What the connection itself must know of a frame.
pub(super) enum Seen {
    Nothing,
    Tune(u32),
    UnknownConfirm(u64),
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

/// Reads on in a payload, and mends what it reads. `None`: the payload is shorter than it says.
pub(super) struct Payload<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl<'a> Payload<'a> {
    pub(super) fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// A method's arguments; the ledger learns what concerns publishes.
    pub(super) fn method(mut self, channel: u16, ledger: &Ledger) -> Option<Seen> {
        match (self.u16()?, self.u16()?) {
            // connection.tune
            (10, 30) => {
                self.skip(2)?;
                return Some(Seen::Tune(self.u32()?));
            }
            // basic.return: code, text, exchange, routing key
            (60, 50) => {
                ledger.returning(channel);
                self.skip(2)?;
                self.text()?;
                self.text()?;
                self.text()?;
            }
            // basic.deliver: consumer, tag, redelivered, exchange, routing key
            (60, 60) => {
                self.text()?;
                self.skip(9)?;
                self.text()?;
                self.text()?;
            }
            // basic.get-ok: tag, redelivered, exchange, routing key
            (60, 71) => {
                self.skip(9)?;
                self.text()?;
                self.text()?;
            }
            // basic.ack and basic.nack
            (60, 80 | 120) => {
                let tag = self.u64()?;
                if !ledger.may_confirm(channel, tag) {
                    return Some(Seen::UnknownConfirm(tag));
                }
            }
            _ => {}
        }
        Some(Seen::Nothing)
    }

    /// The properties of a message.
    pub(super) fn content_header(mut self, channel: u16, ledger: &Ledger) -> Option<Seen> {
        // Class, weight, size of the body.
        self.skip(12)?;
        let flags = self.u16()?;
        let mut message_id = None;
        for (number, property) in PROPERTIES.into_iter().enumerate() {
            if flags & (0x8000 >> number) == 0 {
                continue;
            }
            match property {
                Property::Text => {
                    self.text()?;
                }
                Property::MessageId => message_id = Some(self.text()?),
                Property::Headers => self.headers()?,
                Property::Fixed(size) => self.skip(size)?,
            }
        }
        let message_id = message_id.and_then(|range| std::str::from_utf8(self.bytes.get(range)?).ok());
        ledger.properties(channel, message_id.unwrap_or_default());
        Some(Seen::Nothing)
    }

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
