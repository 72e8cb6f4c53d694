//! What the black-box tests stand on: the real process, a recording target, a raw HTTP client, a message checker.
//!
//! Nothing here knows the inside of the product. Every process gets a folder and ports of its own, so all tests run
//! side by side; a process ends with its test, and says what it logged if the test failed.

// Each test binary uses a part of this.
#![allow(dead_code, unreachable_pub, unused_imports)]

pub mod checker;
pub mod curl;
pub mod disk;
pub mod http;
pub mod load;
pub mod manifest;
pub mod process;
pub mod rabbitmq;
pub mod recorder;

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

pub use http::Connection;
pub use process::{Setup, Stagepost};
pub use recorder::{Hit, Recorder, Reply};

/// Waits until `condition` gives a value. Panics with `what` after `within`.
#[track_caller]
pub fn eventually<T>(what: &str, within: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "within {within:?} this did not come true: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Seconds, as durations are mostly named here.
pub const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Milliseconds.
pub const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// A free port below the range that the kernel gives to outgoing connections: one that stays free while nobody
/// listens on it.
pub fn quiet_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 9_000).unwrap_or(0);
    loop {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Random numbers (xorshift), different in each run; the seed is printed with a failing test.
pub struct Random(u64);

impl Random {
    /// Seeded by the clock.
    pub fn new() -> Self {
        let nanos =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |since| since.subsec_nanos());
        let seed = u64::from(nanos) << 20 | u64::from(std::process::id()) | 1;
        println!("random seed {seed}");
        Self(seed)
    }

    /// From `low` on, below `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        low + self.0 % (high - low)
    }
}

/// Whether the largest numbers are asked for (`make test-all`): minutes instead of seconds.
pub fn is_full() -> bool {
    std::env::var_os("STAGEPOST_TEST_FULL").is_some()
}

static MACHINE: RwLock<()> = RwLock::new(());

/// For a test that may run beside others. None that wants the machine [`alone`] runs as long as this is held.
pub fn beside_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

/// For a test that uses the machine up or measures it.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}
