//! Which delivery may start next: lanes, as a value.
//!
//! A lane is a queue of deliveries of which only the first may be under way; the others wait until it has been
//! settled, however often it is retried. `Strict` has one lane, `PerKey` one for each key, and without an order
//! every delivery is a lane of its own. Lanes never reorder: they decide who waits for whom, not when to send.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Numbers deliveries in the order in which they were taken.
pub type Sequence = u64;

/// What a delivery waits behind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Everything (`Strict`).
    All,
    /// Those with the same key (`PerKey`).
    Key(Arc<str>),
    /// Those whose key is undefined or empty (`PerKey`).
    Keyless,
    /// Nothing.
    Own(Sequence),
}

/// The deliveries in our hands, by lane. Times are distances from any fixed start, on a monotonic clock.
#[derive(Debug, Clone, Default)]
pub struct Lanes {
    queues: HashMap<Lane, VecDeque<Sequence>>,
    members: HashMap<Sequence, Member>,
    /// First in their lane, and free to start; the oldest delivery first.
    ready: BTreeSet<Sequence>,
    /// First in their lane, and not to start before a time.
    waiting: BTreeSet<(Duration, Sequence)>,
}

#[derive(Debug, Clone)]
struct Member {
    lane: Lane,
    not_before: Duration,
}

impl Lanes {
    /// Adds a delivery at the end of its lane. It starts at `not_before` at the earliest, and when it is first.
    pub fn push(&mut self, delivery: Sequence, lane: Lane, not_before: Duration) {
        let queue = self.queues.entry(lane.clone()).or_default();
        queue.push_back(delivery);
        let first = queue.len() == 1;
        self.members.insert(delivery, Member { lane, not_before });
        if first {
            self.waiting.insert((not_before, delivery));
        }
    }

    /// The oldest delivery that may start now. It stays one until [`start`](Self::start).
    pub fn next(&mut self, now: Duration) -> Option<Sequence> {
        while let Some(&(until, delivery)) = self.waiting.first() {
            if until > now {
                break;
            }
            self.waiting.pop_first();
            self.ready.insert(delivery);
        }
        self.ready.first().copied()
    }

    /// When the next delivery that only waits for a time is due; `None` if none waits for a time.
    pub fn next_due(&self) -> Option<Duration> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// A delivery is under way: it and its lane are busy until [`retry`](Self::retry) or [`finish`](Self::finish).
    pub fn start(&mut self, delivery: Sequence) {
        self.ready.remove(&delivery);
    }

    /// A delivery that was under way starts again at `not_before`; its lane waits for it.
    pub fn retry(&mut self, delivery: Sequence, not_before: Duration) {
        if let Some(member) = self.members.get_mut(&delivery) {
            member.not_before = not_before;
            self.waiting.insert((not_before, delivery));
        }
    }

    /// When a delivery starts at the earliest.
    pub fn not_before(&self, delivery: Sequence) -> Option<Duration> {
        self.members.get(&delivery).map(|member| member.not_before)
    }

