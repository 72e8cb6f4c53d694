//! A recording HTTP target, for trying things out, for tests and for measurements.
//!
//! Inputs: any request, any method, any path, over HTTP/1.1 or HTTP/2 without TLS. Outputs: the scripted answer, and
//! each request as one line of JSON. Three requests are for the sink itself: `GET /__hits` returns the hits as a JSON
//! array, `DELETE /__hits` forgets them, `PUT /__script` changes what is answered while it runs and starts over with the
//! first status.
//!
//! It keeps the last [`MAX_HITS`] hits, and of their bodies and headers at most [`MAX_HIT_BYTES`] together; older ones
//! are forgotten. It decides nothing and is not meant to face anybody but its user.

mod args;
mod hit;
mod record;
mod script;

pub use args::SinkArgs;
pub use hit::Hit;
pub use record::RecordTo;
pub use script::{Script, ScriptError};

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use jiff::Timestamp;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use record::Recorder;

/// Hits that are kept for `GET /__hits`.
pub const MAX_HITS: usize = 10_000;

/// Bytes of bodies and headers that are kept for `GET /__hits`.
pub const MAX_HIT_BYTES: usize = 128 * 1024 * 1024;

/// Largest body that is taken, in bytes: above what any store delivers. A larger one is answered 413 and not recorded.
pub const MAX_BODY: usize = 16 * 1024 * 1024;

/// Connections at once; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 4096;

/// For the head of a request, so that a forgotten connection does not stay for ever.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// After a failed accept (no file handles left, say) it is tried again this much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a sink is started.
#[derive(Debug, Clone)]
pub struct SinkOptions {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What it answers.
    pub script: Script,
    /// Where the JSON lines go.
    pub record: RecordTo,
}

/// Why a sink does not run.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The address cannot be listened on.
    #[error("--listen {address}: {source}; choose another address, or port 0 for a free one")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The record file cannot be opened.
    #[error("--record {}: {source}; name a file that can be written", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The script cannot be answered.
    #[error(transparent)]
    Script(#[from] ScriptError),
}

/// A sink that listens. Dropping it closes it.
#[derive(Debug)]
pub struct RunningSink {
    address: SocketAddr,
    state: Arc<State>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    recorder: Option<record::Writing>,
}

/// Starts and stops sinks.
#[derive(Debug, Clone, Copy)]
pub struct Sink;

impl Sink {
    /// Listens and serves until the result is stopped or dropped.
    pub async fn start(options: SinkOptions) -> Result<RunningSink, SinkError> {
        let failed = |source| SinkError::Listen { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (recorder, writing) = record::start(&options.record)?;
        let state = Arc::new(State { recorder, kept: Mutex::new(Kept::new(options.script)) });
        let stop = CancellationToken::new();
        let accepting = accept(listener, Arc::clone(&state));
        let stopped = stop.clone();
        let serving = tokio::spawn(async move {
            stopped.run_until_cancelled(accepting).await;
        });
        Ok(RunningSink { address, state, stop, serving, recorder: writing })
    }
}

impl RunningSink {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The hits that are kept, the oldest first.
    pub fn hits(&self) -> Vec<Arc<Hit>> {
        self.state.lock().hits.iter().cloned().collect()
    }

    /// Closes every connection and writes out what is still to be recorded.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let _ = (&mut self.serving).await;
        self.state.recorder.close();
        if let Some(writing) = self.recorder.take() {
            writing.finished().await;
        }
    }
}

impl Drop for RunningSink {
    fn drop(&mut self) {
        self.stop.cancel();
        self.state.recorder.close();
    }
}

/// `stagepost sink`: runs until `shutdown`.
pub async fn run(args: SinkArgs, shutdown: CancellationToken) -> Result<(), SinkError> {
    let sink = Sink::start(args.options()?).await?;
    tracing::info!("the sink listens on http://{}", sink.address());
    shutdown.cancelled().await;
    sink.stop().await;
    Ok(())
}

