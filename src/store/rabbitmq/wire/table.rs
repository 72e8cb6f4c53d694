//! Properties and their table of headers as they lie on the wire: read where they lie, and written in one go.

use std::borrow::Cow;

use jiff::Timestamp;

/// The bit that says that a property is there. Those that are there follow in this order.
#[derive(Debug, Clone, Copy)]
#[repr(u16)]
pub(super) enum Property {
    ContentType = 1 << 15,
    ContentEncoding = 1 << 14,
    Headers = 1 << 13,
    DeliveryMode = 1 << 12,
    Priority = 1 << 11,
    CorrelationId = 1 << 10,
    ReplyTo = 1 << 9,
    Expiration = 1 << 8,
    MessageId = 1 << 7,
    Timestamp = 1 << 6,
    Type = 1 << 5,
    UserId = 1 << 4,
    AppId = 1 << 3,
}

/// What came, as far as somebody here must know it.
#[derive(Debug, Default)]
pub(in crate::store::rabbitmq) struct Properties<'a> {
    pub(super) content_type: Option<&'a str>,
    pub(super) content_encoding: Option<&'a str>,
    pub(super) headers: Table<'a>,
    pub(super) correlation_id: Option<&'a str>,
    pub(super) reply_to: Option<&'a str>,
    pub(super) expiration: Option<&'a str>,
    pub(super) message_id: Option<&'a str>,
    /// Seconds since 1970.
    pub(super) timestamp: Option<u64>,
    pub(super) kind: Option<&'a str>,
    pub(super) user_id: Option<&'a str>,
}

impl<'a> Properties<'a> {
    /// `None`: they are shorter than they say.
    pub(in crate::store::rabbitmq) fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let flags = reader.number().map(u16::from_be_bytes)?;
        let has = |property: Property| flags & property as u16 != 0;
        let short =
            |reader: &mut Reader<'a>, property| if has(property) { reader.short().map(Some) } else { Some(None) };
        let content_type = short(&mut reader, Property::ContentType)?;
        let content_encoding = short(&mut reader, Property::ContentEncoding)?;
        let headers = if has(Property::Headers) { Table::read(reader.long()?)? } else { Table::default() };
        for _ in [Property::DeliveryMode, Property::Priority].into_iter().filter(|property| has(*property)) {
            reader.take(1)?;
        }
        Some(Self {
            content_type,
            content_encoding,
            headers,
            correlation_id: short(&mut reader, Property::CorrelationId)?,
            reply_to: short(&mut reader, Property::ReplyTo)?,
            expiration: short(&mut reader, Property::Expiration)?,
            message_id: short(&mut reader, Property::MessageId)?,
            timestamp: if has(Property::Timestamp) { Some(reader.number().map(u64::from_be_bytes)?) } else { None },
            kind: short(&mut reader, Property::Type)?,
            user_id: short(&mut reader, Property::UserId)?,
        })
    }
}

/// Headers by their names, sorted. Of two with one name the last one counts.
#[derive(Debug, Default)]
pub(super) struct Table<'a>(Vec<(&'a str, Value<'a>)>);

impl<'a> Table<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let mut entries = Vec::with_capacity(8);
        while !reader.0.is_empty() {
            entries.push((reader.short()?, reader.value()?));
        }
        entries.sort_by_key(|(name, _)| *name);
        entries.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 = next.1;
            }
            same
        });
        Some(Self(entries))
    }

    pub(super) fn get(&self, name: &str) -> Option<Value<'a>> {
        let at = self.0.binary_search_by_key(&name, |(name, _)| name).ok()?;
        self.0.get(at).map(|(_, value)| *value)
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        String::from_utf8(self.get(name)?.bytes()?.into_owned()).ok()
    }

    /// In the order of their names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        self.0.iter().copied()
    }

    /// Those whose names begin so, with the rest of their names.
    pub(super) fn starting(&self, prefix: &str) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        let from = self.0.partition_point(|(name, _)| *name < prefix);
        self.0[from..].iter().map_while(move |(name, value)| Some((name.strip_prefix(prefix)?, *value)))
    }
}

