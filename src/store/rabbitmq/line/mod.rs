//! The line to a broker: one socket, on which two speak.
//!
//! The client library opens the connection and its channels, declares, binds, consumes, closes, and keeps the heartbeat.
//! What there is a lot of passes it by: publishes and their confirms, messages and their acknowledgements are frames of
//! ours (see [`lanes`] and [`outgoing`]), read and written by the one task that has the socket. So a message costs no
//! thread of the library's, none of its accounting is between a confirm and whoever waits for it, and order on the wire
//! is the order in which we said things.
//!
//! The library reads and writes a pipe instead of the socket. Its frames go out whole, between ours; what we have said
//! before it wrote a frame goes out before that frame, so that no acknowledgement comes behind the end of its channel.

mod arrivals;
mod incoming;
mod lanes;
mod outgoing;
mod payload;
mod pipe;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use lapin::types::ShortString;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

pub(super) use self::arrivals::Arrivals;
use self::incoming::{Frames, HEARTBEAT};
use self::lanes::Lanes;
pub(super) use self::lanes::{Came, Closed, Delivered, Said};
use self::outgoing::{Outgoing, Piece};
pub(super) use self::outgoing::{Publication, Unsent};
pub(super) use self::pipe::{Pipe, runtime};

/// Bytes that the pipe to the client library holds.
const PIPE: usize = 64 << 10;

/// Bytes for the client library beyond the pipe: more are not read from the broker before it has taken them.
const BACKLOG: usize = 1 << 20;

/// The client library takes a connection for dead that it has not read from for 20 s; it sees nothing of what is ours.
const REMIND: Duration = Duration::from_secs(5);

const HEARTBEAT_FRAME: [u8; 8] = [HEARTBEAT, 0, 0, 0, 0, 0, 0, incoming::FRAME_END];

/// A handle of a line.
#[derive(Debug)]
pub(super) struct Line {
    lanes: Lanes,
    outgoing: Outgoing,
    over: CancellationToken,
    failure: Mutex<Option<io::Error>>,
}

impl Line {
    /// Takes a socket over, until `end` or until either side closes it. What comes back is for the client library.
    pub(super) fn start<S>(socket: S, max_frame: usize, end: CancellationToken) -> (Arc<Self>, Pipe)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let line = Arc::new(Self {
            lanes: Lanes::default(),
            outgoing: Outgoing::new(max_frame),
            over: CancellationToken::new(),
            failure: Mutex::default(),
        });
        let (ours, theirs) = tokio::io::duplex(PIPE);
        tokio::spawn(Driver::new(socket, ours, line.clone(), end));
        let pipe = pipe::stream(theirs, line.clone());
        (line, pipe)
    }

    /// A channel publishes from now on, and only through us. What the broker says of it.
    pub(super) fn publishing(&self, channel: u16) -> mpsc::UnboundedReceiver<Said> {
        self.lanes.publishing(channel)
    }

    /// A channel consumes from now on, and its messages are acknowledged only through us. What comes.
    pub(super) fn consuming(&self, channel: u16) -> Arrivals {
        self.lanes.consuming(channel)
    }

    /// Whoever consumes on a channel takes what comes from now on, whatever else it waits for: no more is read than is
    /// taken. `false`: until now there was no room for all, and some were thrown away.
    pub(super) fn limit(&self, channel: u16) -> bool {
        self.lanes.limit(channel)
    }

    /// Messages of a channel are thrown away, those that are there and those that come.
    pub(super) fn discard(&self, channel: u16, arrivals: &mut Arrivals) {
        self.lanes.discard(channel, arrivals);
    }

    // On a channel that has ended nothing may be written: the broker would give the whole connection up. Whoever writes
    // looks for the lane and holds it, and the driver ends it before the client library can answer the channel's end.

    /// Publishes, mandatory; returns the tag of its confirm. Waits for nothing: what can't be written now is written
    /// later.
    pub(super) fn publish(&self, channel: u16, publication: Publication<'_>) -> Result<u64, Unsent> {
        self.outgoing.fits(publication.properties)?;
        let mut table = self.lanes.lock();
        // Confirms are read with the same lock: none can come before it is counted.
        let published = table.published(channel).ok_or(Unsent::Ended)?;
        *published += 1;
        self.outgoing.publish(channel, publication);
        Ok(*published)
    }

    /// Acknowledges a delivery; with `multiple` also all before it. `false`: the channel has ended.
    pub(super) fn ack(&self, channel: u16, tag: u64, multiple: bool) -> bool {
        let table = self.lanes.lock();
        let is_there = table.has(channel);
        if is_there {
            self.outgoing.ack(channel, tag, multiple);
        }
        is_there
    }

    /// Nothing is delivered to this consumer any more for what is acknowledged after this.
    pub(super) fn cancel(&self, channel: u16, consumer: &ShortString) {
        let table = self.lanes.lock();
        if table.has(channel) {
            self.outgoing.cancel(channel, consumer);
        }
    }

    /// Nobody is told anything any more of what the broker says.
    pub(super) fn forget(&self) {
        self.lanes.end();
    }

    /// Waits until the socket is gone.
    pub(super) async fn ended(&self) {
        self.over.cancelled().await;
    }

    /// What the socket ended with, if it was not closed in order; said once.
    fn take_failure(&self) -> Option<io::Error> {
        self.failure().take()
    }

    fn failure(&self) -> MutexGuard<'_, Option<io::Error>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error of a broker that breaks the protocol.
fn broken(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the broker sent {what}"))
}