/// What the connections share.
#[derive(Debug)]
struct State {
    recorder: Recorder,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    script: Arc<Script>,
    /// Statuses of the script that were answered.
    answered: usize,
    /// The oldest in front.
    hits: VecDeque<Arc<Hit>>,
    bytes: usize,
}

impl Kept {
    fn new(script: Script) -> Self {
        Self { script: Arc::new(script), answered: 0, hits: VecDeque::new(), bytes: 0 }
    }

    fn next_status(&mut self) -> StatusCode {
        let status = self.script.status(self.answered);
        self.answered = self.answered.saturating_add(1);
        status
    }

    fn keep(&mut self, hit: Arc<Hit>) {
        self.bytes += hit.weight();
        self.hits.push_back(hit);
        while self.hits.len() > MAX_HITS || self.bytes > MAX_HIT_BYTES {
            let Some(oldest) = self.hits.pop_front() else { return };
            self.bytes -= oldest.weight();
        }
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes connections for ever; dropped, it closes them all.
async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => drop(connections.spawn(serve(stream, Arc::clone(&state)))),
            Err(error) => {
                tracing::warn!("the sink cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    // Answers are small and awaited: without it they may wait for an acknowledgement. A failure makes it slower only.
    let _ = stream.set_nodelay(true);
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    server.http2().timer(TokioTimer::new());
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(state.answer(request).await) }
    });
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!("a connection to the sink ended: {error}");
    }
}

type Reply = Response<Full<Bytes>>;

impl State {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        let (head, body) = request.into_parts();
        let body = match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                return text(StatusCode::PAYLOAD_TOO_LARGE, format!("the sink takes bodies up to {MAX_BODY} bytes"));
            }
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}")),
        };
        match (&head.method, head.uri.path()) {
            (&Method::GET, "/__hits") => self.list(),
            (&Method::DELETE, "/__hits") => self.forget(),
            (&Method::PUT, "/__script") => self.change(&body),
            (_, "/__hits") => not_allowed("GET, DELETE"),
            (_, "/__script") => not_allowed("PUT"),
            _ => self.record(head, body).await,
        }
    }

    async fn record(&self, head: http::request::Parts, body: Bytes) -> Reply {
        let (hit, script) = {
            let mut kept = self.lock();
            let status = kept.next_status();
            let hit = Arc::new(Hit {
                time: Timestamp::now(),
                method: head.method,
                uri: head.uri,
                headers: head.headers,
                body,
                status,
            });
            kept.keep(Arc::clone(&hit));
            (hit, Arc::clone(&kept.script))
        };
        self.recorder.write(Arc::clone(&hit)).await;
        if !script.delay.is_zero() {
            tokio::time::sleep(script.delay).await;
        }
        script.reply(&hit)
    }

    fn list(&self) -> Reply {
        let hits: Vec<Arc<Hit>> = self.lock().hits.iter().cloned().collect();
        let mut json = vec![b'['];
        for (index, hit) in hits.iter().enumerate() {
            if index > 0 {
                json.extend_from_slice(b",\n");
            }
            hit.write_json(&mut json);
        }
        json.extend_from_slice(b"]\n");
        let mut reply = Response::new(Full::from(json));
        reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        reply
    }

    fn forget(&self) -> Reply {
        let forgotten = {
            let mut kept = self.lock();
            kept.bytes = 0;
            std::mem::take(&mut kept.hits)
        };
        drop(forgotten);
        empty(StatusCode::NO_CONTENT)
    }

    fn change(&self, body: &[u8]) -> Reply {
        let mut kept = self.lock();
        match kept.script.changed(body) {
            Ok(script) => {
                kept.script = Arc::new(script);
                kept.answered = 0;
                empty(StatusCode::NO_CONTENT)
            }
            Err(error) => text(StatusCode::BAD_REQUEST, error.to_string()),
        }
    }
}

fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(Full::default());
    *reply.status_mut() = status;
    reply
}

fn text(status: StatusCode, text: String) -> Reply {
    let mut reply = Response::new(Full::from(text + "\n"));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    reply
}

fn not_allowed(methods: &'static str) -> Reply {
    let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, format!("use {methods}"));
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    reply
}

#[cfg(test)]
mod tests;
