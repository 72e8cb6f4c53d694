//! What does not change while a forwarder runs: its plan, compiled, and the ports it works on.

use std::collections::BTreeMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::clock::Clock;
use super::noise::Warning;
use super::poll::Ticks;
use super::prepare::{ExpressionError, Expressions};
use super::report::Shared;
use super::request::RequestBuilder;
use super::suspects::Suspects;
use super::work::STORE_TIMEOUT;
use super::{ForwarderInput, Options};
use crate::core::deactivation::Deactivation;
use crate::core::decision::OnFailure;
use crate::core::schedule::ScheduleError;
use crate::plan::{ForwarderPlan, TargetPlan};
use crate::store::{MessageStore, StoreError};
use crate::target::Target;

/// The room above a target's own bounds before an attempt is taken for lost.
const ATTEMPT_MARGIN: Duration = Duration::from_secs(5);
/// Of a target store's publish, when the plan does not say: the longest deadline that a store may have.
const LONGEST_STORE_DEADLINE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(super) struct Processor {
    pub(super) plan: ForwarderPlan,
    /// `<namespace>/<name>`: in logs and dead letters.
    pub(super) name: String,
    /// `<namespace>.<name>`: names the deactivation record.
    record_name: String,
    pub(super) source: Arc<dyn MessageStore>,
    pub(super) dead_letters: Option<Arc<dyn MessageStore>>,
    pub(super) dead_letter_timeout: Duration,
    pub(super) responses: Option<Arc<dyn MessageStore>>,
    pub(super) response_deadline: Duration,
    pub(super) target: Arc<dyn Target>,
    pub(super) attempt_ceiling: Duration,
    pub(super) expressions: Expressions,
    pub(super) requests: RequestBuilder,
    pub(super) shared: Arc<Shared>,
    pub(super) clock: Clock,
    pub(super) hold_limit: Duration,
    pub(super) check_record_every: Option<Duration>,
    pub(super) random: Random,
    /// Replies that were not sent.
    pub(super) reply_noise: Mutex<Warning>,
}

/// Why a plan cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// A store that the plan names was not given.
    #[error("{field}: store `{name}` is missing")]
    MissingStore {
        /// Where it is named in the spec.
        field: &'static str,
        /// The store.
        name: String,
    },
    /// `onFailure: DeadLetter` without a store for it.
    #[error("spec.onFailure: DeadLetter needs a dead letter store in the plan")]
    NoDeadLetterStore,
    /// A template or expression cannot be used.
    #[error(transparent)]
    Expression(#[from] ExpressionError),
    /// A method or header name is none.
    #[error("{0}")]
    Request(String),
    /// The cron expression cannot be read.
    #[error("spec.poll: {0}")]
    Schedule(#[from] ScheduleError),
}

impl Processor {
    pub(super) fn new(input: ForwarderInput) -> Result<(Self, Option<Ticks>), StartError> {
        let ForwarderInput { plan, stores, target, metrics, options } = input;
        let Options { clock, hold_limit, check_record_every, last_words } = options;
        let name = plan.object.slashed();
        let source = find(&stores, "spec.storeRef", &plan.source)?;
        let named = |field, name: &Option<String>| name.as_ref().map(|name| find(&stores, field, name)).transpose();
        let dead_letters = named("spec.onFailure.deadLetterStoreRef", &plan.dead_letters)?;
        if plan.policy.on_failure == OnFailure::DeadLetter && dead_letters.is_none() {
            return Err(StartError::NoDeadLetterStore);
        }
        let responses = named("spec.response.storeRef", &plan.response.store)?;
        let deadline = |name: &Option<String>| {
            let store = name.as_ref().and_then(|name| plan.stores.get(name));
            store.map_or(LONGEST_STORE_DEADLINE, |store| store.deadline)
        };
        let ticks = plan.poll.as_ref().map(|poll| Ticks::of(&poll.schedule, &clock)).transpose()?;
        let processor = Self {
            record_name: plan.object.dotted(),
            source,
            dead_letter_timeout: deadline(&plan.dead_letters),
            dead_letters,
            response_deadline: deadline(&plan.response.store),
            responses,
            target,
            attempt_ceiling: attempt_ceiling(&plan.target),
            expressions: Expressions::compile(&plan)?,
            requests: RequestBuilder::of(&plan).map_err(StartError::Request)?,
            shared: Arc::new(Shared::new(metrics, Suspects::new(&name, last_words))),
            name,
            clock,
            hold_limit,
            check_record_every,
            random: Random::default(),
            reply_noise: Mutex::default(),
            plan,
        };
        Ok((processor, ticks))
    }

    /// Attempts that may be under way at once.
    pub(super) fn concurrency(&self) -> usize {
        usize::from(self.plan.attempts_at_once())
    }

    /// How many messages are taken ahead.
    pub(super) fn window(&self) -> u16 {
        self.plan.window()
    }

    pub(super) async fn read_record(&self) -> Result<Option<Deactivation>, StoreError> {
        let record = bounded(self.source.deactivation(&self.record_name)).await?;
        let uid = &self.plan.object.uid;
        match record {
            // Of an object of this name that was deleted: it says nothing of this one.
            Some(record) if !record.uid.is_empty() && !uid.is_empty() && record.uid != *uid => {
                tracing::info!(processor = %self.name, "removing the record of an earlier processor of this name");
                self.remove_record().await?;
                Ok(None)
            }
            record => Ok(record),
        }
    }

    pub(super) async fn store_record(&self, record: &Deactivation) -> Result<(), StoreError> {
        bounded(self.source.deactivate(&self.record_name, record)).await
    }

    pub(super) async fn remove_record(&self) -> Result<(), StoreError> {
        bounded(self.source.reactivate(&self.record_name)).await
    }
}

/// A store's answer within [`STORE_TIMEOUT`].
pub(super) async fn bounded<T>(answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match tokio::time::timeout(STORE_TIMEOUT, answer).await {
        Ok(result) => result,
        Err(_) => Err(StoreError::NotConnected(format!("no answer in {STORE_TIMEOUT:?}"))),
    }
}

fn find(
    stores: &BTreeMap<String, Arc<dyn MessageStore>>,
    field: &'static str,
    name: &str,
) -> Result<Arc<dyn MessageStore>, StartError> {
    stores.get(name).cloned().ok_or_else(|| StartError::MissingStore { field, name: name.to_owned() })
}

/// Longer than any attempt takes: connect, head, body.
fn attempt_ceiling(target: &TargetPlan) -> Duration {
    let own = match target {
        // Twice for the connect and the head: a stale keep-alive connection is tried again.
        TargetPlan::Http(http) => (http.connect_timeout + http.timeout) * 2 + http.timeout,
        TargetPlan::Store(_) => LONGEST_STORE_DEADLINE,
    };
    own + ATTEMPT_MARGIN
}

/// Numbers that spread waits. Not for secrets.
#[derive(Debug, Default)]
pub(super) struct Random {
    keys: RandomState,
    drawn: AtomicU64,
}

impl Random {
    /// Uniform in `[0, 1)`.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exactly what an f64 holds")]
    pub(super) fn next(&self) -> f64 {
        let bits = self.keys.hash_one(self.drawn.fetch_add(1, Ordering::Relaxed)) >> 11;
        bits as f64 / (1u64 << 53) as f64
    }
}
