//! How loud failures are in the log: once for what is new, then at most once a while with a count.

use std::time::Duration;

/// The least time between two warnings of one kind.
const QUIET: Duration = Duration::from_secs(60);

/// The warnings of one processor.
#[derive(Debug, Default)]
pub(super) struct Noise {
    /// A message begins to fail.
    pub(super) failing: Warning,
    /// A message is moved to the dead letter store or discarded.
    pub(super) given_up: Warning,
    /// An expression fails.
    pub(super) expression: Warning,
}

/// One kind of warning.
#[derive(Debug, Default)]
pub(super) struct Warning {
    last: Option<Duration>,
    since: u64,
}

impl Warning {
    /// Whether to warn now; then also how many of its kind were not told since the last.
    pub(super) fn due(&mut self, now: Duration) -> Option<u64> {
        if self.last.is_some_and(|last| now < last + QUIET) {
            self.since += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_and_the_rest_counted() {
        let mut warning = Warning::default();
        assert_eq!(warning.due(Duration::from_secs(1)), Some(0));
        assert_eq!(warning.due(Duration::from_secs(2)), None);
        assert_eq!(warning.due(Duration::from_secs(60)), None);
        assert_eq!(warning.due(Duration::from_secs(61)), Some(2));
    }
}
