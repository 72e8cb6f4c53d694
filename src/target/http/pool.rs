//! The connections of one target that wait for their next request.
//!
//! Last in, first out: the connection that was used last is the least likely to have been closed by the target.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::connection::Connection;

/// An idle connection is closed after this. Under the 15 s after which common servers close theirs.
pub(super) const MAX_IDLE_TIME: Duration = Duration::from_secs(10);

/// No connection is reused when it is older: a changed address is followed within this time.
pub(super) const MAX_AGE: Duration = Duration::from_secs(60);

/// What a pool keeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// As many as attempts can be in flight: more could never be of use.
    pub(super) connections: usize,
    /// See [`MAX_IDLE_TIME`].
    pub(super) idle_time: Duration,
    /// See [`MAX_AGE`].
    pub(super) age: Duration,
}

impl Limits {
    /// For this many attempts at once.
    pub(super) fn for_attempts(connections: usize) -> Self {
        Self { connections, idle_time: MAX_IDLE_TIME, age: MAX_AGE }
    }
}

/// See the module.
pub(super) struct Pool {
    limits: Limits,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// The one used last at the back.
    connections: VecDeque<(Connection, Instant)>,
    /// Whether a task is there to close what stays idle. It lives only while something is idle.
    watched: bool,
}

impl Pool {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, idle: Mutex::default() })
    }

    /// An idle connection that is still open, as far as can be seen without waiting.
    pub(super) fn take(&self) -> Option<Connection> {
        loop {
            let (mut connection, since) = self.lock().connections.pop_back()?;
            let fresh = since.elapsed() < self.limits.idle_time && connection.opened().elapsed() < self.limits.age;
            if fresh && is_open(&mut connection) {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next request.
    pub(super) fn put(self: &Arc<Self>, connection: Connection) {
        if connection.opened().elapsed() >= self.limits.age {
            return;
        }
        let now = Instant::now();
        let mut idle = self.lock();
        idle.connections.push_back((connection, now));
        let surplus =
            if idle.connections.len() > self.limits.connections { idle.connections.pop_front() } else { None };
        let start = !std::mem::replace(&mut idle.watched, true);
        drop(idle);
        drop(surplus);
        if start {
            tokio::spawn(close_idle(Arc::downgrade(self), now + self.limits.idle_time));
        }
    }

    /// Closes what has been idle for too long. The moment of the next look; `None` when nothing is left to watch.
    fn close_expired(&self) -> Option<Instant> {
        let mut expired = Vec::new();
        let mut idle = self.lock();
        while let Some((_, since)) = idle.connections.front() {
            let end = *since + self.limits.idle_time;
            if end > Instant::now() {
                return Some(end);
            }
            expired.extend(idle.connections.pop_front());
        }
        idle.watched = false;
        drop(idle);
        None
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        // Nothing panics while it is held; if it did, the list would still be a list.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one wake-up that an idle target causes.
async fn close_idle(pool: Weak<Pool>, first: Instant) {
    let mut next = first;
    loop {
        tokio::time::sleep_until(next).await;
        let Some(pool) = pool.upgrade() else { return };
        match pool.close_expired() {
            Some(later) => next = later,
            None => return,
        }
    }
}

fn is_open(connection: &mut Connection) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    matches!(pin!(connection.is_reusable()).poll(&mut context), Poll::Ready(true))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::super::connection::Stream;
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn limits(connections: usize) -> Limits {
        Limits { connections, idle_time: LONG, age: LONG }
    }

    /// A connection that can be reused, and its other end.
    async fn connection() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (ours, theirs) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let mut connection = Connection::open(Stream::Plain(ours.unwrap())).await.unwrap();
        assert!(connection.is_reusable().await);
        (connection, theirs.unwrap().0)
    }

    async fn is_closed(other_end: &mut TcpStream) -> bool {
        let mut byte = [0];
        let reading = tokio::time::timeout(Duration::from_secs(10), other_end.read(&mut byte));
        matches!(reading.await, Ok(Ok(0)))
    }

    #[tokio::test]
    async fn what_stays_idle_is_closed_without_being_asked_for() {
        let pool = Pool::new(Limits { idle_time: Duration::from_millis(50), ..limits(2) });
        for _ in 0..2 {
            let (first, mut first_end) = connection().await;
            let (second, mut second_end) = connection().await;
            pool.put(first);
            pool.put(second);
            assert!(is_closed(&mut first_end).await && is_closed(&mut second_end).await);
            assert!(!pool.lock().watched, "nothing wakes up while nothing is idle");
        }
    }

    #[tokio::test]
    async fn what_was_idle_for_too_long_is_not_taken_even_before_it_is_closed() {
        let pool = Pool::new(Limits { idle_time: Duration::ZERO, ..limits(1) });
        let (only, _end) = connection().await;
        pool.put(only);
        assert!(pool.take().is_none());
    }

    #[tokio::test]
    async fn what_is_too_old_is_not_kept() {
        let pool = Pool::new(Limits { age: Duration::ZERO, ..limits(1) });
        let (only, mut end) = connection().await;
        pool.put(only);
        assert!(is_closed(&mut end).await);
    }

    #[tokio::test]
    async fn the_one_used_last_is_taken_first_and_what_was_closed_is_passed_over() {
        let pool = Pool::new(limits(3));
        let (first, first_end) = connection().await;
        let (second, second_end) = connection().await;
        let oldest = first.opened();
        pool.put(first);
        pool.put(second);
        drop(second_end);
        // The close is noticed when the runtime has looked at the socket.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(pool.take().unwrap().opened(), oldest);
        assert!(pool.take().is_none());
        drop(first_end);
    }

    #[tokio::test]
    async fn no_more_are_kept_than_can_be_used() {
        let pool = Pool::new(limits(1));
        let (first, mut first_end) = connection().await;
        let (second, _second_end) = connection().await;
        pool.put(first);
        pool.put(second);
        assert!(is_closed(&mut first_end).await, "the one that was idle for longer goes");
        assert!(pool.take().is_some());
        assert!(pool.take().is_none());
    }
}