/// A value with its type, as it lies on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Value<'a>(&'a [u8]);

impl<'a> Value<'a> {
    /// `None`: it is shorter or longer than it says.
    pub(super) fn of(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        reader.value().filter(|_| reader.0.is_empty())
    }

    pub(super) fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The type, and what follows it and its length.
    fn parts(self) -> (u8, &'a [u8]) {
        let Some((kind, content)) = self.0.split_first() else { return (b'V', &[]) };
        match kind {
            b'S' | b'x' | b'A' | b'F' => (*kind, content.get(4..).unwrap_or_default()),
            _ => (*kind, content),
        }
    }

    /// The text of a value that can be an HTTP header value; others have none.
    pub(super) fn bytes(self) -> Option<Cow<'a, [u8]>> {
        let owned = |text: String| Some(Cow::Owned(text.into_bytes()));
        match self.parts() {
            (b'S' | b'x', content) => Some(Cow::Borrowed(content)),
            (b't', [value]) => owned((*value != 0).to_string()),
            (b'f', content) => owned(f32::from_be_bytes(content.try_into().ok()?).to_string()),
            (b'd', content) => owned(f64::from_be_bytes(content.try_into().ok()?).to_string()),
            (b'T', content) => {
                let seconds = u64::from_be_bytes(content.try_into().ok()?);
                owned(Timestamp::from_second(i64::try_from(seconds).ok()?).ok()?.to_string())
            }
            _ => owned(self.integer()?.to_string()),
        }
    }

    // RabbitMQ's types, not those of the specification: `s` is a number, and no number of 64 bits is without a sign.
    pub(super) fn integer(self) -> Option<i64> {
        match self.parts() {
            (b'b', content) => Some(i8::from_be_bytes(content.try_into().ok()?).into()),
            (b'B', content) => Some(u8::from_be_bytes(content.try_into().ok()?).into()),
            (b's' | b'U', content) => Some(i16::from_be_bytes(content.try_into().ok()?).into()),
            (b'u', content) => Some(u16::from_be_bytes(content.try_into().ok()?).into()),
            (b'I', content) => Some(i32::from_be_bytes(content.try_into().ok()?).into()),
            (b'i', content) => Some(u32::from_be_bytes(content.try_into().ok()?).into()),
            (b'l' | b'L', content) => Some(i64::from_be_bytes(content.try_into().ok()?)),
            _ => None,
        }
    }

    /// Those of an array; any other value is its only one.
    pub(super) fn elements(self) -> impl Iterator<Item = Value<'a>> {
        let (mut elements, mut only) = match self.parts() {
            (b'A', content) => (Reader(content), None),
            _ => (Reader(&[]), Some(self)),
        };
        std::iter::from_fn(move || only.take().or_else(|| elements.value()))
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (number, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*number)
    }

    fn short(&mut self) -> Option<&'a str> {
        let [length] = self.number()?;
        std::str::from_utf8(self.take(length.into())?).ok()
    }

    fn long(&mut self) -> Option<&'a [u8]> {
        let length = self.number().map(u32::from_be_bytes)?;
        self.take(usize::try_from(length).ok()?)
    }

    fn value(&mut self) -> Option<Value<'a>> {
        let bytes = self.0;
        match self.number()? {
            [b't' | b'b' | b'B'] => self.take(1)?,
            [b's' | b'U' | b'u'] => self.take(2)?,
            [b'I' | b'i' | b'f'] => self.take(4)?,
            [b'D'] => self.take(5)?,
            [b'L' | b'l' | b'd' | b'T'] => self.take(8)?,
            [b'V'] => &[],
            [b'S' | b'x' | b'A' | b'F'] => self.long()?,
            _ => return None,
        };
        Some(Value(&bytes[..bytes.len() - self.0.len()]))
    }
}

