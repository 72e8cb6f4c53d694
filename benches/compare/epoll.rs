//! An event loop's few system calls, and a connection in it.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

/// As much is read at once.
const CHUNK: usize = 64 * 1024;

/// What is waited for.
pub struct Poll {
    fd: OwnedFd,
    events: Vec<Event>,
}

impl Poll {
    pub fn new() -> Self {
        Self { fd: epoll::create(CreateFlags::CLOEXEC).unwrap(), events: Vec::with_capacity(256) }
    }

    pub fn add(&self, source: impl AsFd, token: usize) {
        epoll::add(&self.fd, source, EventData::new_u64(token as u64), EventFlags::IN).unwrap();
    }

    fn want_to_write(&self, source: impl AsFd, token: usize, wanted: bool) {
        let flags = if wanted { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        epoll::modify(&self.fd, source, EventData::new_u64(token as u64), flags).unwrap();
    }

    /// What is ready: tokens, and whether each can be written to. `None` waits for ever.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Vec<(usize, bool)> {
        let timeout = timeout.map(|timeout| Timespec::try_from(timeout).unwrap());
        self.events.clear();
        match epoll::wait(&self.fd, rustix::buffer::spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("epoll: {error}"),
        }
        let token = |event: &Event| usize::try_from({ event.data }.u64()).unwrap();
        self.events.iter().map(|event| (token(event), { event.flags }.contains(EventFlags::OUT))).collect()
    }
}

/// Wakes a [`Poll`] exactly, where its own time-out counts in milliseconds.
pub struct Timer(OwnedFd);

impl Timer {
    pub fn new(poll: &Poll, token: usize) -> Self {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC).unwrap();
        poll.add(&fd, token);
        Self(fd)
    }

    pub fn set(&self, after: Duration) {
        let nothing = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A timer of no time at all is one that is off.
        let after = Timespec::try_from(after.max(Duration::from_nanos(1))).unwrap();
        let once = Itimerspec { it_interval: nothing, it_value: after };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once).unwrap();
    }

    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

/// A connection that neither reads nor writes wait for.
pub struct Connection {
    stream: TcpStream,
    token: usize,
    /// What has come and was not used.
    pub input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
}

impl Connection {
    pub fn new(stream: TcpStream, poll: &Poll, token: usize, input: Vec<u8>) -> Self {
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        poll.add(&stream, token);
        Self { stream, token, input, output: Vec::new(), sent: 0 }
    }

    pub fn open(address: &str, poll: &Poll, token: usize) -> io::Result<Self> {
        Ok(Self::new(TcpStream::connect(address)?, poll, token, Vec::new()))
    }

    /// Reads what is there. `false`: the other side has closed.
    pub fn read(&mut self) -> bool {
        let old = self.input.len();
        self.input.resize(old + CHUNK, 0);
        let read = self.stream.read(&mut self.input[old..]);
        let count = *read.as_ref().unwrap_or(&0);
        self.input.truncate(old + count);
        count > 0 || read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Writes, now or when there is room.
    pub fn write(&mut self, poll: &Poll, bytes: &[u8]) -> bool {
        if !self.output.is_empty() {
            self.output.extend_from_slice(bytes);
            return true;
        }
        match (&self.stream).write(bytes) {
            Ok(count) if count == bytes.len() => return true,
            Ok(count) => self.output.extend_from_slice(&bytes[count..]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.output.extend_from_slice(bytes),
            Err(_) => return false,
        }
        poll.want_to_write(&self.stream, self.token, true);
        true
    }

    /// There is room to write.
    pub fn flush(&mut self, poll: &Poll) -> bool {
        if self.output.is_empty() {
            return true;
        }
        match (&self.stream).write(&self.output[self.sent..]) {
            Ok(count) => self.sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
            poll.want_to_write(&self.stream, self.token, false);
        }
        true
    }
}
