//! The two clocks: one that only goes forward, for every wait, and the one on the wall, for people and cron.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// Where a forwarder reads the time. Waits never use the wall clock: it jumps.
#[derive(Clone)]
pub struct Clock {
    start: Instant,
    wall: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Default for Clock {
    fn default() -> Self {
        Self::with_wall(Timestamp::now)
    }
}

impl Clock {
    /// A clock whose wall time comes from `wall`.
    pub fn with_wall(wall: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self { start: Instant::now(), wall: Arc::new(wall) }
    }

    /// Since this clock was made; never goes back.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The moment at which [`elapsed`](Self::elapsed) is `at`.
    pub(super) fn instant(&self, at: Duration) -> Instant {
        // Further away than any instant can be told is as good as never.
        self.start.checked_add(at).unwrap_or_else(|| self.start + Duration::from_secs(86_400 * 365))
    }

    /// The time of day.
    pub(super) fn wall(&self) -> Timestamp {
        (self.wall)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("start", &self.start).finish_non_exhaustive()
    }
}
