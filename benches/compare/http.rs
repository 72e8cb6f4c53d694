//! As much of HTTP/1.1 as the tools here need.

/// Where a message that begins a buffer lies, once its head is there.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Of head and body.
    pub length: usize,
    /// Where the body begins.
    pub body: usize,
    /// The other side closes after it.
    pub closes: bool,
}

/// Looks for a head, in all of which the buffer may hold a part.
pub fn layout(buffer: &[u8]) -> Option<Layout> {
    let body = memchr::memmem::find(buffer, b"\r\n\r\n")? + 4;
    let (mut length, mut closes) = (body, false);
    for line in buffer[..body].split(|byte| *byte == b'\n').skip(1) {
        if let Some(value) = value(line, b"content-length") {
            length += value.parse::<usize>().expect("a length");
        } else if let Some(value) = value(line, b"connection") {
            closes = value.eq_ignore_ascii_case("close");
        } else {
            assert!(value(line, b"transfer-encoding").is_none(), "nobody here sends chunks");
        }
    }
    Some(Layout { length, body, closes })
}

fn value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let (found, value) = line.split_at_checked(name.len())?;
    let value = value.strip_prefix(b":")?;
    found.eq_ignore_ascii_case(name).then(|| std::str::from_utf8(value).unwrap().trim())
}

/// Of an answer.
pub fn status(answer: &[u8]) -> u16 {
    std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap()
}

/// The head of a request with a JSON body, and with these more lines.
pub fn head(address: &str, path: &str, more: &str, length: usize) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nUser-Agent: compare\r\n{more}\
         Content-Length: {length}\r\n\r\n"
    )
    .into_bytes()
}
