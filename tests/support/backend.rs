//! A recording HTTP backend on raw TCP: every hit is kept as it came, and every answer can break the rules.
//!
//! It is not built on an HTTP library on purpose: what it sends is exactly what the script says, to the byte.

// Each test binary uses its part; a fixture that fails is a failed test.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::expect_used, clippy::unwrap_used)]

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// How long [`Backend::until`] waits before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Hit {
    /// 1 for the first request of all.
    pub number: usize,
    /// Which accepted connection it came over, 1 for the first.
    pub connection: usize,
    /// 1 for the first request on its connection.
    pub on_connection: usize,
    /// When it was complete.
    pub at: Instant,
    /// The same on the wall clock.
    pub time: SystemTime,
    pub method: String,
    /// The request target: path and query, unchanged.
    pub path: String,
    /// In the order of the wire, names as they were written.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body, with a chunked coding taken off.
    pub body: Vec<u8>,
    /// Everything, to the byte.
    pub raw: Vec<u8>,
}

impl Hit {
    /// Every value of a header.
    pub fn all(&self, name: &str) -> Vec<String> {
        let values = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        values.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<String> {
        self.all(name).into_iter().next()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What is done for a hit, step by step.
#[derive(Debug, Clone, Default)]
pub struct Answer(Vec<Step>);

#[derive(Debug, Clone)]
enum Step {
    Send(Vec<u8>),
    Trickle(Vec<u8>, Duration),
    Endless(Vec<u8>),
    Pause(Duration),
    Hang,
    Close,
    Reset,
}

impl Answer {
    /// A complete answer with a status, a `Content-Length` and an empty body.
    pub fn status(status: u16) -> Self {
        Self::full(status, &[], b"")
    }

    /// A complete answer.
    pub fn full(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut bytes = head(status, headers, Some(body.len()));
        bytes.extend_from_slice(body);
        Self::raw(bytes)
    }

    /// A head alone, whatever it promises.
    pub fn head(status: u16, headers: &[(&str, &str)]) -> Self {
        Self::raw(head(status, headers, None))
    }

    /// Exactly these bytes.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self(vec![Step::Send(bytes.into())])
    }

    /// Nothing yet.
    pub fn nothing() -> Self {
        Self::default()
    }

    fn then(mut self, step: Step) -> Self {
        self.0.push(step);
        self
    }

    /// Then these bytes.
    pub fn then_send(self, bytes: impl Into<Vec<u8>>) -> Self {
        self.then(Step::Send(bytes.into()))
    }

    /// Then these bytes, one at a time.
    pub fn then_trickle(self, bytes: impl Into<Vec<u8>>, gap: Duration) -> Self {
        self.then(Step::Trickle(bytes.into(), gap))
    }

    /// Then these bytes again and again, for as long as they are taken.
    pub fn then_endless(self, bytes: impl Into<Vec<u8>>) -> Self {
        self.then(Step::Endless(bytes.into()))
    }

    /// Then nothing for a while.
    pub fn then_pause(self, time: Duration) -> Self {
        self.then(Step::Pause(time))
    }

    /// Then nothing any more; the connection stays open.
    pub fn then_hang(self) -> Self {
        self.then(Step::Hang)
    }

    /// Then an orderly close.
    pub fn then_close(self) -> Self {
        self.then(Step::Close)
    }

    /// Then a TCP reset.
    pub fn then_reset(self) -> Self {
        self.then(Step::Reset)
    }
}

fn head(status: u16, headers: &[(&str, &str)], length: Option<usize>) -> Vec<u8> {
    let mut lines = vec![format!("HTTP/1.1 {status} Scripted")];
    lines.extend(headers.iter().map(|(name, value)| format!("{name}: {value}")));
    lines.extend(length.map(|length| format!("Content-Length: {length}")));
    (lines.join("\r\n") + "\r\n\r\n").into_bytes()
}

type Script = dyn Fn(&Hit) -> Answer + Send + Sync;

/// What happened so far.
#[derive(Debug, Default)]
struct Record {
    hits: Vec<Hit>,
    accepted: usize,
    open: usize,
}

struct Shared {
    script: Mutex<Arc<Script>>,
    record: Mutex<Record>,
    changed: watch::Sender<u64>,
    tls: Option<TlsAcceptor>,
    close_after_idle: Option<Duration>,
    at_accept: Option<Answer>,
}

/// How a backend behaves before and beside its answers.
#[derive(Default)]
pub struct Options {
    /// Speaks TLS.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Closes a connection on which no request came for this long.
    pub close_after_idle: Option<Duration>,
    /// Done on each connection before anything is read.
    pub at_accept: Option<Answer>,
}

/// A listening backend. Dropping it closes everything.
pub struct Backend {
    address: SocketAddr,
    shared: Arc<Shared>,
    // Dropping it ends the accept loop and with it every connection.
    running: tokio::task::JoinSet<()>,
}

impl Backend {
    /// A backend that answers every hit with this status.
    pub async fn with_status(status: u16) -> Self {
        Self::start(move |_| Answer::status(status)).await
    }

    /// A backend that answers the first hits with these, and the last of them for ever.
    pub async fn with_answers(answers: impl IntoIterator<Item = Answer>) -> Self {
        let mut answers: VecDeque<Answer> = answers.into_iter().collect();
        let last = Mutex::new(answers.pop_back().expect("at least one answer"));
        let first = Mutex::new(answers);
        Self::start(move |_| first.lock().unwrap().pop_front().unwrap_or_else(|| last.lock().unwrap().clone())).await
    }

    /// A backend whose script looks at each hit.
    pub async fn start(script: impl Fn(&Hit) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_with(Options::default(), script).await
    }

    /// The same with options.
    pub async fn start_with(options: Options, script: impl Fn(&Hit) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Self::serve(listener, options, script)
    }

    /// A backend at an address where one has been before.
    pub async fn start_at(address: SocketAddr, script: impl Fn(&Hit) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).await.expect("the port is free again");
        Self::serve(listener, Options::default(), script)
    }

    fn serve(listener: TcpListener, options: Options, script: impl Fn(&Hit) -> Answer + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared {
            script: Mutex::new(Arc::new(script)),
            record: Mutex::default(),
            changed: watch::channel(0).0,
            tls: options.tls.map(TlsAcceptor::from),
            close_after_idle: options.close_after_idle,
            at_accept: options.at_accept,
        });
        let address = listener.local_addr().expect("a bound listener has an address");
        let mut running = tokio::task::JoinSet::new();
        running.spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, running }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same for a name that resolves to it.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// `http://127.0.0.1:PORT` and a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Closes everything; when it returns, connects are refused. The address can be listened on again.
    pub async fn stop(mut self) -> SocketAddr {
        self.running.shutdown().await;
        self.address
    }

