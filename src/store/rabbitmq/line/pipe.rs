//! The client library's end: the stream that it takes for the socket, and what it says there, cut into frames.

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
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, Empty, ReadBuf};

use super::Line;
use super::incoming::{FRAME_HEAD, FRAME_OVERHEAD, METHOD};

/// The stream that the client library takes for the socket.
pub(in crate::store::rabbitmq) type Pipe = AsyncTcpStream<Compat<End>>;

/// Tokio, with streams of ours.
pub(in crate::store::rabbitmq) type Kit = RuntimeParts<Tokio, Streams>;

/// The runtime that a connection runs on.
pub(in crate::store::rabbitmq) fn runtime() -> Runtime<Kit> {
    let tokio = Tokio::current();
    Runtime::new(RuntimeParts::new(tokio.clone(), Streams(tokio)))
}

pub(super) fn stream(pipe: DuplexStream, line: Arc<Line>) -> Pipe {
    AsyncTcpStream::Plain(End { pipe, line }.compat())
}

/// See the module.
pub(in crate::store::rabbitmq) struct End {
    pipe: DuplexStream,
    line: Arc<Line>,
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("End")
    }
}

impl AsyncRead for End {
    /// An end of the pipe is told as what the socket ended with.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.pipe).poll_read(cx, buf))?;
        if buf.filled().len() == before
            && buf.remaining() > 0
            && let Some(failure) = this.line.take_failure()
        {
            return Poll::Ready(Err(failure));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.pipe).poll_write(cx, bytes));
        Poll::Ready(written.map_err(|error| this.line.take_failure().unwrap_or(error)))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().pipe).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().pipe).poll_shutdown(cx)
    }
}

/// Names [`End`] as the type of stream; connections are made by `tls::stream`, never here.
#[derive(Debug, Clone)]
pub(in crate::store::rabbitmq) struct Streams(Tokio);

impl Reactor for Streams {
    type TcpStream = Compat<End>;
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

/// Room that is asked for in one read.
const READ: usize = 16 << 10;

/// The client library writes no larger frame; more than one is not kept.
const MOST: usize = 1 << 20;

/// What opens a connection, before the first frame.
const GREETING: [u8; 8] = *b"AMQP\0\0\x09\x01";

/// What the client library said and was not taken yet.
#[derive(Debug, Default)]
pub(super) struct Spoken {
    buffer: Vec<u8>,
    end: usize,
}

impl Spoken {
    pub(super) fn has_room(&self) -> bool {
        self.end < MOST
    }

    /// Where the next bytes go; say afterwards how many came.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.buffer.len() - self.end < READ {
            self.buffer.resize(self.end + READ, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// So many bytes came.
    pub(super) fn came(&mut self, count: usize) {
        self.end += count;
    }

    /// Takes the frames that are complete. `agreed` is told the largest frame when the client library agrees to one.
    pub(super) fn take_frames(&mut self, agreed: impl Fn(usize)) -> Vec<u8> {
        let mut whole = 0;
        while let Some(length) = next(&self.buffer[whole..self.end], &agreed) {
            whole += length;
        }
        let frames = self.buffer[..whole].to_vec();
        self.buffer.copy_within(whole..self.end, 0);
        self.end -= whole;
        frames
    }
}

/// The length of the first frame, if it is complete.
fn next(bytes: &[u8], agreed: &impl Fn(usize)) -> Option<usize> {
    if bytes.starts_with(&GREETING) {
        return Some(GREETING.len());
    }
    let [kind, _, _, s1, s2, s3, s4] = *bytes.first_chunk::<FRAME_HEAD>()?;
    let length = u32::from_be_bytes([s1, s2, s3, s4]) as usize + FRAME_OVERHEAD;
    let frame = bytes.get(..length)?;
    // connection.tune-ok: the number of channels, the largest frame
    if kind == METHOD
        && let Some([0, 10, 0, 31, _, _, f1, f2, f3, f4]) = frame[FRAME_HEAD..].first_chunk::<10>()
    {
        match u32::from_be_bytes([*f1, *f2, *f3, *f4]) as usize {
            0 => {}
            max_frame => agreed(max_frame),
        }
    }
    Some(length)
}
