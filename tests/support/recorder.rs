//! A target that records every hit raw and answers by script: by number, by content, late, never, or not at all.

use std::io::{BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::http;

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Hit {
    /// Its number, from 0.
    pub index: usize,
    /// When its last byte had come.
    pub at: Instant,
    /// When the answer was written; `None` while it is not.
    pub answered: Option<Instant>,
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Names as they came, raw values, in order.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Hit {
    /// The first value, as text.
    pub fn header(&self, name: &str) -> Option<String> {
        http::first(&self.headers, name)
    }

    /// All values, raw.
    pub fn all(&self, name: &str) -> Vec<Vec<u8>> {
        self.headers
            .iter()
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.clone())
            .collect()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What a hit is answered.
#[derive(Debug, Clone)]
pub struct Reply {
    bytes: Vec<u8>,
    delay: Duration,
    then: Then,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Then {
    KeepAlive,
    Close,
    Hang,
}

impl Reply {
    /// A status with an empty body.
    pub fn status(status: u16) -> Self {
        Self::full(status, &[], b"")
    }

    /// A complete answer.
    pub fn full(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut bytes = format!("HTTP/1.1 {status} Scripted\r\n").into_bytes();
        for (name, value) in headers {
            bytes.extend(format!("{name}: {value}\r\n").bytes());
        }
        if status != 204 {
            bytes.extend(format!("Content-Length: {}\r\n", body.len()).bytes());
        }
        bytes.extend(b"\r\n");
        bytes.extend_from_slice(body);
        Self { bytes, delay: Duration::ZERO, then: Then::KeepAlive }
    }

    /// These bytes, then the connection is closed.
    pub fn raw(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), delay: Duration::ZERO, then: Then::Close }
    }

    /// Never answered; the connection stays open.
    pub fn hang() -> Self {
        Self { bytes: Vec::new(), delay: Duration::ZERO, then: Then::Hang }
    }

    /// Answered this much later.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

type Script = Arc<dyn Fn(&Hit) -> Reply + Send + Sync>;

/// The target.
pub struct Recorder {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Mutex<Option<Listening>>,
}

struct Shared {
    hits: Mutex<Vec<Hit>>,
    script: Mutex<Script>,
    connections: Mutex<Vec<TcpStream>>,
    accepted: AtomicU64,
}

struct Listening {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Recorder {
    /// Answers 200 to everything.
    pub fn start() -> Self {
        Self::answering(|_| Reply::status(200))
    }

    /// Answers these statuses one by one; the last one repeats.
    pub fn statuses(statuses: &[u16]) -> Self {
        let statuses = statuses.to_vec();
        Self::answering(move |hit| Reply::status(statuses[hit.index.min(statuses.len() - 1)]))
    }

    /// Answers what the script says.
    pub fn answering(script: impl Fn(&Hit) -> Reply + Send + Sync + 'static) -> Self {
        let recorder = Self::down(script);
        recorder.up();
        recorder
    }

    /// Has a port, but nobody listens on it yet.
    pub fn down(script: impl Fn(&Hit) -> Reply + Send + Sync + 'static) -> Self {
        let shared = Shared {
            hits: Mutex::default(),
            script: Mutex::new(Arc::new(script)),
            connections: Mutex::default(),
            accepted: AtomicU64::new(0),
        };
        let address = SocketAddr::from(([127, 0, 0, 1], super::quiet_port()));
        Self { address, shared: Arc::new(shared), listening: Mutex::new(None) }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `127.0.0.1:PORT`, as `Host` names it.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Another script from the next hit on.
    pub fn script(&self, script: impl Fn(&Hit) -> Reply + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Arc::new(script);
    }

    /// Starts listening (again, on the same port).
    pub fn up(&self) {
        let mut listening = self.listening.lock().unwrap();
        if listening.is_some() {
            return;
        }
        let listener = super::eventually("the recorder's port is free", super::seconds(10), || {
            TcpListener::bind(self.address).ok()
        });
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (self.shared.clone(), stop.clone());
        let thread = std::thread::spawn(move || accept(&listener, &shared, &stopped));
        *listening = Some(Listening { stop, thread });
    }

    /// Refuses connections from now on and resets the open ones.
    pub fn refuse(&self) {
        if let Some(listening) = self.listening.lock().unwrap().take() {
            listening.stop.store(true, Ordering::SeqCst);
            // Wakes the accept call; the listener is closed when its thread has ended.
            let _ = TcpStream::connect(self.address);
            let _ = listening.thread.join();
        }
        for connection in self.shared.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// What came so far.
    pub fn hits(&self) -> Vec<Hit> {
        self.lock().clone()
    }

    /// The bodies so far, as text.
    pub fn texts(&self) -> Vec<String> {
        self.lock().iter().map(Hit::text).collect()
    }

    /// How many came so far.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Waits for at least this many hits.
    #[track_caller]
    pub fn await_hits(&self, count: usize, within: Duration) -> Vec<Hit> {
        let deadline = Instant::now() + within;
        while self.count() < count {
            assert!(Instant::now() < deadline, "{} hits within {within:?}, {count} were awaited", self.count());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.hits()
    }

    /// Watches that no hit beyond these comes for a while.
    #[track_caller]
    pub fn stays_at(&self, count: usize, through: Duration) {
        let end = Instant::now() + through;
        while Instant::now() < end {
            assert_eq!(self.count(), count, "hits: {:?}", self.texts());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Hit>> {
        self.shared.hits.lock().unwrap()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.refuse();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, stop: &AtomicBool) {
    for stream in listener.incoming() {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        if let Ok(copy) = stream.try_clone() {
            shared.connections.lock().unwrap().push(copy);
        }
        let shared = shared.clone();
        std::thread::spawn(move || {
            // A connection that ends in the middle is the test's doing.
            let _ = serve(stream, &shared);
        });
    }
}

fn serve(stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some((line, headers)) = http::read_head(&mut reader)? {
        let body = http::read_body(&mut reader, &headers, false)?;
        let mut words = line.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (hit, script) = {
            let mut hits = shared.hits.lock().unwrap();
            let hit = Hit { index: hits.len(), at: Instant::now(), answered: None, method, path, headers, body };
            hits.push(hit.clone());
            (hit, shared.script.lock().unwrap().clone())
        };
        let reply = script(&hit);
        std::thread::sleep(reply.delay);
        // Noted before the bytes leave, so that the next hit can't seem to overlap this one.
        if reply.then != Then::Hang {
            shared.hits.lock().unwrap()[hit.index].answered = Some(Instant::now());
        }
        writer.write_all(&reply.bytes)?;
        if reply.then == Then::Close {
            return writer.shutdown(Shutdown::Both);
        }
    }
    Ok(())
}
