//! The metrics of a process, in the `OpenMetrics` text format.
//!
//! Labels are names of objects, never paths, keys or bodies: their number is bounded by what the user applied.
//! Each object takes its handles once, when it is loaded; a message then costs atomic additions only. The same
//! counters feed the status, so the two can't disagree.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds: from a local fsync to the longest attempt that is allowed.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0];

/// Label names are fixed at compile time, values are names of objects or of a closed set.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Labels(Vec<(&'static str, String)>);

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.encode(encoder)
    }
}

/// A family that remembers its label sets, so that those of an object that is gone can be removed.
struct Labelled<M, C = fn() -> M> {
    family: Family<Labels, M, C>,
    known: Arc<Mutex<HashSet<Labels>>>,
}

type Counters = Labelled<Counter>;
type Gauges = Labelled<Gauge>;
type Histograms = Labelled<Histogram>;

impl<M> Clone for Labelled<M> {
    fn clone(&self) -> Self {
        Self { family: self.family.clone(), known: self.known.clone() }
    }
}

impl<M> fmt::Debug for Labelled<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Labelled")
    }
}

impl<M: Clone> Labelled<M> {
    fn new(constructor: fn() -> M) -> Self {
        Self { family: Family::new_with_constructor(constructor), known: Arc::default() }
    }

    fn of<const N: usize>(&self, pairs: [(&'static str, &str); N]) -> M {
        let labels = Labels(pairs.into_iter().map(|(name, value)| (name, value.to_owned())).collect());
        let metric = self.family.get_or_create_owned(&labels);
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(labels);
        metric
    }

    fn forget(&self, label: &str, name: &str) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).retain(|labels| {
            let gone = labels.0.iter().any(|(key, value)| *key == label && value == name);
            if gone {
                self.family.remove(labels);
            }
            !gone
        });
    }
}

/// Whether an object is still there. What of it ends later must not bring its series back.
#[derive(Debug, Clone, Default)]
struct Life(Arc<AtomicBool>);