    /// Other answers from now on.
    pub fn script(&self, script: impl Fn(&Hit) -> Answer + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Arc::new(script);
    }

    /// Every hit so far, in order.
    pub fn hits(&self) -> Vec<Hit> {
        self.shared.record.lock().unwrap().hits.clone()
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.record.lock().unwrap().accepted
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.shared.record.lock().unwrap().open
    }

    /// Waits until there are this many hits.
    pub async fn until_hits(&self, number: usize) -> Vec<Hit> {
        self.until("hits", |backend| backend.shared.record.lock().unwrap().hits.len() >= number).await;
        self.hits()
    }

    /// Waits until this many connections are open.
    pub async fn until_open(&self, number: usize) {
        self.until("open connections", |backend| backend.open() == number).await;
    }

    async fn until(&self, what: &str, met: impl Fn(&Self) -> bool) {
        let mut changes = self.shared.changed.subscribe();
        let waiting = async {
            while !met(self) {
                changes.changed().await.expect("the backend is alive");
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, waiting).await.is_ok();
        assert!(in_time, "waited in vain for {what}: {:?}", self.shared.record.lock().unwrap());
    }
}

impl Shared {
    fn note(&self, change: impl FnOnce(&mut Record)) {
        change(&mut self.record.lock().unwrap());
        self.changed.send_modify(|version| *version += 1);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        while connections.try_join_next().is_some() {}
        let shared = Arc::clone(&shared);
        let mut connection = 0;
        shared.note(|record| {
            record.accepted += 1;
            record.open += 1;
            connection = record.accepted;
        });
        connections.spawn(async move {
            let _ = serve_connection(stream, connection, &shared).await;
            shared.note(|record| record.open -= 1);
        });
    }
}

async fn serve_connection(stream: TcpStream, connection: usize, shared: &Shared) -> io::Result<()> {
    let _ = stream.set_nodelay(true);
    match &shared.tls {
        None => converse(Plain(stream), connection, shared).await,
        Some(tls) => converse(Secure(tls.accept(stream).await?), connection, shared).await,
    }
}

/// A stream that can be reset.
trait Resettable {
    type Io: AsyncRead + AsyncWrite + Unpin;
    fn io(&mut self) -> &mut Self::Io;
    fn tcp(&self) -> &TcpStream;
}

struct Plain(TcpStream);
struct Secure(tokio_rustls::server::TlsStream<TcpStream>);

impl Resettable for Plain {
    type Io = TcpStream;
    fn io(&mut self) -> &mut TcpStream {
        &mut self.0
    }
    fn tcp(&self) -> &TcpStream {
        &self.0
    }
}

impl Resettable for Secure {
    type Io = tokio_rustls::server::TlsStream<TcpStream>;
    fn io(&mut self) -> &mut Self::Io {
        &mut self.0
    }
    fn tcp(&self) -> &TcpStream {
        self.0.get_ref().0
    }
}

async fn converse(mut stream: impl Resettable, connection: usize, shared: &Shared) -> io::Result<()> {
    if let Some(answer) = &shared.at_accept
        && !carry_out(&mut stream, answer).await?
    {
        return Ok(());
    }
    let mut buffer = Vec::new();
    for on_connection in 1.. {
        let reading = read_request(stream.io(), &mut buffer);
        let request = match shared.close_after_idle {
            None => reading.await?,
            Some(idle) => match tokio::time::timeout(idle, reading).await {
                Ok(request) => request?,
                Err(_) => None,
            },
        };
        let Some(mut hit) = request else { break };
        hit.connection = connection;
        hit.on_connection = on_connection;
        let script = Arc::clone(&shared.script.lock().unwrap());
        shared.note(|record| {
            hit.number = record.hits.len() + 1;
            record.hits.push(hit.clone());
        });
        if !carry_out(&mut stream, &script(&hit)).await? {
            return Ok(());
        }
    }
    stream.io().shutdown().await
}

/// False: the connection has ended.
async fn carry_out(stream: &mut impl Resettable, answer: &Answer) -> io::Result<bool> {
    for step in &answer.0 {
        match step {
            Step::Send(bytes) => {
                stream.io().write_all(bytes).await?;
                stream.io().flush().await?;
            }
            Step::Trickle(bytes, gap) => {
                for byte in bytes {
                    stream.io().write_all(&[*byte]).await?;
                    stream.io().flush().await?;
                    tokio::time::sleep(*gap).await;
                }
            }
            Step::Endless(bytes) => loop {
                stream.io().write_all(bytes).await?;
            },
            Step::Pause(time) => tokio::time::sleep(*time).await,
            Step::Hang => {
                // Ends when the other side closes.
                let mut rest = [0; 1024];
                while stream.io().read(&mut rest).await? > 0 {}
                return Ok(false);
            }
            Step::Close => {
                stream.io().shutdown().await?;
                return Ok(false);
            }
            Step::Reset => {
                stream.tcp().set_zero_linger()?;
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// The next request; `None` at an orderly end. What follows it stays in `buffer`.
async fn read_request(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> io::Result<Option<Hit>> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut headers = Vec::new();
    for line in buffer[..end - 4].split(|byte| *byte == b'\n').skip(1) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some(colon) = line.iter().position(|byte| *byte == b':') {
            let name = String::from_utf8_lossy(&line[..colon]).into_owned();
            headers.push((name, line[colon + 1..].trim_ascii().to_vec()));
        }
    }
    let value = |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone());
    let (body, end) = if value("transfer-encoding").is_some() {
        read_chunks(stream, buffer, end).await?
    } else {
        let length: usize =
            value("content-length").map_or(0, |v| String::from_utf8_lossy(&v).parse().expect("a length"));
        fill(stream, buffer, end + length).await?;
        (buffer[end..end + length].to_vec(), end + length)
    };
    let raw = buffer.drain(..end).collect();
    let (at, time) = (Instant::now(), SystemTime::now());
    Ok(Some(Hit { number: 0, connection: 0, on_connection: 0, at, time, method, path, headers, body, raw }))
}

async fn read_chunks(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    mut at: usize,
) -> io::Result<(Vec<u8>, usize)> {
    let mut body = Vec::new();
    loop {
        let line_end = loop {
            if let Some(found) = buffer[at..].windows(2).position(|window| window == b"\r\n") {
                break at + found;
            }
            let wanted = buffer.len() + 1;
            fill(stream, buffer, wanted).await?;
        };
        let size = String::from_utf8_lossy(&buffer[at..line_end]).into_owned();
        let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
        let start = line_end + 2;
        fill(stream, buffer, start + size + 2).await?;
        body.extend_from_slice(&buffer[start..start + size]);
        at = start + size + 2;
        if size == 0 {
            return Ok((body, at));
        }
    }
}

async fn fill(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>, wanted: usize) -> io::Result<()> {
    while buffer.len() < wanted {
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}
