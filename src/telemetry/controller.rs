//! The metrics of a controller.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Seconds: from a reconcile that finds everything in order to one that waits for an API server.
const SECONDS: [f64; 10] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    kind: &'static str,
    class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    verb: &'static str,
    kind: &'static str,
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ControllerMetrics {
    registry: Arc<Registry>,
    reconciles: Family<Kind, Histogram, fn() -> Histogram>,
    errors: Family<Failure, Counter>,
    requests: Family<Request, Counter>,
    leader: Gauge,
}

impl Default for ControllerMetrics {
    fn default() -> Self {
        let seconds: fn() -> Histogram = || Histogram::new(SECONDS);
        let reconciles = Family::new_with_constructor(seconds);
        let (errors, requests, leader) = (Family::default(), Family::default(), Gauge::default());
        let mut registry = Registry::with_prefix("stagepost");
        registry.register("reconcile_seconds", "Reconciles, and how long they took", Family::clone(&reconciles));
        registry.register("reconcile_errors", "Reconciles that failed, by what helps", Family::clone(&errors));
        registry.register("api_requests", "Requests that were made to the API server", Family::clone(&requests));
        registry.register("leader", "1 while this controller acts", leader.clone());
        Self { registry: Arc::new(registry), reconciles, errors, requests, leader }
    }
}

impl ControllerMetrics {
    /// A reconcile has ended.
    pub fn reconciled(&self, kind: &'static str, elapsed: Duration) {
        self.reconciles.get_or_create_owned(&Kind { kind }).observe(elapsed.as_secs_f64());
    }

    /// A reconcile has failed.
    pub fn failed(&self, kind: &'static str, class: &'static str) {
        self.errors.get_or_create_owned(&Failure { kind, class }).inc();
    }

    /// A request is made.
    pub fn requested(&self, verb: &'static str, kind: &'static str) {
        self.requests.get_or_create_owned(&Request { verb, kind }).inc();
    }

    /// Whether this controller acts.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// In the `OpenMetrics` text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
