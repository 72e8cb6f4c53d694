//! When the next attempt is made: backoff, jitter and the target's `Retry-After`.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::fmt::rfc2822;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::duration::millis;

/// The shape of the waits between attempts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backoff {
    /// The first wait.
    #[serde(with = "millis")]
    pub interval: Duration,
    /// Each further wait is this many times longer; 1 is a fixed interval.
    pub factor: f64,
    /// No wait is longer, jitter aside.
    #[serde(with = "millis")]
    pub max_interval: Duration,
    /// Each wait is multiplied by `1 ± jitter`; 0 is exact.
    pub jitter: f64,
}

impl Backoff {
    /// The wait after the `failures`-th failure (1 for the first). `random` is uniform in `[0, 1)`.
    pub fn delay(&self, failures: u32, random: f64) -> Duration {
        if self.interval.is_zero() {
            // The power below may be infinite, and zero times that is no number.
            return Duration::ZERO;
        }
        let exponent = f64::from(failures.saturating_sub(1).min(1_000_000));
        let grown = self.interval.as_secs_f64() * self.factor.powf(exponent);
        let capped = grown.min(self.max_interval.as_secs_f64()).max(0.0);
        let spread = 1.0 + self.jitter * (2.0 * random - 1.0);
        Duration::try_from_secs_f64(capped * spread.max(0.0)).unwrap_or(self.max_interval)
    }
}

/// Reads a `Retry-After` value: seconds, or an HTTP date. Anything else is ignored, as RFC 9110 lets a client do.
pub fn parse_retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit is simply a very long time; the cap of the policy applies.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let seconds = parse_http_date(value)?.as_second().saturating_sub(now.as_second());
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// The three forms that RFC 9110 (5.6.7) asks a recipient to read.
fn parse_http_date(value: &str) -> Option<Timestamp> {
    // `Sun, 06 Nov 1994 08:49:37 GMT`
    if let Ok(date) = rfc2822::DateTimeParser::new().parse_timestamp(value) {
        return Some(date);
    }
    // `Sunday, 06-Nov-94 08:49:37 GMT` (RFC 850) and `Sun Nov  6 08:49:37 1994` (asctime); both are in UTC.
    let obsolete = ["%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
    let date = obsolete.iter().find_map(|format| DateTime::strptime(format, value).ok())?;
    TimeZone::UTC.to_timestamp(date).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backoff() -> Backoff {
        Backoff { interval: Duration::from_secs(1), factor: 2.0, max_interval: Duration::from_secs(60), jitter: 0.1 }
    }

    #[test]
    fn waits_double_up_to_the_maximum() {
        let waits: Vec<u64> = (1..=9).map(|n| backoff().delay(n, 0.5).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "2026-11-21T08:00:00Z".parse().unwrap();
        let read = |text| parse_retry_after(text, now).map(|wait| wait.as_secs());
        assert_eq!(read("0"), Some(0));
        assert_eq!(read("3600"), Some(3600));
        assert_eq!(read(" 7 "), Some(7));
        assert_eq!(read("Sat, 21 Nov 2026 08:00:30 GMT"), Some(30));
        assert_eq!(read("Sat, 21 Nov 2026 07:00:00 GMT"), Some(0));
        assert_eq!(read("Saturday, 21-Nov-26 08:00:30 GMT"), Some(30));
        assert_eq!(read("Sat Nov 21 08:00:30 2026"), Some(30));
        assert_eq!(read("Sun Nov  6 08:49:37 1994"), Some(0));
        assert_eq!(read("Saturday, 31-Feb-26 08:00:30 GMT"), None);
        assert_eq!(read("-1"), None);
        assert_eq!(read("1e9"), None);
        assert_eq!(read("soon"), None);
        assert_eq!(read(""), None);
        assert_eq!(read("99999999999999999999999"), Some(u64::from(u32::MAX)));
    }

    #[test]
    fn no_interval_means_no_wait_however_often_it_fails() {
        let at_once = Backoff { interval: Duration::ZERO, ..backoff() };
        for failures in [0, 1, 2, 1_024, 1_026, u32::MAX] {
            assert_eq!(at_once.delay(failures, 0.5), Duration::ZERO, "{failures}");
        }
    }

    proptest! {
        #[test]
        fn a_wait_stays_within_jitter_of_the_maximum(failures in 0u32..10_000, random in 0.0f64..1.0, factor in 1.0f64..100.0) {
            let policy = Backoff { factor, ..backoff() };
            let wait = policy.delay(failures, random);
            prop_assert!(wait <= Duration::from_secs(66) && wait >= Duration::from_millis(900));
        }

        #[test]
        fn no_retry_after_panics(text in ".*") {
            let _ = parse_retry_after(&text, Timestamp::UNIX_EPOCH);
        }
    }
}
