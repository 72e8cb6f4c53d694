//! Forwarding: messages out of a store, to a target, in the order and at the pace that the plan asks for.
//!
//! Inputs: a [`ForwarderPlan`], the stores it names, a [`Target`]. Outputs: settled messages, dead letters, stored
//! answers, a [`ProcessorReport`]. It decides nothing about outcomes ([`crate::core::decision`] does) and nothing
//! about who waits for whom ([`crate::core::ordering`] does); it carries decisions out, and it must never settle a
//! message before its next home has it.
//!
//! How it is built, from the outside in:
//!
//! - `worker`: the life of a forwarder. Reads the deactivation record, attaches, works, returns, and again.
//! - `session`: one attachment. One task owns the consumer, the lanes and every decision.
//! - `limits`: what ends an attachment though nobody asked: hold limit, bytes, the end of a batch.
//! - `deliver`: one message through a session. Prepare, attempt, decide, carry out.
//! - `work`: what is waited for. Attempts, dead letters, answers, the record.
//! - `pacing`, `poll`, `held`, `suspects`, `request`, `answer`: rules and values, without a loop of their own.
//! - `preview`: what a processor makes of a message, to be looked at.
//!
//! Why nothing is lost: a message is acknowledged in one place (`Session::acknowledge`), which gets only what
//! `Session::settle` was given; that has two callers, one for a message that was settled before its connection was
//! lost, and one (`leave`) after a success, a stored dead letter, a filter or an explicit drop. Whatever else
//! happens, a panic included, ends in dropping the consumer, which returns what is not acknowledged.

mod answer;
mod clock;
mod connect;
mod deliver;
mod held;
mod limits;
mod noise;
mod orders;
mod pacing;
mod poll;
mod prepare;
mod preview;
mod processor;
mod reply;
mod report;
mod request;
mod session;
mod suspects;
mod work;
mod worker;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

pub use clock::Clock;
pub use connect::{TargetError, target_for};
pub use prepare::{ExpressionError, Failure};
pub use preview::{Preview, Previewed, Sent};
pub use processor::StartError;
pub use report::{Hindrance, LastDelivery, LastFailure, ProcessorReport, ProcessorState};

use crate::plan::ForwarderPlan;
use crate::store::{Connection, MessageStore, StoreError};
use crate::target::Target;
use crate::telemetry::metrics::ProcessorMetrics;
use orders::Sender;
use processor::Processor;
use report::Shared;
use worker::Worker;

/// How long a delivery may be held before no attempt on it starts any more. With the longest attempt (5 min to the
/// head, 5 min for the body) and a response store's deadline (1 min) that stays under the 30 min after which a
/// broker closes the channel.
pub const HOLD_LIMIT: Duration = Duration::from_secs(15 * 60);

/// What a forwarder works with.
#[derive(Debug)]
pub struct ForwarderInput {
    /// What to do.
    pub plan: ForwarderPlan,
    /// Every store that the plan names, by name.
    pub stores: BTreeMap<String, Arc<dyn MessageStore>>,
    /// Where messages go.
    pub target: Arc<dyn Target>,
    /// Where they are counted.
    pub metrics: ProcessorMetrics,
    /// The rest.
    pub options: Options,
}

/// What is usually left as it is.
#[derive(Debug)]
pub struct Options {
    /// Where the time is read.
    pub clock: Clock,
    /// See [`HOLD_LIMIT`].
    pub hold_limit: Duration,
    /// How often the deactivation record is read, where others than this forwarder may write it (another process,
    /// another forwarder on the same processor); it is then also read before a redelivered message is attempted.
    /// `None`: nobody else does.
    pub check_record_every: Option<Duration>,
    /// A file that outlives this process: it says what is being delivered while that may kill it
    /// ([`crate::core::poison`]).
    pub last_words: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { clock: Clock::default(), hold_limit: HOLD_LIMIT, check_record_every: None, last_words: None }
    }
}

/// Starts forwarders.
#[derive(Debug)]
pub struct Forwarder;

impl Forwarder {
    /// Starts one on the current runtime. It runs until its handle is stopped or dropped.
    pub fn start(input: ForwarderInput) -> Result<ForwarderHandle, StartError> {
        let (processor, ticks) = Processor::new(input)?;
        let processor = Arc::new(processor);
        let (orders, received) = orders::channel();
        let (drained, when_drained) = watch::channel(None);
        let handle = ForwarderHandle {
            orders,
            drained: when_drained,
            connection: processor.source.connection(),
            shared: Arc::clone(&processor.shared),
            clock: processor.clock.clone(),
        };
        tokio::spawn(Worker::new(processor, ticks, received).run(drained));
        Ok(handle)
    }
}

/// A running forwarder. Dropping it stops it at once: attempts under way are cut off, everything is returned.
#[derive(Debug)]
pub struct ForwarderHandle {
    orders: Sender,
    drained: watch::Receiver<Option<Drained>>,
    connection: watch::Receiver<Connection>,
    shared: Arc<Shared>,
    clock: Clock,
}

/// How a forwarder stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Attempts that the grace period cut off: what came of them is unknown, and they will be made again.
    pub cut_off: usize,
}

impl ForwarderHandle {
    /// How it stands now.
    pub fn report(&self) -> ProcessorReport {
        let connected = *self.connection.borrow() == Connection::Up;
        self.shared.report(self.clock.wall(), connected)
    }

    /// Wakes when something changed that people want to see at once: the state, a failure, why nothing is
    /// delivered. Not with every message.
    pub fn changed(&self) -> watch::Receiver<()> {
        self.shared.changed()
    }

    /// Stops: no attempt starts any more, those under way may end within `grace`, the rest is returned. Nothing of
    /// it counts as a failed attempt.
    pub async fn stop(&self, grace: Duration) -> Drained {
        self.orders.stop(grace);
        let mut drained = self.drained.clone();
        // The sender goes without a word only if the runtime is shut down around us.
        let drained = drained.wait_for(Option::is_some).await.ok().and_then(|drained| *drained);
        drained.unwrap_or(Drained { cut_off: 0 })
    }

    /// Ends the Deactivated state: removes the record, then delivers from attempt 1 on. Does nothing when active.
    pub async fn reactivate(&self) -> Result<(), StoreError> {
        self.orders.reactivate().await
    }
}
