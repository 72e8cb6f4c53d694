//! One connection: which protocol it speaks, and how long it may take for anything.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::handler::{Shared, handle};
use super::routes::ListenerLimits;
use super::socket::{Protocol, Socket};

/// The smallest read buffer that hyper allows, in bytes.
const MIN_BUFFER: usize = 8 * 1024;

/// Room above the largest limit of the routes. A head that ends within it is refused by `handler`, with a reason in the
/// answer and a place in the metrics; beyond it hyper answers a bare 431.
const HEAD_ROOM: usize = 16 * 1024;

/// Header lines that hyper reads, and reserves for each request; `handler` refuses fewer than that.
const MAX_HEADERS: usize = 256;

/// Requests side by side on one HTTP/2 connection.
const H2_STREAMS: u32 = 128;

/// What an HTTP/2 peer may send before a body is read, in bytes: of one request, and of all on a connection. It bounds
/// what a connection can make us hold without being admitted.
const H2_STREAM_WINDOW: u32 = 64 * 1024;
const H2_CONNECTION_WINDOW: u32 = 256 * 1024;

/// Streams that a peer opened and reset before we saw them (rapid reset), and streams that we reset for its errors:
/// beyond these the connection is closed.
const H2_PENDING_RESETS: usize = 20;
const H2_ERROR_RESETS: usize = 256;

/// An HTTP/2 peer is asked for a sign of life this often, and has this long to give it.
const H2_PING_INTERVAL: Duration = Duration::from_secs(20);
const H2_PING_TIMEOUT: Duration = Duration::from_secs(10);

/// How a connection is told to end.
#[derive(Debug, Clone)]
pub(super) struct Signals {
    /// Finish what is under way, take nothing new.
    pub(super) stop: CancellationToken,
    /// End now.
    pub(super) abort: CancellationToken,
}

/// Serves one connection to its end.
pub(super) async fn serve(stream: TcpStream, shared: Arc<Shared>, limits: ListenerLimits, signals: Signals) {
    // Answers are single small writes: waiting to fill a packet only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a new connection is already gone");
        return;
    }
    let mut socket = Socket::new(stream);
    // What has arrived is always looked at before the signal to stop: nobody who sent a request is just closed.
    let protocol = tokio::select! {
        biased;
        protocol = socket.detect(Instant::now() + limits.read_timeout) => protocol,
        () = signals.stop.cancelled() => None,
    };
    match protocol {
        Some(Protocol::Http1) => http1(socket, shared, limits, signals).await,
        // Boxed: its state is several times larger, and most connections are not of this kind.
        Some(Protocol::Http2) => Box::pin(http2(socket, shared, limits, signals)).await,
        None => {}
    }
}

async fn http1(socket: Socket, shared: Arc<Shared>, limits: ListenerLimits, signals: Signals) {
    let service = service_fn(move |request| handle(shared.clone(), request));
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // Also bounds the time between two requests.
        .header_read_timeout(limits.read_timeout)
        .max_header_size(limits.max_header_size + HEAD_ROOM)
        .max_headers(MAX_HEADERS)
        // Bounds what one connection can make us hold without being admitted.
        .max_buf_size((limits.max_header_size + HEAD_ROOM).max(MIN_BUFFER))
        // A client that closes its sending half after the request still gets its answer. Where callers wait for long,
        // it is taken for one that has left, as most are: who waits no more must not take a place.
        .half_close(!limits.callers_wait);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(socket), service));
    let result = tokio::select! {
        biased;
        result = connection.as_mut() => result,
        () = signals.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = connection => result,
                () = signals.abort.cancelled() => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}

async fn http2(socket: Socket, shared: Arc<Shared>, limits: ListenerLimits, signals: Signals) {
    let activity = Arc::new(Activity::default());
    let executor = Tracked(shared.tasks.clone());
    let service = {
        let activity = activity.clone();
        service_fn(move |request| {
            let active = Active::new(&activity);
            let answer = handle(shared.clone(), request);
            async move {
                let _active = active;
                answer.await
            }
        })
    };
    let mut builder = http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_pending_accept_reset_streams(H2_PENDING_RESETS)
        .max_local_error_reset_streams(H2_ERROR_RESETS)
        // Also bounds a flood of CONTINUATION frames.
        .max_header_list_size(u32::try_from(limits.max_header_size + HEAD_ROOM).unwrap_or(u32::MAX))
        .max_send_buf_size(H2_STREAM_WINDOW as usize)
        .keep_alive_interval(H2_PING_INTERVAL)
        .keep_alive_timeout(H2_PING_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(socket), service));
    let mut ticks = interval_at(Instant::now() + limits.read_timeout, limits.read_timeout);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = activity.requests.load(Ordering::Relaxed);
    let mut ending = false;
    loop {
        tokio::select! {
            biased;
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            () = signals.stop.cancelled(), if !ending => {
                connection.as_mut().graceful_shutdown();
                ending = true;
            }
            () = signals.abort.cancelled() => return,
            _ = ticks.tick() => {
                // Pings keep a connection alive that does nothing; hyper has no idle time-out for HTTP/2.
                let idle = activity.active.load(Ordering::Relaxed) == 0
                    && activity.requests.load(Ordering::Relaxed) == seen;
                seen = activity.requests.load(Ordering::Relaxed);
                if idle && ending {
                    return;
                }
                if idle {
                    connection.as_mut().graceful_shutdown();
                    ending = true;
                }
            }
        }
    }
}

/// What an HTTP/2 connection does.
#[derive(Debug, Default)]
struct Activity {
    active: AtomicU64,
    requests: AtomicU64,
}

/// A request that is being answered.
struct Active(Arc<Activity>);

impl Active {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.active.fetch_add(1, Ordering::Relaxed);
        activity.requests.fetch_add(1, Ordering::Relaxed);
        Self(activity.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Spawns the streams of an HTTP/2 connection so that a drain waits for them.
#[derive(Debug, Clone)]
struct Tracked(TaskTracker);

impl<F> Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}
