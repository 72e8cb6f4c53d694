//! The listener: accepts connections within their bound, and drains them at the end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{self, Signals};
use super::handler::Shared;
use super::routes::RouteTable;

/// Connections that the kernel holds for us until they are accepted. Linux cuts it to `net.core.somaxconn` (4096).
const BACKLOG: u32 = 4096;

/// The pause after an accept that failed for want of descriptors or memory: others must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long tasks that were told to end now may take for it.
const ABORT_TIME: Duration = Duration::from_millis(500);

/// A bound listener, not yet serving: callers that connect wait in the kernel.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// After the signal, connections are still accepted for this long while every answer carries
    /// `Connection: close`: load balancers learn only then that we are going. 5 s in a pod, zero locally.
    pub linger: Duration,
    /// From the signal to the end, `linger` included. What is not finished by then is cut off.
    pub grace: Duration,
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every request was answered.
    Complete,
    /// The grace period ended with this many connections or publishes unfinished.
    CutOff(usize),
}

/// Counts open connections.
#[derive(Debug, Default)]
struct Open {
    count: AtomicUsize,
    closed: Notify,
}

/// One open connection.
#[derive(Debug)]
struct OpenGuard(Arc<Open>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
        self.0.closed.notify_one();
    }
}

impl Server {
    /// Binds the address. Port 0 takes a free one.
    ///
    /// Must be called within a Tokio runtime.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restart must not wait for connections of the process before it.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, then drains.
    ///
    /// The table may be swapped at any time: each request is answered by the table of the moment its head was
    /// complete, each connection keeps the limits of the moment it was accepted.
    pub async fn serve(self, routes: Arc<ArcSwap<RouteTable>>, shutdown: CancellationToken, drain: Drain) -> Drained {
        let serving = Serving {
            shared: Arc::new(Shared { routes, draining: AtomicBool::new(false), tasks: TaskTracker::new() }),
            open: Arc::default(),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
        };
        serving.accept_until(&self.listener, shutdown.cancelled()).await;
        let end = Instant::now() + drain.grace;
        serving.shared.draining.store(true, Ordering::Relaxed);
        serving.accept_until(&self.listener, sleep(drain.linger.min(drain.grace))).await;
        serving.accept_waiting(&self.listener);
        drop(self.listener);
        serving.finish(end).await
    }
}

/// A server at work.
struct Serving {
    shared: Arc<Shared>,
    open: Arc<Open>,
    stop: CancellationToken,
    abort: CancellationToken,
}

impl Serving {
    async fn accept_until(&self, listener: &TcpListener, end: impl Future<Output = ()>) {
        tokio::pin!(end);
        loop {
            tokio::select! {
                biased;
                () = &mut end => return,
                () = self.accept_one(listener) => {}
            }
        }
    }

    async fn accept_one(&self, listener: &TcpListener) {
        // At the bound nothing is accepted: callers wait in the kernel's queue, and every open connection ends or
        // works within its own time-outs.
        while self.is_full() {
            self.open.closed.notified().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => self.spawn(stream),
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections; trying again; raise the limit of open files, or lower limits.maxConnections");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    fn is_full(&self) -> bool {
        self.open.count.load(Ordering::Acquire) >= self.shared.routes.load().listener.max_connections
    }

    /// Takes what the kernel had accepted for us before the listener closes: closing it would reset them.
    fn accept_waiting(&self, listener: &TcpListener) {
        while !self.is_full() {
            let Some(Ok((stream, _))) = listener.accept().now_or_never() else { return };
            self.spawn(stream);
        }
    }

    fn spawn(&self, stream: TcpStream) {
        self.open.count.fetch_add(1, Ordering::AcqRel);
        let guard = OpenGuard(self.open.clone());
        let limits = self.shared.routes.load().listener;
        // Child tokens: waiting on a shared one would contend for its lock on every wake-up of every connection.
        let signals = Signals { stop: self.stop.child_token(), abort: self.abort.child_token() };
        let served = connection::serve(stream, self.shared.clone(), limits, signals);
        self.shared.tasks.spawn(async move {
            let _guard = guard;
            served.await;
        });
    }

    async fn finish(self, end: Instant) -> Drained {
        self.stop.cancel();
        self.shared.tasks.close();
        if timeout_at(end, self.shared.tasks.wait()).await.is_ok() {
            return Drained::Complete;
        }
        let left = self.shared.tasks.len();
        self.abort.cancel();
        // Ended by the next poll; a publish that goes on by itself is left to the end of the process.
        let _ = timeout(ABORT_TIME, self.shared.tasks.wait()).await;
        Drained::CutOff(left)
    }
}

/// Whether an accept failed because of the one connection it was about: the next may well work.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
