//! Which of several controllers acts: the holder of a Lease.
//!
//! Pure: what to do about a Lease that was read. The times in it are others' clocks, so a Lease counts as over only when
//! it has not changed for its whole term by our own clock.

use std::time::{Duration, Instant};

/// For so long a holder that does not renew is still the holder. The takeover is within 20 s.
pub(super) const TERM: Duration = Duration::from_secs(15);

/// A holder renews this often.
pub(super) const RENEW_EVERY: Duration = Duration::from_secs(3);

/// A holder that could not renew for this long stops acting: well before anybody else may begin.
pub(super) const ACT_FOR: Duration = Duration::from_secs(10);

/// A Lease as it was read, and since when it looks like that to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Observed {
    pub(super) holder: String,
    pub(super) version: String,
    pub(super) since: Instant,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It is ours, or nobody's.
    Take,
    /// It is somebody else's.
    Wait,
}

/// What was read, with the time since when it has looked like that.
pub(super) fn observe(before: Option<Observed>, holder: &str, version: &str, now: Instant) -> Observed {
    match before {
        Some(before) if before.version == version => before,
        _ => Observed { holder: holder.to_owned(), version: version.to_owned(), since: now },
    }
}

/// Whether the Lease may be taken.
pub(super) fn step(observed: &Observed, me: &str, now: Instant) -> Step {
    let is_over = now.duration_since(observed.since) >= TERM;
    if observed.holder == me || observed.holder.is_empty() || is_over { Step::Take } else { Step::Wait }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_of_another_is_taken_only_when_it_has_not_changed_for_a_term() {
        let start = Instant::now();
        let seen = observe(None, "other", "1", start);
        assert_eq!(step(&seen, "me", start + TERM / 2), Step::Wait);
        let renewed = observe(Some(seen.clone()), "other", "2", start + TERM / 2);
        assert_eq!(step(&renewed, "me", start + TERM), Step::Wait);
        let same = observe(Some(renewed), "other", "2", start + TERM);
        assert_eq!(step(&same, "me", start + TERM / 2 + TERM), Step::Take);
    }

    #[test]
    fn what_is_released_or_ours_is_taken_at_once() {
        let now = Instant::now();
        assert_eq!(step(&observe(None, "", "1", now), "me", now), Step::Take);
        assert_eq!(step(&observe(None, "me", "1", now), "me", now), Step::Take);
    }

    #[test]
    fn a_holder_stops_acting_before_another_may_begin() {
        assert!(ACT_FOR + RENEW_EVERY < TERM);
    }
}
