//! The byte stream under an HTTP connection: what hyper does not bound or do by itself.
//!
//! - What was read to tell HTTP/1 from HTTP/2 is read again.
//! - A peer that does not take its answers is given up: no write waits longer than [`WRITE_STALL`].
//! - A close lingers: after our FIN, what the peer still sends is read and thrown away for a moment. Without that,
//!   the kernel answers unread bytes with a reset, and a reset destroys answers (a 413, say) on their way.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, timeout_at};

/// How long a write may make no progress. Answers are small: only a peer that reads nothing at all comes here.
const WRITE_STALL: Duration = Duration::from_secs(30);

/// How long a close waits for the peer's FIN. Enough for an answer to cross the world and be read.
const LINGER: Duration = Duration::from_secs(1);

/// What is thrown away at most while lingering, in bytes: some megabytes are on their way on a fast network.
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// What an HTTP/2 client with prior knowledge sends first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The protocol that the peer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    prefix: [u8; PREFACE.len()],
    prefix_read: usize,
    prefix_end: usize,
    stalled: Option<Pin<Box<Sleep>>>,
    lingering: Option<Linger>,
}

#[derive(Debug)]
struct Linger {
    until: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, prefix: [0; PREFACE.len()], prefix_read: 0, prefix_end: 0, stalled: None, lingering: None }
    }

    /// Reads until it is clear what the peer speaks; `None` if it closed or took longer than `until`.
    pub(super) async fn detect(&mut self, until: Instant) -> Option<Protocol> {
        while self.prefix_end < PREFACE.len() {
            let read = timeout_at(until, self.stream.read(&mut self.prefix[self.prefix_end..])).await.ok()?.ok()?;
            if read == 0 {
                return None;
            }
            self.prefix_end += read;
            if self.prefix[..self.prefix_end] != PREFACE[..self.prefix_end] {
                return Some(Protocol::Http1);
            }
        }
        Some(Protocol::Http2)
    }

    /// Passes on what a write said, and fails it if it has stalled for too long.
    fn bounded<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let timer = self.stalled.get_or_insert_with(|| Box::pin(sleep(WRITE_STALL)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read its answers")))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix_read < self.prefix_end {
            let end = self.prefix_end.min(self.prefix_read + buffer.remaining());
            buffer.put_slice(&self.prefix[self.prefix_read..end]);
            self.prefix_read = end;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bounded(context, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.bounded(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
        }
        let linger =
            this.lingering.get_or_insert_with(|| Linger { until: Box::pin(sleep(LINGER)), bytes_left: LINGER_BYTES });
        let mut thrown_away = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut thrown_away);
            match Pin::new(&mut this.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() && linger.bytes_left > 0 => {
                    linger.bytes_left = linger.bytes_left.saturating_sub(buffer.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return linger.until.as_mut().poll(context).map(Ok),
            }
        }
    }
}
