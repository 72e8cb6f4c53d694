//! One connection, driven by the attempt that uses it.
//!
//! There is no task behind a connection: whoever holds it polls it. A dropped [`Connection`] is a closed one.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::{HeaderMap, StatusCode};
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::client::TlsStream;

use super::{AnswerBody, Outgoing, failure};
use crate::core::outcome::Outcome;

/// Largest response head, in bytes.
pub(super) const MAX_HEAD: usize = 64 * 1024;

/// Header lines in a response head. Far beyond what servers send; hyper reserves so many for each response, which costs
/// 10 instructions a line.
pub(super) const MAX_HEADER_LINES: usize = 512;

/// A connection to the target with at most one exchange on it.
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: Driver,
    /// Whether a byte of an answer came since the request was handed over. Counted above TLS, so that a closing alert is none.
    answered: Arc<AtomicBool>,
    opened: Instant,
    reused: bool,
}

/// What one exchange came to.
pub(super) enum Exchanged {
    /// A complete head.
    Head(Head),
    /// The outcome of the attempt.
    Failed(Outcome),
    /// A reused connection was closed before the first byte of an answer: the stale keep-alive rule applies.
    ClosedBeforeAnswer {
        /// Whether the request had been handed to the connection.
        sent: bool,
        /// What it is without the rule.
        outcome: Outcome,
    },
}

/// A response head and the body that follows it.
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Incoming,
}

impl Connection {
    /// Takes over a stream that is connected, and handshaken if it is TLS.
    pub(super) async fn open(stream: Stream) -> Result<Self, Outcome> {
        let answered = Arc::new(AtomicBool::new(false));
        let io = TokioIo::new(Watched { stream, answered: Arc::clone(&answered) });
        let (sender, driver) = http1::Builder::new()
            .max_header_size(MAX_HEAD)
            .max_headers(MAX_HEADER_LINES)
            // The buffer must hold a head of the largest size; what follows it may share the buffer.
            .max_buf_size(2 * MAX_HEAD)
            .handshake(io)
            .await
            .map_err(|error| Outcome::ConnectionError(failure::describe(&error)))?;
        let driver = Driver { connection: driver, done: false };
        Ok(Self { sender, driver, answered, opened: Instant::now(), reused: false })
    }

    /// When it was connected.
    pub(super) fn opened(&self) -> Instant {
        self.opened
    }

    /// Sends a request and waits for the complete head, until `deadline`.
    pub(super) async fn exchange(&mut self, request: Outgoing, deadline: Instant) -> Exchanged {
        self.answered.store(false, Ordering::Relaxed);
        let response = self.sender.try_send_request(request);
        let error = match timeout_at(deadline, self.driver.drive(response)).await {
            Ok(Ok(response)) => {
                let (head, body) = response.into_parts();
                return Exchanged::Head(Head { status: head.status, headers: head.headers, body });
            }
            Ok(Err(error)) => error,
            Err(_) => return Exchanged::Failed(Outcome::Timeout),
        };
        let sent = error.message().is_none();
        let outcome = failure::of_exchange(&error.into_error());
        if self.reused && !self.answered.load(Ordering::Relaxed) {
            Exchanged::ClosedBeforeAnswer { sent, outcome }
        } else {
            Exchanged::Failed(outcome)
        }
    }

    /// Reads a body of at most `limit` bytes within `time`.
    pub(super) async fn read_body(&mut self, body: Incoming, limit: usize, time: Duration) -> AnswerBody {
        if body.is_end_stream() {
            return AnswerBody::Complete(Bytes::new());
        }
        if exceeds(&body, limit) {
            return AnswerBody::Unusable("larger than the limit");
        }
        match timeout(time, self.driver.drive(collect(body, limit))).await {
            Ok(Ok(bytes)) => AnswerBody::Complete(bytes),
            Ok(Err(reason)) => AnswerBody::Unusable(reason),
            Err(_) => AnswerBody::Unusable("too slow"),
        }
    }

    /// Reads a body that nobody wants, if that is quick. False: the connection cannot be used again.
    pub(super) async fn drain(&mut self, body: Incoming, limit: usize, time: Duration) -> bool {
        if body.is_end_stream() {
            return true;
        }
        if exceeds(&body, limit) {
            return false;
        }
        matches!(timeout(time, self.driver.drive(skip(body, limit))).await, Ok(true))
    }

    /// Looks, without waiting, whether another request can be sent; notices a connection that the peer has closed.
    /// From here on it counts as reused.
    pub(super) async fn is_reusable(&mut self) -> bool {
        self.reused = true;
        std::future::poll_fn(|cx| Poll::Ready(self.poll_ready(cx))).await
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> bool {
        self.driver.advance(cx);
        !self.driver.done && matches!(self.sender.poll_ready(cx), Poll::Ready(Ok(())))
    }
}

fn exceeds(body: &Incoming, limit: usize) -> bool {
    body.size_hint().lower() > u64::try_from(limit).unwrap_or(u64::MAX)
}

async fn collect(mut body: Incoming, limit: usize) -> Result<Bytes, &'static str> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while !body.is_end_stream()
        && let Some(frame) = body.frame().await
    {
        let Ok(data) = frame.map_err(|_| "cut off")?.into_data() else { continue };
        if first.len() + all.len() + data.len() > limit {
            return Err("larger than the limit");
        }
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            let rest = usize::try_from(body.size_hint().lower()).unwrap_or(0).min(limit);
            all.reserve(first.len() + data.len() + rest);
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

async fn skip(mut body: Incoming, limit: usize) -> bool {
    let mut left = limit;
    while !body.is_end_stream()
        && let Some(frame) = body.frame().await
    {
        let Ok(frame) = frame else { return false };
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(rest) => left = rest,
            None => return false,
        }
    }
    true
}

/// The part of a connection that reads and writes.
struct Driver {
    connection: http1::Connection<TokioIo<Watched>, Full<Bytes>>,
    /// It has ended, in peace or not; it must not be polled again. Its error reaches whoever waits for an answer.
    done: bool,
}

impl Driver {
    fn advance(&mut self, cx: &mut Context<'_>) {
        if !self.done {
            self.done = Pin::new(&mut self.connection).poll(cx).is_ready();
        }
    }

    /// Runs `work`, which waits for this connection, while moving the connection on.
    async fn drive<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        std::future::poll_fn(|cx| {
            self.advance(cx);
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            // `work` may have asked for more of the body, which may have come with the head: no need to be woken for it.
            self.advance(cx);
            work.as_mut().poll(cx)
        })
        .await
    }
}

/// What a connection runs on.
pub(super) enum Stream {
    /// `http`.
    Plain(TcpStream),
    /// `https`, handshaken.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A stream that notes when something was read.
struct Watched {
    stream: Stream,
    answered: Arc<AtomicBool>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let polled = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        };
        if buf.filled().len() > before {
            self.answered.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
