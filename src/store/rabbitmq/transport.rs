//! The stream that the client library reads: every frame goes through [`Frames`] first.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_compat::{Compat, CompatExt};
use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::Stream;
use lapin::tcp::AsyncTcpStream;
use tokio::io::{AsyncRead, AsyncWrite, Empty, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::intake::{Frames, Ledger};

/// A plain or TLS connection to a broker, as the client library's connector takes it.
pub(super) type Socket = AsyncTcpStream<Compat<TcpStream>>;

/// Tokio, with streams of ours.
pub(super) type Kit = RuntimeParts<Tokio, Streams>;

/// The runtime that a connection runs on.
pub(super) fn runtime() -> Runtime<Kit> {
    let tokio = Tokio::current();
    Runtime::new(RuntimeParts::new(tokio.clone(), Streams(tokio)))
}

/// A socket whose incoming frames are looked through.
pub(super) struct Checked {
    socket: Compat<Socket>,
    frames: Frames,
    /// Nobody wants this connection any more. The client library ends only when its socket does.
    end: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Checked {
    pub(super) fn stream(socket: Socket, ledger: Arc<Ledger>, end: CancellationToken) -> AsyncTcpStream<Compat<Self>> {
        let (socket, frames, end) = (socket.compat(), Frames::new(ledger), Box::pin(end.cancelled_owned()));
        AsyncTcpStream::Plain(Self { socket, frames, end }.compat())
    }
}

impl fmt::Debug for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Checked")
    }
}

impl AsyncRead for Checked {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        loop {
            let count = this.frames.take(buf.initialize_unfilled());
            if count > 0 || buf.remaining() == 0 {
                buf.advance(count);
                return Poll::Ready(Ok(()));
            }
            let mut room = ReadBuf::new(this.frames.room());
            ready!(Pin::new(&mut this.socket).poll_read(cx, &mut room))?;
            let came = room.filled().len();
            if came == 0 {
                // The end. A frame that is not complete by now never will be.
                return Poll::Ready(Ok(()));
            }
            this.frames.came(came)?;
        }
    }
}

impl AsyncWrite for Checked {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

/// Names [`Checked`] as the type of stream; connections are made by `tls::stream`, never here.
#[derive(Debug, Clone)]
pub(super) struct Streams(Tokio);

impl Reactor for Streams {
    type TcpStream = Compat<Checked>;
    type Sleep = <Tokio as Reactor>::Sleep;

    #[allow(refining_impl_trait)]
    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(&self, _: H) -> io::Result<Compat<Empty>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(&self, _: SocketAddr) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