    /// A delivery that was under way is done: the next of its lane is first.
    pub fn finish(&mut self, delivery: Sequence) {
        let Some(member) = self.members.remove(&delivery) else { return };
        self.ready.remove(&delivery);
        let Some(queue) = self.queues.get_mut(&member.lane) else { return };
        queue.pop_front();
        match queue.front() {
            Some(first) => {
                let not_before = self.members.get(first).map_or(Duration::ZERO, |next| next.not_before);
                self.waiting.insert((not_before, *first));
            }
            // A lane without members is forgotten: keys come and go without bound.
            None => drop(self.queues.remove(&member.lane)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Duration = Duration::from_secs(10);

    fn later(seconds: u64) -> Duration {
        NOW + Duration::from_secs(seconds)
    }

    fn key(text: &str) -> Lane {
        Lane::Key(Arc::from(text))
    }

    #[test]
    fn in_one_lane_the_second_waits_until_the_first_is_done_and_not_only_tried() {
        let mut lanes = Lanes::default();
        lanes.push(1, Lane::All, Duration::ZERO);
        lanes.push(2, Lane::All, Duration::ZERO);
        assert_eq!(lanes.next(NOW), Some(1));
        lanes.start(1);
        assert_eq!(lanes.next(NOW), None);
        lanes.retry(1, later(3));
        assert_eq!(lanes.next(later(2)), None);
        assert_eq!(lanes.next_due(), Some(later(3)));
        assert_eq!(lanes.next(later(3)), Some(1));
        lanes.start(1);
        lanes.finish(1);
        assert_eq!(lanes.next(later(3)), Some(2));
    }

    #[test]
    fn a_waiting_key_stops_only_its_own_lane() {
        let mut lanes = Lanes::default();
        for (delivery, lane) in [(1, key("a")), (2, key("b")), (3, key("a")), (4, Lane::Keyless), (5, Lane::Keyless)] {
            lanes.push(delivery, lane, Duration::ZERO);
        }
        lanes.next(NOW);
        lanes.start(1);
        lanes.retry(1, later(60));
        assert_eq!(lanes.next(NOW), Some(2));
        lanes.start(2);
        assert_eq!(lanes.next(NOW), Some(4));
        lanes.start(4);
        assert_eq!(lanes.next(NOW), None);
        lanes.finish(4);
        assert_eq!(lanes.next(NOW), Some(5));
    }

    #[test]
    fn a_delivery_that_must_wait_does_so_when_it_becomes_first() {
        let mut lanes = Lanes::default();
        lanes.push(1, Lane::All, Duration::ZERO);
        lanes.push(2, Lane::All, later(5));
        assert_eq!(lanes.next(NOW), Some(1));
        lanes.start(1);
        lanes.finish(1);
        assert_eq!(lanes.next(NOW), None);
        assert_eq!(lanes.next(later(5)), Some(2));
    }

    #[test]
    fn without_an_order_the_oldest_that_may_start_is_first() {
        let mut lanes = Lanes::default();
        lanes.push(1, Lane::Own(1), later(5));
        lanes.push(2, Lane::Own(2), Duration::ZERO);
        assert_eq!(lanes.next(NOW), Some(2));
        assert_eq!(lanes.next(later(5)), Some(1));
    }

    #[test]
    fn a_lane_without_members_is_forgotten() {
        let mut lanes = Lanes::default();
        lanes.push(1, key("a"), Duration::ZERO);
        lanes.next(NOW);
        lanes.start(1);
        lanes.finish(1);
        assert!(lanes.queues.is_empty() && lanes.members.is_empty() && lanes.waiting.is_empty());
    }

    proptest! {
        /// Whatever is retried and finished in whatever order, each lane ends in the order of arrival, no lane is
        /// under way twice, and everything ends.
        #[test]
        fn lanes_keep_the_order_of_arrival(
            lanes_of in proptest::collection::vec(0u8..4, 1..60),
            script in proptest::collection::vec((any::<bool>(), 0u64..5), 1..200),
            concurrency in 1usize..6,
        ) {
            let mut lanes = Lanes::default();
            for (delivery, lane) in (0u64..).zip(&lanes_of) {
                lanes.push(delivery, key(&lane.to_string()), Duration::ZERO);
            }
            let mut now = Duration::ZERO;
            let mut running: Vec<Sequence> = Vec::new();
            let mut done: Vec<Sequence> = Vec::new();
            let mut script = script.into_iter().chain(std::iter::repeat((false, 1)));
            while done.len() < lanes_of.len() {
                while running.len() < concurrency {
                    let Some(delivery) = lanes.next(now) else { break };
                    let lane = lanes_of[usize::try_from(delivery).unwrap()];
                    prop_assert!(running.iter().all(|other| lanes_of[usize::try_from(*other).unwrap()] != lane));
                    lanes.start(delivery);
                    running.push(delivery);
                }
                let (fails, step) = script.next().unwrap();
                now += Duration::from_secs(step);
                if running.is_empty() {
                    continue;
                }
                let delivery = running.remove(usize::try_from(step).unwrap() % running.len());
                if fails {
                    lanes.retry(delivery, now + Duration::from_secs(3));
                } else {
                    lanes.finish(delivery);
                    done.push(delivery);
                }
            }
            for lane in 0..4 {
                let of_lane: Vec<_> =
                    done.iter().filter(|d| lanes_of[usize::try_from(**d).unwrap()] == lane).collect();
                prop_assert!(of_lane.is_sorted());
            }
        }
    }
}
