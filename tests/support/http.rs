//! A raw HTTP/1.1 client: what is sent and what comes back, byte by byte.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// No answer takes longer.
const TIMEOUT: Duration = Duration::from_secs(40);

/// Names and raw values, in order.
pub type Headers = Vec<(String, Vec<u8>)>;

/// An answer as it came.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Lower-case names, raw values, in order.
    pub headers: Headers,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first value, as text.
    pub fn header(&self, name: &str) -> Option<String> {
        first(&self.headers, name)
    }

    /// Whether the connection ends with this answer.
    pub fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// The first value of a header, as text.
pub fn first(headers: &[(String, Vec<u8>)], name: &str) -> Option<String> {
    headers
        .iter()
        .find(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
}

/// Where an exchange ended without an answer.
#[derive(Debug)]
pub enum Failed {
    /// Not one byte of the request left.
    NotSent(io::Error),
    /// The request may have arrived.
    Unknown(io::Error),
}

/// A keep-alive connection.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    host: SocketAddr,
}

impl Connection {
    /// Connects.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), host: address })
    }

    /// Sends bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Sends a request with `Host` and `Content-Length`, and waits for the answer.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &[u8])],
        body: &[u8],
    ) -> Result<Answer, Failed> {
        let mut bytes = format!("{method} {path} HTTP/1.1\r\n").into_bytes();
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            bytes.extend(format!("Host: {}\r\n", self.host).bytes());
        }
        for (name, value) in headers {
            bytes.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
        bytes.extend_from_slice(body);
        self.send_raw(&bytes).map_err(Failed::Unknown)?;
        self.answer().map_err(Failed::Unknown)
    }

    /// Reads one answer.
    pub fn answer(&mut self) -> io::Result<Answer> {
        loop {
            let answer = read_answer(&mut self.stream)?;
            if answer.status >= 200 {
                return Ok(answer);
            }
        }
    }
}

/// One request on a connection of its own.
pub fn once(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &[u8])],
    body: &[u8],
) -> Result<Answer, Failed> {
    let mut connection = Connection::open(address).map_err(Failed::NotSent)?;
    let mut all = headers.to_vec();
    all.push(("Connection", b"close"));
    connection.request(method, path, &all, body)
}

/// The request or status line and the headers that follow it; `None` at a clean end.
pub fn read_head(stream: &mut impl BufRead) -> io::Result<Option<(String, Headers)>> {
    let first = read_line(stream)?;
    if first.is_empty() {
        return Ok(None);
    }
    let mut headers = Vec::new();
    loop {
        let line = read_line(stream)?;
        let line = line.strip_suffix(b"\r\n").or_else(|| line.strip_suffix(b"\n")).unwrap_or(&line);
        if line.is_empty() {
            break;
        }
        let colon =
            line.iter().position(|byte| *byte == b':').ok_or_else(|| io::Error::other("a header without colon"))?;
        let name = String::from_utf8_lossy(&line[..colon]).into_owned();
        headers.push((name, line[colon + 1..].trim_ascii().to_vec()));
    }
    Ok(Some((String::from_utf8_lossy(&first).trim_end().to_owned(), headers)))
}

fn read_line(stream: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line)?;
    if !line.is_empty() && !line.ends_with(b"\n") {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}

/// A body by `Transfer-Encoding: chunked` or `Content-Length`; `otherwise` says what no length means.
pub fn read_body(stream: &mut impl BufRead, headers: &[(String, Vec<u8>)], to_the_end: bool) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if first(headers, "transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        loop {
            let size = String::from_utf8_lossy(&read_line(stream)?).trim().to_owned();
            let size = usize::from_str_radix(size.split(';').next().unwrap_or(""), 16).map_err(io::Error::other)?;
            let mut chunk = vec![0; size];
            stream.read_exact(&mut chunk)?;
            body.extend(chunk);
            read_line(stream)?;
            if size == 0 {
                return Ok(body);
            }
        }
    }
    match first(headers, "content-length") {
        Some(length) => {
            body.resize(length.parse().map_err(io::Error::other)?, 0);
            stream.read_exact(&mut body)?;
        }
        None if to_the_end => {
            stream.read_to_end(&mut body)?;
        }
        None => {}
    }
    Ok(body)
}

fn read_answer(stream: &mut impl BufRead) -> io::Result<Answer> {
    let (line, headers) = read_head(stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    let headers: Vec<_> = headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    let bodiless = status < 200 || status == 204 || status == 304;
    let body = if bodiless { Vec::new() } else { read_body(stream, &headers, true)? };
    Ok(Answer { status, headers, body })
}