impl Life {
    fn is_over(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Of each object, by label and name.
type Lives = Arc<Mutex<HashMap<(&'static str, String), Life>>>;

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

/// All metrics of this process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    families: Families,
    lives: Lives,
}

#[derive(Clone)]
struct Families {
    ingress_requests: Counters,
    ingress_in_flight: Gauges,
    store_seconds: Histograms,
    stored: Counters,
    attempts: Counters,
    attempt_seconds: Histograms,
    settled: Counters,
    in_flight: Gauges,
    possible_duplicates: Counters,
    processor_state: Gauges,
    oldest_taken_age: Gauges,
    backlog: Gauges,
    dead_letters: Gauges,
    broker_connected: Gauges,
    responses_lost: Counters,
    replies: Counters,
    replies_sent: Counters,
}

impl Default for Metrics {
    fn default() -> Self {
        let families = Families {
            ingress_requests: Labelled::new(Counter::default),
            ingress_in_flight: Labelled::new(Gauge::default),
            store_seconds: Labelled::new(seconds),
            stored: Labelled::new(Counter::default),
            attempts: Labelled::new(Counter::default),
            attempt_seconds: Labelled::new(seconds),
            settled: Labelled::new(Counter::default),
            in_flight: Labelled::new(Gauge::default),
            possible_duplicates: Labelled::new(Counter::default),
            processor_state: Labelled::new(Gauge::default),
            oldest_taken_age: Labelled::new(Gauge::default),
            backlog: Labelled::new(Gauge::default),
            dead_letters: Labelled::new(Gauge::default),
            broker_connected: Labelled::new(Gauge::default),
            responses_lost: Labelled::new(Counter::default),
            replies: Labelled::new(Counter::default),
            replies_sent: Labelled::new(Counter::default),
        };
        Self { registry: Arc::new(register(&families)), families, lives: Lives::default() }
    }
}

/// Counters get their `_total` from the encoder.
fn register(of: &Families) -> Registry {
    let mut registry = Registry::with_prefix("stagepost");
    registry.register("ingress_requests", "Requests answered, by status code", of.ingress_requests.family.clone());
    registry.register("ingress_in_flight", "Requests being handled", of.ingress_in_flight.family.clone());
    registry.register("store_seconds", "Time to store one message durably", of.store_seconds.family.clone());
    registry.register("stored", "Publishes, by what came of them", of.stored.family.clone());
    registry.register("attempts", "Attempts at the target, by outcome", of.attempts.family.clone());
    registry.register("attempt_seconds", "Time of one attempt to its response head", of.attempt_seconds.family.clone());
    registry.register("settled", "Messages taken out of a source, by what came of them", of.settled.family.clone());
    registry.register("in_flight", "Attempts under way", of.in_flight.family.clone());
    registry.register(
        "possible_duplicates",
        "Times something may have been done twice, by cause",
        of.possible_duplicates.family.clone(),
    );
    registry.register("processor_state", "1 for the state a processor is in", of.processor_state.family.clone());
    registry.register(
        "oldest_taken_age_seconds",
        "Age of the oldest message that a worker holds",
        of.oldest_taken_age.family.clone(),
    );
    registry.register("backlog", "Messages ready in a store", of.backlog.family.clone());
    registry.register("dead_letters", "Messages in a dead letter store", of.dead_letters.family.clone());
    registry.register("broker_connected", "1 while connected", of.broker_connected.family.clone());
    registry.register("responses_lost", "Answers that could not be stored", of.responses_lost.family.clone());
    registry.register("replies", "Replies to waiting callers, by what came of them", of.replies.family.clone());
    let text = "Replies sent to the ingress of a waiting caller, by what came of them";
    registry.register("replies_sent", text, of.replies_sent.family.clone());
    registry
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// The text that `/metrics` answers.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    fn life(&self, label: &'static str, name: &str) -> Life {
        let mut lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        lives.entry((label, name.to_owned())).or_default().clone()
    }

    /// The handles of one IngressRoute. `name` is `<namespace>/<name>`.
    pub fn route(&self, name: &str) -> RouteMetrics {
        let of = &self.families;
        let counter = |code: &str| of.ingress_requests.of([("route", name), ("code", code)]);
        RouteMetrics {
            requests: of.ingress_requests.clone(),
            common: [(200, counter("200")), (202, counter("202")), (503, counter("503"))],
            in_flight: of.ingress_in_flight.of([("route", name)]),
            replies: of.replies.clone(),
            life: self.life("route", name),
            name: Arc::from(name),
        }
    }

    /// The handles of one MessageStore. `name` is `<namespace>/<name>`.
    pub fn store(&self, name: &str) -> StoreMetrics {
        let of = &self.families;
        let stored = |result: &str| of.stored.of([("store", name), ("result", result)]);
        StoreMetrics {
            seconds: of.store_seconds.of([("store", name)]),
            ok: stored("ok"),
            refused: stored("refused"),
            unroutable: stored("unroutable"),
            unknown: stored("unknown"),
            failover: stored("failover"),
            backlog: of.backlog.of([("store", name)]),
            possible_duplicates: of.possible_duplicates.of([("store", name), ("cause", "failover")]),
            connected: of.broker_connected.clone(),
            life: self.life("store", name),
            name: Arc::from(name),
        }
    }

    /// The handles of one ForwardingProcessor. `name` is `<namespace>/<name>`.
    pub fn processor(&self, name: &str) -> ProcessorMetrics {
        let of = &self.families;
        let one = [("processor", name)];
        let settled = |result: &str| of.settled.of([("processor", name), ("result", result)]);
        ProcessorMetrics {
            attempts: of.attempts.clone(),
            succeeded: of.attempts.of([("processor", name), ("outcome", "2xx")]),
            attempt_seconds: of.attempt_seconds.of(one),
            delivered: settled("delivered"),
            dead_lettered: settled("dead_lettered"),
            dropped: settled("dropped"),
            filtered: settled("filtered"),
            expired: settled("expired"),
            returned: settled("returned"),
            in_flight: of.in_flight.of(one),
            stale_keep_alive: of.possible_duplicates.of([("processor", name), ("cause", "stale_keep_alive")]),
            redelivered: of.possible_duplicates.of([("processor", name), ("cause", "redelivered")]),
            dead_letter_again: of.possible_duplicates.of([("processor", name), ("cause", "dead_letter")]),
            oldest_taken_age: of.oldest_taken_age.of(one),
            dead_letters: of.dead_letters.of(one),
            responses_lost: of.responses_lost.of(one),
            replies_sent: of.replies_sent.clone(),
            state: of.processor_state.clone(),
            life: self.life("processor", name),
            name: Arc::from(name),
        }
    }

    /// Forgets an object that is gone. `label` is `route`, `store` or `processor`.
    pub fn forget(&self, label: &'static str, name: &str) {
        let life = self.lives.lock().unwrap_or_else(PoisonError::into_inner).remove(&(label, name.to_owned()));
        if let Some(Life(is_over)) = life {
            is_over.store(true, Ordering::Release);
        }
        let of = &self.families;
        for counters in [&of.ingress_requests, &of.stored, &of.attempts, &of.settled, &of.possible_duplicates] {
            counters.forget(label, name);
        }
        for counters in [&of.responses_lost, &of.replies, &of.replies_sent] {
            counters.forget(label, name);
        }
        for gauges in [&of.ingress_in_flight, &of.in_flight, &of.processor_state, &of.oldest_taken_age] {
            gauges.forget(label, name);
        }
        for gauges in [&of.backlog, &of.dead_letters, &of.broker_connected] {
            gauges.forget(label, name);
        }
        for histograms in [&of.store_seconds, &of.attempt_seconds] {
            histograms.forget(label, name);
        }
    }
}

/// The handles of one IngressRoute.
#[derive(Debug, Clone)]
pub struct RouteMetrics {
    requests: Counters,
    common: [(u16, Counter); 3],
    /// Requests being handled.
    pub in_flight: Gauge,
    replies: Counters,
    life: Life,
    name: Arc<str>,
}

impl RouteMetrics {
    /// Counts one answer.
    pub fn answered(&self, status: u16) {
        match self.common.iter().find(|(code, _)| *code == status) {
            Some((_, counter)) => counter.inc(),
            None if self.life.is_over() => 0,
            None => self.requests.of([("route", &self.name), ("code", &status.to_string())]).inc(),
        };
    }