/// Properties on their way to the wire. They are put in the order of [`Property`].
#[derive(Debug)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    flags: u16,
}

impl Writer {
    pub(super) fn new() -> Self {
        let mut bytes = Vec::with_capacity(512);
        bytes.extend([0; 2]);
        Self { bytes, flags: 0 }
    }

    fn put(&mut self, property: Property) -> &mut Vec<u8> {
        debug_assert!(self.flags.trailing_zeros() > (property as u16).trailing_zeros(), "{property:?} comes too late");
        self.flags |= property as u16;
        &mut self.bytes
    }

    pub(super) fn byte(&mut self, property: Property, value: u8) {
        self.put(property).push(value);
    }

    pub(super) fn long(&mut self, property: Property, value: u64) {
        self.put(property).extend(value.to_be_bytes());
    }

    pub(super) fn short(&mut self, property: Property, text: Short<'_>) {
        let bytes = self.put(property);
        bytes.push(text.length);
        bytes.extend_from_slice(text.text.as_bytes());
    }

    /// Begins the headers; end them before the next property is put.
    pub(super) fn headers(&mut self) -> TableWriter<'_> {
        let bytes = self.put(Property::Headers);
        bytes.extend([0; 4]);
        let from = bytes.len();
        TableWriter { bytes, from }
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes[..2].copy_from_slice(&self.flags.to_be_bytes());
        self.bytes
    }
}

/// A text that fits into a short string: 255 bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Short<'a> {
    length: u8,
    text: &'a str,
}

impl<'a> Short<'a> {
    pub(super) fn of(text: &'a str) -> Option<Self> {
        Some(Self { length: u8::try_from(text.len()).ok()?, text })
    }
}

/// Headers on their way to the wire. No name may be put twice.
#[derive(Debug)]
pub(super) struct TableWriter<'a> {
    bytes: &'a mut Vec<u8>,
    from: usize,
}

impl TableWriter<'_> {
    /// `false`: the name, of two parts, is too long, and nothing is put.
    fn name(&mut self, [first, second]: [&str; 2]) -> bool {
        let Ok(length) = u8::try_from(first.len() + second.len()) else { return false };
        self.bytes.push(length);
        self.bytes.extend_from_slice(first.as_bytes());
        self.bytes.extend_from_slice(second.as_bytes());
        true
    }

    pub(super) fn text(&mut self, name: [&str; 2], value: &[u8]) -> bool {
        self.name(name) && {
            long_string(self.bytes, value);
            true
        }
    }

    pub(super) fn texts<'v>(&mut self, name: [&str; 2], values: impl IntoIterator<Item = &'v [u8]>) -> bool {
        self.name(name) && {
            self.bytes.push(b'A');
            let at = self.bytes.len();
            self.bytes.extend([0; 4]);
            for value in values {
                long_string(self.bytes, value);
            }
            set_length(self.bytes, at);
            true
        }
    }

    pub(super) fn integer(&mut self, name: [&str; 2], value: i64) -> bool {
        self.name(name) && {
            self.bytes.push(b'l');
            self.bytes.extend(value.to_be_bytes());
            true
        }
    }

    pub(super) fn value(&mut self, name: [&str; 2], value: Value<'_>) -> bool {
        self.name(name) && {
            self.bytes.extend_from_slice(value.as_bytes());
            true
        }
    }

    /// Bytes of the table.
    pub(super) fn end(self) -> usize {
        set_length(self.bytes, self.from - 4);
        self.bytes.len() - self.from + 4
    }
}

/// A text with its type.
pub(super) fn long_string(bytes: &mut Vec<u8>, value: &[u8]) {
    bytes.push(b'S');
    // No frame is that large.
    bytes.extend(u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(value);
}

/// Puts at `at` how many bytes follow it.
fn set_length(bytes: &mut [u8], at: usize) {
    let length = u32::try_from(bytes.len() - at - 4).unwrap_or(u32::MAX);
    bytes[at..at + 4].copy_from_slice(&length.to_be_bytes());
}
