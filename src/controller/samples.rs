//! What the workers said last.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::plan::ObjectName;
use crate::status::link::Link;
use crate::status::report::{StoreReport, WorkerReport};
use crate::status::standing::Standing;

/// What a pod said this long ago still counts, though it does not answer now.
const GOOD_FOR: Duration = Duration::from_secs(20);

/// See the module. By namespace and name of the pod.
#[derive(Debug, Default)]
pub(super) struct Samples {
    of_pods: Mutex<BTreeMap<(String, String), Sample>>,
    /// All workers have been asked once.
    warm: AtomicBool,
}

#[derive(Debug)]
struct Sample {
    report: WorkerReport,
    at: Instant,
}

/// What all workers of an object said together.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Together {
    /// Workers that said something.
    pub(super) workers: Vec<(String, WorkerReport)>,
    /// Of forwarding workers.
    pub(super) standing: Standing,
    /// The worst of each store.
    pub(super) stores: BTreeMap<String, StoreReport>,
}

impl Samples {
    /// Whether all workers that were there have been asked.
    pub(super) fn is_warm(&self) -> bool {
        self.warm.load(Ordering::Acquire)
    }

    pub(super) fn asked(&self) {
        self.warm.store(true, Ordering::Release);
    }

    pub(super) fn put(&self, namespace: &str, pod: &str, report: WorkerReport) {
        let sample = Sample { report, at: Instant::now() };
        self.lock().insert((namespace.to_owned(), pod.to_owned()), sample);
    }

    /// Forgets pods that are gone, and those that have not answered for long.
    pub(super) fn retain(&self, is_there: impl Fn(&str, &str) -> bool) {
        self.lock().retain(|(namespace, pod), sample| is_there(namespace, pod) && sample.at.elapsed() < GOOD_FOR);
    }

    /// What the workers of an object say.
    pub(super) fn of(&self, object: &ObjectName) -> Together {
        let mut together = Together::default();
        for ((_, pod), sample) in self.lock().iter().filter(|(_, sample)| sample.report.object == *object) {
            let report = &sample.report;
            if let Some(standing) = &report.forwarder {
                together.standing = std::mem::take(&mut together.standing).and(standing.clone());
            }
            for (name, store) in &report.stores {
                let worst = together.stores.entry(name.clone()).or_insert_with(|| store.clone());
                // One that has just begun says nothing against the others; one that can't does.
                let is_worse = match (&worst.link, &store.link) {
                    (Link::Connecting, _) => true,
                    (Link::Up, link) => *link != Link::Connecting && *link != Link::Up,
                    _ => false,
                };
                if is_worse {
                    worst.link = store.link.clone();
                }
                worst.ready = worst.ready.or(store.ready);
                worst.consumers = worst.consumers.or(store.consumers);
            }
            together.workers.push((pod.clone(), report.clone()));
        }
        together
    }

    /// What any worker says of a store.
    pub(super) fn store(&self, namespace: &str, name: &str) -> Option<StoreReport> {
        let samples = self.lock();
        let here = samples.values().filter(|sample| sample.report.object.namespace == namespace);
        let reports: Vec<&StoreReport> = here.filter_map(|sample| sample.report.stores.get(name)).collect();
        // One that knows a number is worth more than one that does not.
        let best = reports.iter().find(|report| report.ready.is_some()).or(reports.first())?;
        // Whoever found the queue missing last says so.
        let made = reports.iter().filter_map(|report| report.made.clone()).max_by_key(|made| made.0);
        Some(StoreReport { made, ..(*best).clone() })
    }

    /// The record that a worker spoke of is removed; what it says next counts.
    pub(super) fn forget_deactivation(&self, object: &ObjectName) {
        for sample in self.lock().values_mut().filter(|sample| sample.report.object == *object) {
            if let Some(standing) = &mut sample.report.forwarder {
                standing.deactivation = None;
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, String), Sample>> {
        // Single insertions and removals: a panicking holder leaves nothing half done.
        self.of_pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
