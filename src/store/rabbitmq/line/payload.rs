//! What a method or a content header carries: read as far as we must know it, and mended where the client library
//! would give up over it.

use std::ops::Range;

/// Tables and arrays in each other. The client library calls itself for each; nobody writes half as many by hand.
pub(super) const MAX_DEPTH: usize = 16;

/// A method, as far as somebody here must know it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Method<'a> {
    /// `connection.tune`: the largest frame that the broker offers.
    Tune(u32),
    /// `connection.close`.
    ConnectionClose { code: u16, text: &'a str },
    /// `channel.close`.
    ChannelClose { code: u16, text: &'a str },
    /// `channel.close-ok`.
    ChannelCloseOk,
    /// `basic.cancel`: the queue is gone.
    Cancel,
    /// `basic.return`.
    Return,
    /// `basic.deliver`.
    Deliver { tag: u64, redelivered: bool, exchange: &'a str, routing_key: &'a str },
    /// `basic.ack` or `basic.nack`.
    Confirm { tag: u64, multiple: bool, stored: bool },
    /// Any other.
    Other,
}

/// A content header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head<'a> {
    /// Bytes of the body.
    pub(super) size: u64,
    /// Flags and values.
    pub(super) properties: &'a [u8],
    /// Empty: it has none.
    pub(super) message_id: &'a str,
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

/// Reads on in a payload, and mends what it reads. `None`: the payload is shorter or longer than it says.
pub(super) struct Payload<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl<'a> Payload<'a> {
    pub(super) fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// A method and its arguments.
    pub(super) fn method(mut self) -> Option<Method<'a>> {
        match (self.u16()?, self.u16()?) {
            (10, 30) => {
                self.skip(2)?;
                Some(Method::Tune(self.u32()?))
            }
            (10, 50) => self.close().map(|(code, text)| Method::ConnectionClose { code, text }),
            (20, 40) => self.close().map(|(code, text)| Method::ChannelClose { code, text }),
            (20, 41) => Some(Method::ChannelCloseOk),
            (60, 30) => Some(Method::Cancel),
            // code, text, exchange, routing key
            (60, 50) => {
                self.skip(2)?;
                self.text()?;
                self.text()?;
                self.text()?;
                self.is_at_its_end().then_some(Method::Return)
            }
            // consumer, tag, redelivered, exchange, routing key
            (60, 60) => {
                self.text()?;
                let tag = self.u64()?;
                let [redelivered] = self.fixed()?;
                let (exchange, routing_key) = (self.text()?, self.text()?);
                if !self.is_at_its_end() {
                    return None;
                }
                let bytes: &'a [u8] = self.bytes;
                let (exchange, routing_key) = (str_of(bytes, exchange), str_of(bytes, routing_key));
                Some(Method::Deliver { tag, redelivered: redelivered & 1 == 1, exchange, routing_key })
            }
            // basic.get-ok: tag, redelivered, exchange, routing key
            (60, 71) => {
                self.skip(9)?;
                self.text()?;
                self.text()?;
                Some(Method::Other)
            }
            (60, method @ (80 | 120)) => {
                let tag = self.u64()?;
                let [flags] = self.fixed()?;
                let confirm = Method::Confirm { tag, multiple: flags & 1 == 1, stored: method == 80 };
                self.is_at_its_end().then_some(confirm)
            }
            _ => Some(Method::Other),
        }
    }

    /// The size and the properties of a message.
    pub(super) fn content_header(mut self) -> Option<Head<'a>> {
        // Class, weight.
        self.skip(4)?;
        let size = self.u64()?;
        let from = self.at;
        let flags = self.u16()?;
        let mut message_id = 0..0;
        for (number, property) in PROPERTIES.into_iter().enumerate() {
            if flags & (0x8000 >> number) == 0 {
                continue;
            }
            match property {
                Property::Text => {
                    self.text()?;
                }
                Property::MessageId => message_id = self.text()?,
                Property::Headers => self.headers()?,
                Property::Fixed(size) => self.skip(size)?,
            }
        }
        let bytes: &'a [u8] = self.bytes;
        Some(Head { size, properties: bytes.get(from..)?, message_id: str_of(bytes, message_id) })
    }

    fn close(mut self) -> Option<(u16, &'a str)> {
        let code = self.u16()?;
        let text = self.text()?;
        Some((code, str_of(self.bytes, text)))
    }

    fn is_at_its_end(&self) -> bool {
        self.at == self.bytes.len()
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

/// A text that was mended.
fn str_of(bytes: &[u8], range: Range<usize>) -> &str {
    bytes.get(range).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default()
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
