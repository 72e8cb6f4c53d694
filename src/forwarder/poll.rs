//! The ticks of a polling processor.
//!
//! An interval runs on the clock that only goes forward, a cron expression on the wall clock, which is read again
//! at least once a minute, so that a clock that was set neither starves a schedule nor floods it: however many
//! ticks were jumped over, one is made.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::clock::Clock;
use crate::core::schedule::{Schedule, ScheduleError, next_interval};
use crate::plan::SchedulePlan;

/// How long a jump of the wall clock can go unseen.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// A wall clock that went back by less is taken for a correction: no tick is repeated. By more: it was set, and its
/// times come again.
const CORRECTION: SignedDuration = SignedDuration::from_secs(60);

/// When a processor polls.
#[derive(Debug)]
pub(super) enum Ticks {
    /// From the start of a tick to the start of the next, the first at once. A tick that comes late moves those after
    /// it: two are never closer than the interval.
    Interval { every: Duration, started: Duration, due: Duration },
    /// By the wall clock.
    Cron { schedule: Schedule, last: Timestamp, due: Option<Timestamp> },
}

/// What a poller does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Now {
    /// Poll.
    Tick,
    /// Sleep until then, on the forwarder's clock, and ask again.
    Sleep(Duration),
    /// There is no further tick.
    Never,
}

impl Ticks {
    pub(super) fn of(plan: &SchedulePlan, clock: &Clock) -> Result<Self, ScheduleError> {
        Ok(match plan {
            SchedulePlan::Interval(every) => {
                let now = clock.elapsed();
                Self::Interval { every: *every, started: now, due: now }
            }
            SchedulePlan::Cron { expression, time_zone } => {
                Self::Cron { schedule: Schedule::parse_cron(expression, time_zone)?, last: clock.wall(), due: None }
            }
        })
    }

    /// Asks whether it is time. Ticks that passed since the last one was made, because it was still running, are
    /// skipped: the next is one that begins later than now.
    pub(super) fn ask(&mut self, clock: &Clock) -> Now {
        match self {
            Self::Interval { started, due, .. } => {
                let now = clock.elapsed();
                if now < *due {
                    return Now::Sleep(*due);
                }
                *started = now;
                Now::Tick
            }
            Self::Cron { schedule, last, due } => {
                let now = clock.wall();
                if last.duration_since(now) > CORRECTION {
                    *last = now;
                    *due = None;
                }
                if due.is_none() {
                    *due = schedule.next(*last);
                }
                let Some(at) = *due else { return Now::Never };
                match Duration::try_from(at.duration_since(now)) {
                    Ok(left) if !left.is_zero() => Now::Sleep(clock.elapsed() + left.min(LONGEST_SLEEP)),
                    _ => Now::Tick,
                }
            }
        }
    }

    /// Polling was not possible, or not wanted, until now: times that passed meanwhile are not made up for. An
    /// interval has no times of its own to miss; it goes on at once, as after a start.
    pub(super) fn skip_missed(&mut self, clock: &Clock) {
        if let Self::Cron { last, due, .. } = self {
            // Not before a time that was made already, even if the clock was corrected since.
            *last = clock.wall().max(*last);
            *due = None;
        }
    }

    /// A tick has been made, and its batch has ended. `began`: when its first attempt began. An interval counts from
    /// there, so that the target is asked no more often than that, however long a broker takes to hand out the first.
    pub(super) fn made(&mut self, clock: &Clock, began: Option<Duration>) {
        match self {
            Self::Interval { every, started, due } => {
                let began = began.unwrap_or(*started);
                *due = began + next_interval(clock.elapsed().saturating_sub(began), *every);
            }
            Self::Cron { last, due, .. } => {
                // Not before the tick just made, even if the clock was corrected since.
                *last = due.map_or(clock.wall(), |due| due.max(clock.wall()));
                *due = None;
            }
        }
    }