/// Has the socket; ends with it.
#[allow(clippy::struct_excessive_bools)] // Each direction of each side may be at an end of its own.
struct Driver<S> {
    socket: S,
    pipe: DuplexStream,
    line: Arc<Line>,
    frames: Frames,
    /// For the client library.
    theirs: Vec<u8>,
    /// So much of that it has.
    passed: usize,
    /// When it was given something last.
    reminded: Instant,
    /// What the client library has said.
    spoken: pipe::Spoken,
    writing: VecDeque<Piece>,
    /// So much of the first piece is written.
    written: usize,
    unflushed: bool,
    /// Something is to be written, at the next turn.
    gathering: bool,
    /// The broker has closed the socket.
    ended: bool,
    /// The client library has closed the pipe.
    left: bool,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Driver<S> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.end.as_mut().poll(cx).is_ready() {
            *this.line.failure() = Some(io::ErrorKind::ConnectionAborted.into());
            return Poll::Ready(());
        }
        // Before it is looked: what is said from now on wakes us.
        this.line.outgoing.writer.register(cx.waker());
        // Whoever else is ready to say something has the turn first: what is said together is one write for us, and one
        // read for the broker.
        this.gathering = !this.gathering && this.line.outgoing.is_waiting();
        if this.gathering {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match this.advance(cx) {
            Ok(false) => Poll::Pending,
            Ok(true) => Poll::Ready(()),
            Err(error) => {
                *this.line.failure() = Some(error);
                Poll::Ready(())
            }
        }
    }
}

impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        self.line.lanes.end();
        self.line.over.cancel();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    fn new(socket: S, pipe: DuplexStream, line: Arc<Line>, end: CancellationToken) -> Self {
        Self {
            socket,
            pipe,
            line,
            frames: Frames::new(),
            theirs: Vec::new(),
            passed: 0,
            reminded: Instant::now(),
            spoken: pipe::Spoken::default(),
            writing: VecDeque::new(),
            written: 0,
            unflushed: false,
            gathering: false,
            ended: false,
            left: false,
            end: Box::pin(end.cancelled_owned()),
        }
    }

    /// Moves everything on as far as it goes. `true`: this was the end.
    fn advance(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        loop {
            let mut moved = self.listen(cx)?;
            moved |= match self.write(cx) {
                Ok(moved) => moved,
                Err(error) => {
                    // What the broker said before may lie there, and why it closed the connection.
                    while !self.ended && self.read(cx)? {}
                    self.pass(cx);
                    return Err(error);
                }
            };
            moved |= self.read(cx)?;
            moved |= self.pass(cx);
            if self.ended && self.theirs.is_empty() || self.left && self.writing.is_empty() && !self.unflushed {
                return Ok(true);
            }
            if !moved {
                return Ok(false);
            }
        }
    }

    /// Takes what the client library says, and what we have said before it.
    fn listen(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut moved = false;
        if !self.left && self.spoken.has_room() {
            let mut room = ReadBuf::new(self.spoken.room());
            if Pin::new(&mut self.pipe).poll_read(cx, &mut room)?.is_ready() {
                let count = room.filled().len();
                self.left = count == 0;
                self.spoken.came(count);
                moved = true;
            }
        }
        self.line.outgoing.take(&mut self.writing);
        let frames = self.spoken.take_frames(|max_frame| self.line.outgoing.agreed(max_frame));
        if !frames.is_empty() {
            self.writing.push_back(Piece::Made(frames));
        }
        Ok(moved)
    }

    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut moved = false;
        while let Some(piece) = self.writing.front() {
            let rest = piece.as_ref().get(self.written..).unwrap_or_default();
            if rest.is_empty() {
                if let Some(Piece::Made(used)) = self.writing.pop_front() {
                    self.line.outgoing.reuse(used);
                }
                self.written = 0;
                continue;
            }
            match Pin::new(&mut self.socket).poll_write(cx, rest)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(count) => self.written += count,
                Poll::Pending => return Ok(moved),
            }
            moved = true;
            self.unflushed = true;
        }
        if self.unflushed && Pin::new(&mut self.socket).poll_flush(cx)?.is_ready() {
            self.unflushed = false;
        }
        Ok(moved)
    }

    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if self.ended || self.theirs.len() - self.passed >= BACKLOG {
            return Ok(false);
        }
        if self.line.lanes.untaken.poll_room(cx).is_pending() {
            return Ok(false);
        }
        let mut room = ReadBuf::new(self.frames.room());
        if Pin::new(&mut self.socket).poll_read(cx, &mut room)?.is_pending() {
            return Ok(false);
        }
        let count = room.filled().len();
        // A frame that is not complete by then never will be.
        self.ended = count == 0;
        let before = self.theirs.len();
        self.frames.came(count, &self.line.lanes, &mut self.theirs)?;
        if self.theirs.len() > before {
            self.reminded = Instant::now();
        } else if self.reminded.elapsed() >= REMIND && self.frames.between() {
            self.reminded = Instant::now();
            self.theirs.extend(HEARTBEAT_FRAME);
        }
        Ok(true)
    }

    /// Gives the client library what is its own.
    fn pass(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while self.passed < self.theirs.len() && !self.left {
            match Pin::new(&mut self.pipe).poll_write(cx, &self.theirs[self.passed..]) {
                Poll::Ready(Ok(count)) => self.passed += count,
                // It does not listen any more, and may still have said something.
                Poll::Ready(Err(_)) => self.passed = self.theirs.len(),
                Poll::Pending => {
                    if self.passed >= PIPE {
                        self.theirs.drain(..self.passed);
                        self.passed = 0;
                    }
                    return moved;
                }
            }
            moved = true;
        }
        self.theirs.clear();
        self.passed = 0;
        moved
    }
}
