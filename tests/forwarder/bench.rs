//! The bench: a plan with the defaults of the API, a store, a target, and a forwarder between them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use stagepost::core::decision::{OnFailure, Outcomes, Policy, WhileUnreachable};
use stagepost::core::message::{Message, MessageId, Origin};
use stagepost::core::outcome::OutcomeMatch;
use stagepost::core::retry::Backoff;
use stagepost::forwarder::{Clock, Forwarder, ForwarderHandle, ForwarderInput, Options, ProcessorState};
use stagepost::plan::{
    AnswerLog, AnswerPlan, ForwarderPlan, HttpTargetPlan, ObjectName, OrderingPlan, PollPlan, SchedulePlan,
    TargetAddress, TargetPlan,
};
use stagepost::store::MessageStore;
use stagepost::target::Target;
use stagepost::telemetry::metrics::Metrics;

use super::store::{Event, MemoryStore};
use super::target::ScriptedTarget;

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The plan of S1: retried on 500 and 400, five times after 3 s each, then the dead letter store.
pub(crate) fn plan() -> ForwarderPlan {
    ForwarderPlan {
        object: ObjectName { namespace: "shop".into(), name: "settle".into(), uid: String::new() },
        source: "source".into(),
        target: TargetPlan::Http(Box::new(HttpTargetPlan {
            address: TargetAddress::Url("http://target.test/settle".into()),
            method: Some("POST".into()),
            append_path: false,
            connect_timeout: seconds(5),
            timeout: seconds(30),
            set_headers: BTreeMap::new(),
            remove_headers: Vec::new(),
            tls: None,
            auth: None,
            refuse_loopback: false,
        })),
        ordering: OrderingPlan::Strict,
        concurrency: 1,
        replicas: 1,
        poll: None,
        rate_limit: None,
        transform: Vec::new(),
        policy: Policy {
            outcomes: Outcomes {
                success: vec![OutcomeMatch::Class(2)],
                retry: vec![OutcomeMatch::Status(400), OutcomeMatch::Class(5), OutcomeMatch::Status(429)],
                fail: Vec::new(),
                deactivate: Vec::new(),
            },
            backoff: Backoff { interval: seconds(3), factor: 1.0, max_interval: seconds(60), jitter: 0.0 },
            max_redeliveries: Some(5),
            max_retry_after: seconds(600),
            while_unreachable: WhileUnreachable::Count,
            on_failure: OnFailure::DeadLetter,
        },
        dead_letters: Some("dlc".into()),
        response: AnswerPlan { log: AnswerLog::Status, store: None, max_body_size: 65536 },
        circuit_breaker: None,
        stores: BTreeMap::new(),
    }
}

pub(crate) fn on_failure(action: OnFailure) -> ForwarderPlan {
    let mut plan = plan();
    plan.policy.on_failure = action;
    plan.dead_letters = (action == OnFailure::DeadLetter).then(|| "dlc".into());
    plan
}

/// Ticks each two seconds, one message each.
pub(crate) fn poll(schedule: SchedulePlan) -> PollPlan {
    PollPlan { schedule, batch_size: Some(1), message_interval: Duration::ZERO }
}

pub(crate) fn every_two_seconds() -> SchedulePlan {
    SchedulePlan::Cron { expression: "0/2 * * * * ?".into(), time_zone: "UTC".into() }
}

/// A message as the ingress stores it; the body is its id, and `x-key` what stands before a colon in it.
#[allow(clippy::needless_pass_by_value)] // reads better where it is called
pub(crate) fn message(id: impl ToString) -> Message {
    let id = id.to_string();
    let mut message = Message::new(MessageId::new(id.clone()), id.clone());
    if let Some((key, _)) = id.split_once(':') {
        message.headers.insert("x-key", key.parse().unwrap());
    }
    message.origin = Some(Origin {
        method: http::Method::PUT,
        path: "/healthcare/appointment".into(),
        query: Some("a=1&b".into()),
        route: "shop/healthcare/reserve".into(),
    });
    message
}

pub(crate) struct Bench {
    pub(crate) source: MemoryStore,
    pub(crate) dlc: MemoryStore,
    pub(crate) answers: MemoryStore,
    pub(crate) target: Arc<ScriptedTarget>,
    pub(crate) metrics: Metrics,
    pub(crate) plan: ForwarderPlan,
    pub(crate) hold_limit: Duration,
    pub(crate) check_record_every: Option<Duration>,
}

impl Bench {
    pub(crate) fn new(plan: ForwarderPlan, target: Arc<ScriptedTarget>) -> Self {
        Self {
            source: MemoryStore::new("orders"),
            dlc: MemoryStore::new("orders.dlc"),
            answers: MemoryStore::new("answers"),
            target,
            metrics: Metrics::default(),
            plan,
            hold_limit: seconds(900),
            check_record_every: None,
        }
    }

    pub(crate) fn put(&self, ids: impl IntoIterator<Item = impl ToString>) {
        for id in ids {
            self.source.put(message(id));
        }
    }

    /// What happened at the source, the dead letter store and the target, in order.
    pub(crate) fn timeline(&self) -> Vec<(u64, Event)> {
        let mut all = [self.source.timeline(), self.dlc.timeline(), self.target.timeline()].concat();
        all.sort_by_key(|(moment, _)| *moment);
        all
    }

    pub(crate) fn start(&self) -> ForwarderHandle {
        self.start_with(Arc::clone(&self.target) as _)
    }

    pub(crate) fn start_with(&self, target: Arc<dyn Target>) -> ForwarderHandle {
        let store = |store: &MemoryStore| Arc::new(store.clone()) as Arc<dyn MessageStore>;
        let stores = [("source", &self.source), ("dlc", &self.dlc), ("answers", &self.answers)];
        let began = tokio::time::Instant::now();
        let midnight: Timestamp = "2026-11-21T00:00:00Z".parse().unwrap();
        let clock = Clock::with_wall(move || midnight + SignedDuration::try_from(began.elapsed()).unwrap());
        Forwarder::start(ForwarderInput {
            plan: self.plan.clone(),
            stores: stores.into_iter().map(|(name, of)| (name.to_owned(), store(of))).collect(),
            target,
            metrics: self.metrics.processor("shop/settle"),
            options: Options {
                clock,
                hold_limit: self.hold_limit,
                check_record_every: self.check_record_every,
                ..Options::default()
            },
        })
        .unwrap()
    }

    /// Every message has left the source.
    pub(crate) async fn drained(&self) {
        until(|| self.source.messages().is_empty()).await;
    }
}

pub(crate) async fn deactivated(handle: &ForwarderHandle) {
    until(|| handle.report().state == ProcessorState::Deactivated).await;
}

/// Waits, on the paused clock, until something is so.
pub(crate) async fn until(mut so: impl FnMut() -> bool) {
    let limit = tokio::time::Instant::now() + seconds(24 * 3600);
    while !so() {
        assert!(tokio::time::Instant::now() < limit, "waited a day for it");
        tokio::time::sleep(millis(5)).await;
    }
}

/// The clock moves on.
pub(crate) async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}