    /// The next tick by the wall clock, for people.
    pub(super) fn next(&self, clock: &Clock) -> Option<Timestamp> {
        match self {
            Self::Interval { due, .. } => {
                let left = due.saturating_sub(clock.elapsed());
                clock.wall().checked_add(SignedDuration::try_from(left).ok()?).ok()
            }
            Self::Cron { due, .. } => *due,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    /// A wall clock that a test sets, in seconds.
    fn clock_at(seconds: i64) -> (Clock, Arc<AtomicI64>) {
        let wall = Arc::new(AtomicI64::new(seconds));
        let read = Arc::clone(&wall);
        (Clock::with_wall(move || Timestamp::from_second(read.load(Ordering::Relaxed)).unwrap()), wall)
    }

    fn every_hour(clock: &Clock) -> Ticks {
        let cron = SchedulePlan::Cron { expression: "0 0 * * * ?".into(), time_zone: "UTC".into() };
        Ticks::of(&cron, clock).unwrap()
    }

    fn made(ticks: &mut Ticks, clock: &Clock) -> bool {
        let tick = ticks.ask(clock) == Now::Tick;
        if tick {
            ticks.made(clock, None);
        }
        tick
    }

    #[tokio::test(start_paused = true)]
    async fn an_interval_ticks_at_once_and_skips_what_passes_while_a_batch_runs() {
        let (clock, _) = clock_at(0);
        let mut ticks = Ticks::of(&SchedulePlan::Interval(Duration::from_secs(2)), &clock).unwrap();
        assert_eq!(ticks.ask(&clock), Now::Tick);
        tokio::time::advance(Duration::from_secs(5)).await;
        ticks.made(&clock, None);
        assert_eq!(ticks.ask(&clock), Now::Sleep(Duration::from_secs(6)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(ticks.ask(&clock), Now::Tick);
    }

    #[tokio::test(start_paused = true)]
    async fn an_interval_counts_from_the_first_attempt() {
        let (clock, _) = clock_at(0);
        let mut ticks = Ticks::of(&SchedulePlan::Interval(Duration::from_secs(2)), &clock).unwrap();
        assert_eq!(ticks.ask(&clock), Now::Tick);
        tokio::time::advance(Duration::from_millis(300)).await;
        ticks.made(&clock, Some(Duration::from_millis(200)));
        assert_eq!(ticks.ask(&clock), Now::Sleep(Duration::from_millis(2200)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_tick_of_an_interval_moves_those_after_it() {
        let (clock, _) = clock_at(0);
        let mut ticks = Ticks::of(&SchedulePlan::Interval(Duration::from_secs(2)), &clock).unwrap();
        assert!(made(&mut ticks, &clock));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(made(&mut ticks, &clock));
        assert_eq!(ticks.ask(&clock), Now::Sleep(Duration::from_secs(5)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_missed_is_skipped_and_the_next_time_is_kept() {
        let (clock, wall) = clock_at(1800);
        let mut ticks = every_hour(&clock);
        assert!(matches!(ticks.ask(&clock), Now::Sleep(_)));
        wall.store(3 * 3600 + 5, Ordering::Relaxed);
        ticks.skip_missed(&clock);
        assert!(!made(&mut ticks, &clock));
        assert_eq!(ticks.next(&clock), Some(Timestamp::from_second(4 * 3600).unwrap()));
        wall.store(4 * 3600, Ordering::Relaxed);
        assert!(made(&mut ticks, &clock));
        // What was made a moment ago is not made again.
        wall.store(4 * 3600 - 5, Ordering::Relaxed);
        ticks.skip_missed(&clock);
        wall.store(4 * 3600, Ordering::Relaxed);
        assert!(!made(&mut ticks, &clock));
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_set_forward_makes_one_tick_for_all_it_jumped_over() {
        let (clock, wall) = clock_at(1800);
        let mut ticks = every_hour(&clock);
        assert!(matches!(ticks.ask(&clock), Now::Sleep(left) if left <= clock.elapsed() + LONGEST_SLEEP));
        wall.store(50 * 3600 + 1800, Ordering::Relaxed);
        assert!(made(&mut ticks, &clock));
        assert!(!made(&mut ticks, &clock));
        assert_eq!(ticks.next(&clock), Some(Timestamp::from_second(51 * 3600).unwrap()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_set_back_does_not_hang_and_a_corrected_one_repeats_no_tick() {
        let (clock, wall) = clock_at(3600 * 10 - 1);
        let mut ticks = every_hour(&clock);
        wall.store(3600 * 10, Ordering::Relaxed);
        assert!(made(&mut ticks, &clock));
        wall.store(3600 * 10 - 5, Ordering::Relaxed);
        assert!(!made(&mut ticks, &clock));
        wall.store(3600 * 10, Ordering::Relaxed);
        assert!(!made(&mut ticks, &clock));
        wall.store(3600 * 5, Ordering::Relaxed);
        assert!(!made(&mut ticks, &clock));
        assert_eq!(ticks.next(&clock), Some(Timestamp::from_second(3600 * 6).unwrap()));
    }
}