    /// Counts one reply, by a label of a closed set (`answered`, `timed_out`, `lost`, `abandoned`,
    /// `late`, `duplicate`).
    pub fn reply(&self, result: &'static str) {
        if self.life.is_over() {
            return;
        }
        self.replies.of([("route", &self.name), ("result", result)]).inc();
    }
}

/// The handles of one MessageStore.
#[derive(Debug, Clone)]
pub struct StoreMetrics {
    /// Time of one publish.
    pub seconds: Histogram,
    /// Stored.
    pub ok: Counter,
    /// Refused, or not connected.
    pub refused: Counter,
    /// No queue bound.
    pub unroutable: Counter,
    /// Sent, no confirm.
    pub unknown: Counter,
    /// Stored in a failover store instead.
    pub failover: Counter,
    /// Messages ready.
    pub backlog: Gauge,
    /// A failover took a second copy of what may have been stored.
    pub possible_duplicates: Counter,
    connected: Gauges,
    life: Life,
    name: Arc<str>,
}

impl StoreMetrics {
    /// Counts the end of one publish by [`crate::store::PublishError::label`]'s names, `ok` among them.
    pub fn published(&self, result: &str, elapsed: Duration) {
        self.seconds.observe(elapsed.as_secs_f64());
        match result {
            "ok" => self.ok.inc(),
            "unroutable" => self.unroutable.inc(),
            "unknown" => self.unknown.inc(),
            "failover" => self.failover.inc(),
            _ => self.refused.inc(),
        };
    }

