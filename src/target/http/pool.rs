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

/// See the module.
pub(super) struct Pool {
    /// As many as attempts can be in flight: more could never be of use.
    max_idle: usize,
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
    pub(super) fn new(max_idle: usize) -> Arc<Self> {
        Arc::new(Self { max_idle, idle: Mutex::default() })
    }

    /// An idle connection that is still open, as far as can be seen without waiting.
    pub(super) fn take(&self) -> Option<Connection> {
        loop {
            let (mut connection, since) = self.lock().connections.pop_back()?;
            if since.elapsed() < MAX_IDLE_TIME && connection.opened().elapsed() < MAX_AGE && is_open(&mut connection) {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next request.
    pub(super) fn put(self: &Arc<Self>, connection: Connection) {
        if connection.opened().elapsed() >= MAX_AGE {
            return;
        }
        let now = Instant::now();
        let mut idle = self.lock();
        idle.connections.push_back((connection, now));
        let surplus = if idle.connections.len() > self.max_idle { idle.connections.pop_front() } else { None };
        let start = !std::mem::replace(&mut idle.watched, true);
        drop(idle);
        drop(surplus);
        if start {
            tokio::spawn(close_idle(Arc::downgrade(self), now + MAX_IDLE_TIME));
        }
    }

    /// Closes what has been idle for too long. The moment of the next look; `None` when nothing is left to watch.
    fn close_expired(&self) -> Option<Instant> {
        let mut expired = Vec::new();
        let mut idle = self.lock();
        while let Some((_, since)) = idle.connections.front() {
            let end = *since + MAX_IDLE_TIME;
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
