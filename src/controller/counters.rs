//! Counters since the creation of an object, from counters of processes that come and go.
//!
//! The status holds the sums and, for each worker, what of its counters is in them. What a worker has counted since is
//! added once, whoever adds it and however often. A worker is a pod and the time at which its process started: one that
//! was restarted begins at zero. What a crashed worker counted after it was asked last is lost; metrics have it.

use crate::api::forwarding_processor::ForwarderWorker;
use crate::api::ingress_route::IngressWorker;

/// The counters of one worker.
pub(super) trait Counted<const N: usize>: Clone {
    /// Pod and start.
    fn is_same_worker(&self, other: &Self) -> bool;
    fn counts(&self) -> [u64; N];
}

impl Counted<5> for ForwarderWorker {
    fn is_same_worker(&self, other: &Self) -> bool {
        self.pod == other.pod && self.started == other.started
    }

    fn counts(&self) -> [u64; 5] {
        [self.delivered, self.failed_attempts, self.dead_lettered, self.dropped, self.filtered]
    }
}

impl Counted<3> for IngressWorker {
    fn is_same_worker(&self, other: &Self) -> bool {
        self.pod == other.pod && self.started == other.started
    }

    fn counts(&self) -> [u64; 3] {
        [self.accepted, self.rejected, self.failed]
    }
}

/// Adds what `seen` workers have counted beyond what is in `sums` already, by `known`. Answers the workers to remember:
/// those that were seen, and of the others those that `is_there` still, unseen for now.
pub(super) fn add<const N: usize, W: Counted<N>>(
    sums: &mut [u64; N],
    known: &[W],
    seen: &[W],
    is_there: impl Fn(&W) -> bool,
) -> Vec<W> {
    let mut workers = Vec::new();
    for worker in seen {
        let base = known.iter().find(|known| known.is_same_worker(worker)).map_or([0; N], Counted::counts);
        let counts = worker.counts();
        for at in 0..N {
            sums[at] += counts[at].saturating_sub(base[at]);
        }
        workers.push(worker.clone());
    }
    let unseen = known.iter().filter(|known| !seen.iter().any(|worker| worker.is_same_worker(known)));
    workers.extend(unseen.filter(|worker| is_there(worker)).cloned());
    workers
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::api::condition::Time;

    fn worker(pod: &str, started: i64, accepted: u64) -> IngressWorker {
        let started = Some(Time(Timestamp::from_second(started).unwrap()));
        IngressWorker { pod: pod.to_owned(), started, accepted, rejected: 0, failed: 0 }
    }

    #[test]
    fn what_was_added_is_not_added_again() {
        let mut sums = [10, 0, 0];
        let known = add(&mut sums, &[], &[worker("a", 1, 5)], |_| true);
        assert_eq!(sums, [15, 0, 0]);
        let known = add(&mut sums, &known, &[worker("a", 1, 5)], |_| true);
        assert_eq!(sums, [15, 0, 0]);
        let known = add(&mut sums, &known, &[worker("a", 1, 8), worker("b", 1, 2)], |_| true);
        assert_eq!(sums, [20, 0, 0]);
        // A restart in the same pod begins at zero.
        let known = add(&mut sums, &known, &[worker("a", 2, 1)], |worker| worker.pod == "b");
        assert_eq!(sums, [21, 0, 0]);
        assert_eq!(
            known.iter().map(|worker| (worker.pod.as_str(), worker.accepted)).collect::<Vec<_>>(),
            [("a", 1), ("b", 2)]
        );
    }

    proptest! {
        /// However often and in whatever order workers are seen, the sum is what all of them counted when seen last.
        #[test]
        fn sums_are_what_the_workers_counted(steps in prop::collection::vec((0usize..4, 0u64..100, any::<bool>()), 1..60)) {
            let mut counted = [0u64; 4];
            let mut last_seen = [0u64; 4];
            let (mut sums, mut known) = ([0, 0, 0], Vec::new());
            for (which, more, seen) in steps {
                counted[which] += more;
                if seen {
                    last_seen[which] = counted[which];
                    let seen = [worker(&format!("pod-{which}"), 1, counted[which])];
                    known = add(&mut sums, &known, &seen, |_| true);
                }
            }
            prop_assert_eq!(sums[0], last_seen.iter().sum::<u64>());
        }
    }
}