    /// Says whether the broker is connected, for a role (`publish` or `consume`).
    pub fn connected(&self, role: &'static str, up: bool) {
        if self.life.is_over() {
            return;
        }
        self.connected.of([("store", &self.name), ("role", role)]).set(i64::from(up));
    }
}

/// The handles of one ForwardingProcessor.
#[derive(Debug, Clone)]
pub struct ProcessorMetrics {
    attempts: Counters,
    succeeded: Counter,
    /// Time of one attempt to its response head.
    pub attempt_seconds: Histogram,
    /// Delivered.
    pub delivered: Counter,
    /// Moved to the dead letter store.
    pub dead_lettered: Counter,
    /// Discarded after failure.
    pub dropped: Counter,
    /// Settled by a filter.
    pub filtered: Counter,
    /// Not attempted, because its caller waits no more.
    pub expired: Counter,
    /// Given back to the store.
    pub returned: Counter,
    /// Attempts under way.
    pub in_flight: Gauge,
    /// Attempts repeated because a reused connection was closed under them.
    pub stale_keep_alive: Counter,
    /// Attempts on messages that somebody who is gone had in his hands, and may have delivered.
    pub redelivered: Counter,
    /// A dead letter was stored again, because it was not known whether it had been.
    pub dead_letter_again: Counter,
    /// Seconds.
    pub oldest_taken_age: Gauge,
    /// Messages in the dead letter store.
    pub dead_letters: Gauge,
    /// Answers that could not be stored.
    pub responses_lost: Counter,
    replies_sent: Counters,
    state: Gauges,
    life: Life,
    name: Arc<str>,
}

impl ProcessorMetrics {
    /// Counts one attempt by [`crate::core::outcome::Outcome::label`].
    pub fn attempted(&self, outcome: &'static str, elapsed: Duration) {
        self.attempt_seconds.observe(elapsed.as_secs_f64());
        if outcome == "2xx" {
            self.succeeded.inc();
        } else if !self.life.is_over() {
            self.attempts.of([("processor", &self.name), ("outcome", outcome)]).inc();
        }
    }

    /// Counts one reply to a caller that waits, by a label of a closed set (`sent`, `unroutable`, `lost`).
    pub fn replied(&self, result: &'static str) {
        if !self.life.is_over() {
            self.replies_sent.of([("processor", &self.name), ("result", result)]).inc();
        }
    }

    /// Shows `state`, and no other of the states it may be in.
    pub fn state(&self, state: &'static str) {
        if self.life.is_over() {
            return;
        }
        for known in ["Active", "Suspended", "Deactivated", "Pending"] {
            self.state.of([("processor", &self.name), ("state", known)]).set(i64::from(known == state));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_names_that_users_rely_on() {
        let metrics = Metrics::default();
        metrics.route("shop/orders").answered(202);
        metrics.store("shop/orders").published("ok", Duration::from_millis(2));
        let processor = metrics.processor("shop/settle");
        processor.attempted("5xx", Duration::from_millis(3));
        processor.delivered.inc();
        processor.state("Active");
        let text = metrics.encode();
        for line in [
            r#"stagepost_ingress_requests_total{route="shop/orders",code="202"} 1"#,
            r#"stagepost_stored_total{store="shop/orders",result="ok"} 1"#,
            r#"stagepost_attempts_total{processor="shop/settle",outcome="5xx"} 1"#,
            r#"stagepost_settled_total{processor="shop/settle",result="delivered"} 1"#,
            r#"stagepost_processor_state{processor="shop/settle",state="Active"} 1"#,
            r#"stagepost_processor_state{processor="shop/settle",state="Deactivated"} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn an_object_that_is_gone_is_forgotten() {
        let metrics = Metrics::default();
        let (processor, route) = (metrics.processor("shop/settle"), metrics.route("shop/orders"));
        let store = metrics.store("shop/orders");
        processor.delivered.inc();
        metrics.forget("processor", "shop/settle");
        metrics.forget("route", "shop/orders");
        metrics.forget("store", "shop/orders");
        // What was under way ends later.
        processor.attempted("5xx", Duration::ZERO);
        processor.state("Pending");
        route.answered(404);
        route.reply("late");
        store.connected("publish", true);
        store.published("ok", Duration::ZERO);
        assert!(!metrics.encode().contains("shop/"), "{}", metrics.encode());
        // One that comes under the same name counts anew.
        metrics.processor("shop/settle").attempted("5xx", Duration::ZERO);
        assert!(metrics.encode().contains(r#"stagepost_attempts_total{processor="shop/settle",outcome="5xx"} 1"#));
    }
}
