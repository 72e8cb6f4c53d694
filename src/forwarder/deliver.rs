//! One message through a session: prepare, attempt, decide, and carry the decision out.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::answer;
use super::held::Phase;
use super::pacing::Start;
use super::reply;
use super::report::{LastDelivery, LastFailure, Leaving};
use super::session::{End, Session};
use super::work::{self, Done, Work};
use crate::core::deactivation::Deactivation;
use crate::core::decision::{Decision, Reason, Verdict, decide, give_up, pause_asked};
use crate::core::ordering::Sequence;
use crate::core::outcome::Outcome;
use crate::expression::Content;
use crate::target::Answer;

/// What stands between a message and its attempt.
enum Preparation {
    Ready(Content),
    Filtered,
    Failed(String),
}

impl Session<'_> {
    /// Starts the next step of the message that is first in its lane, unless pacing holds attempts back.
    pub(super) fn begin(&mut self, delivery: Sequence, now: Duration) -> Start {
        const STARTED: Start = Start::Now { probe: false };
        let Some(held) = self.held.get_mut(&delivery) else {
            self.lanes.finish(delivery);
            return STARTED;
        };
        match held.history.phase {
            Phase::Settled => {
                self.lanes.start(delivery);
                self.settle(delivery);
                STARTED
            }
            Phase::DeadLetter(reason) => {
                self.lanes.start(delivery);
                self.dead_letter(delivery, reason);
                STARTED
            }
            Phase::Attempt if held.unchecked => {
                self.lanes.start(delivery);
                let check = work::check(&self.processor, Some(delivery));
                self.work(check);
                STARTED
            }
            Phase::Attempt => self.begin_attempt(delivery, now),
        }
    }

    fn begin_attempt(&mut self, delivery: Sequence, now: Duration) -> Start {
        let wall = self.processor.clock.wall();
        if self.held.get(&delivery).is_some_and(|held| reply::is_too_late(&held.delivery.message, wall)) {
            self.lanes.start(delivery);
            self.leave(delivery, Leaving::Expired);
            return Start::Now { probe: false };
        }
        // The transform, which runs once, may be what kills; and so may the attempt, see below.
        if let Some(held) = self.held.get_mut(&delivery).filter(|held| held.content.is_none()) {
            held.note_if_suspected(&self.processor.shared.suspects);
        }
        let content = match self.prepare(delivery) {
            Preparation::Ready(content) => content,
            Preparation::Filtered => {
                self.lanes.start(delivery);
                if let Some(held) = self.held.get_mut(&delivery) {
                    held.has_outcome();
                    self.bytes += held.owes(reply::of_filtered(&held.delivery.message, wall));
                }
                self.leave(delivery, Leaving::Filtered);
                return Start::Now { probe: false };
            }
            Preparation::Failed(error) => {
                self.lanes.start(delivery);
                self.transform_failed(delivery, error);
                return Start::Now { probe: false };
            }
        };
        let Some(held) = self.held.get_mut(&delivery) else { return Start::Now { probe: false } };
        let number = held.history.tally.counted.saturating_add(1);
        let processor = &self.processor;
        let request = processor.requests.build(&processor.expressions, &held.delivery, &content, number);
        held.content = Some(Ok(content));
        let request = match request {
            Ok(request) => request,
            Err(failure) => {
                self.lanes.start(delivery);
                self.transform_failed(delivery, failure.problem);
                return Start::Now { probe: false };
            }
        };
        // Asked last: from here on it is an attempt.
        let start = self.state.pacing.ask(delivery, now);
        if let Start::Now { probe } = start {
            held.note_if_suspected(&processor.shared.suspects);
            held.history.began(processor.clock.wall());
            if std::mem::take(&mut held.suspect) {
                processor.shared.metrics.redelivered.inc();
            }
            self.lanes.start(delivery);
            self.attempts += 1;
            let attempt = work::attempt(processor, delivery, request, probe);
            self.work(attempt);
        } else {
            // It only waits: whatever this process dies of meanwhile, it is not this message.
            held.suspicion = None;
        }
        start
    }

    /// The message's content after the transform, which runs once.
    fn prepare(&mut self, delivery: Sequence) -> Preparation {
        let Some(held) = self.held.get_mut(&delivery) else { return Preparation::Filtered };
        match held.content.take() {
            Some(Ok(content)) => return Preparation::Ready(content),
            Some(Err(error)) => return Preparation::Failed(error),
            None => {}
        }
        match self.processor.expressions.content(&held.delivery.message) {
            Ok(Some(content)) => {
                // Kept from now on beside the message: it counts like another one.
                let more = content.weight_beside(&held.delivery.message);
                held.weight += more;
                self.bytes += more;
                Preparation::Ready(content)
            }
            Ok(None) => Preparation::Filtered,
            Err(failure) => Preparation::Failed(failure.problem),
        }
    }

    /// A piece of work has ended.
    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::Attempted { delivery, answer, probe, at } => self.attempted(delivery, &answer, probe, at),
            Done::DeadLettered { delivery, stored: true } => self.leave(delivery, Leaving::DeadLettered),
            // It stays a dead letter to be: when it is taken again, it is tried again.
            Done::DeadLettered { stored: false, .. } => {}
            Done::Responded { delivery } => self.leave(delivery, Leaving::Delivered),
            Done::Replied { delivery } => self.replied(delivery),
            Done::Recorded { record, stored: true } => self.end(End::Deactivated(record)),
            Done::Recorded { record, stored: false } => self.state.unrecorded = Some(record),
            Done::Checked { delivery, found } => self.checked(delivery, found),
        }
    }

    fn attempted(&mut self, delivery: Sequence, answer: &Answer, probe: bool, at: Timestamp) {
        self.attempts = self.attempts.saturating_sub(1);
        let now = self.processor.clock.elapsed();
        let outcome = &answer.outcome;
        let processor = Arc::clone(&self.processor);
        let policy = &processor.plan.policy;
        match outcome {
            Outcome::Cancelled => self.state.pacing.cancelled(probe, now),
            // Nothing was sent: it says nothing of the target.
            Outcome::Invalid(_) => {
                self.state.pacing.cancelled(probe, now);
                processor.shared.metrics.attempted(outcome.label(), answer.elapsed);
            }
            _ => {
                let verdict = policy.outcomes.verdict(outcome);
                self.state.pacing.ended(delivery, probe, verdict == Verdict::Retry, now);
                processor.shared.metrics.attempted(outcome.label(), answer.elapsed);
                self.reached(outcome);
            }
        }
        if answer.repeated {
            processor.shared.metrics.stale_keep_alive.inc();
        }
        let Some(held) = self.held.get_mut(&delivery) else { return };
        if *outcome != Outcome::Cancelled {
            held.has_outcome();
        }
        held.history.tally = held.history.tally.after(policy, outcome);
        let decision = decide(policy, held.history.tally, outcome, at, processor.random.next());
        if decision == Decision::Settle {
            processor.shared.succeeded(LastDelivery { time: at, status: outcome.status() });
            return self.delivered(delivery, answer, at);
        }
        if let Some(pause) = pause_asked(policy, outcome, at) {
            self.state.pacing.pause(now.saturating_add(pause));
        }
        if !matches!(decision, Decision::RetryAfter { .. } | Decision::Return) {
            self.bytes += held.owes(reply::of_answer(&held.delivery.message, answer, at));
        }
        if *outcome != Outcome::Cancelled {
            self.attempt_failed(delivery, answer, decision, at);
        }
        self.carry_out(delivery, decision, now);
    }

    /// Carries out what was decided about a message that was not delivered.
    fn carry_out(&mut self, delivery: Sequence, decision: Decision, now: Duration) {
        match decision {
            Decision::RetryAfter { delay, .. } => self.lanes.retry(delivery, now.saturating_add(delay)),
            Decision::DeadLetter(reason) => self.dead_letter(delivery, reason),
            Decision::Deactivate(reason) => self.deactivate(delivery, reason),
            Decision::Drop(reason) => {
                self.tell_given_up(delivery, reason, "message discarded");
                self.leave(delivery, Leaving::Dropped);
            }
            Decision::Return | Decision::Settle => self.lanes.retry(delivery, now),
        }
    }

    /// The target has it. What it answered is stored first if somebody wants it.
    fn delivered(&mut self, delivery: Sequence, answer: &Answer, at: Timestamp) {
        let Some(held) = self.held.get_mut(&delivery) else { return };
        let processor = Arc::clone(&self.processor);
        let message = Arc::clone(&held.delivery.message);
        answer::log(&processor, &message, answer);
        // From here on only the acknowledgement may be missing: the target is not called again for it.
        held.history.phase = Phase::Settled;
        self.bytes += held.owes(reply::of_answer(&message, answer, at));
        if processor.responses.is_some() {
            match answer::message(&message, answer, at) {
                Ok(Some(response)) => {
                    let told = self.reply(delivery);
                    return self.work(work::after(told, work::respond(&processor, delivery, response)));
                }
                Ok(None) => {}
                Err(problem) => {
                    processor.shared.response_lost();
                    tracing::warn!(processor = %processor.name, message_id = %message.id, problem, "answer not stored");
                }
            }
        }
        self.leave(delivery, Leaving::Delivered);
    }

    /// It has its outcome. Its caller, if one waits, is told before it leaves the source.
    fn leave(&mut self, delivery: Sequence, how: Leaving) {
        self.processor.shared.left(how);
        match self.reply(delivery) {
            Some(told) => {
                if let Some(held) = self.held.get_mut(&delivery) {
                    held.history.phase = Phase::Settled;
                }
                self.work(told);
            }
            None => self.settle(delivery),
        }
    }

    /// What tells the caller, if one waits and was not told yet.
    fn reply(&mut self, delivery: Sequence) -> Option<Work> {
        let held = self.held.get_mut(&delivery)?;
        let reply = held.reply.take()?;
        let to = held.delivery.message.reply_to.clone()?;
        Some(work::tell(&self.processor, delivery, to, reply, self.over.clone()))
    }

    fn replied(&mut self, delivery: Sequence) {
        if self.held.get(&delivery).is_some_and(|held| held.history.phase == Phase::Settled) {
            self.settle(delivery);
        }
    }

    /// Moves a message that has finally failed to the dead letter store; it leaves the source after that.
    fn dead_letter(&mut self, delivery: Sequence, reason: Reason) {
        let Some(held) = self.held.get_mut(&delivery) else { return };
        held.history.phase = Phase::DeadLetter(reason);
        if self.consumer.is_none() {
            // It can't be acknowledged any more: when it is taken again, it goes on from here.
            if let Some(told) = self.reply(delivery) {
                self.work(told);
            }
            return;
        }
        let processor = Arc::clone(&self.processor);
        let message = held.history.dead_letter(&held.delivery, reason, &processor.name, processor.source.name());
        self.tell_given_up(delivery, reason, "message moves to the dead letter store");
        let told = self.reply(delivery);
        self.work(work::after(told, work::dead_letter(&processor, delivery, message, self.over.clone())));
    }

    /// Stops the processor: the record first, then everything else.
    fn deactivate(&mut self, delivery: Sequence, reason: Reason) {
        let Some(held) = self.held.get(&delivery) else { return };
        if std::mem::replace(&mut self.deactivating, true) {
            // Another message was first; this one stays too.
            if let Some(told) = self.reply(delivery) {
                self.work(told);
            }
            return;
        }
        let record = Deactivation {
            uid: self.processor.plan.object.uid.clone(),
            time: self.processor.clock.wall(),
            message_id: held.delivery.message.id.to_string(),
            reason: reason.as_str().to_owned(),
            message: held.history.last_error().to_owned(),
            attempts: held.history.tally.counted,
        };
        let told = self.reply(delivery);
        self.work(work::after(told, work::record(&self.processor, record, self.over.clone())));
    }

    /// Nothing was sent, and never can be.
    fn transform_failed(&mut self, delivery: Sequence, error: String) {
        let (wall, now) = (self.processor.clock.wall(), self.processor.clock.elapsed());
        let Some(held) = self.held.get_mut(&delivery) else { return };
        if let Some(untold) = self.state.noise.expression.due(now) {
            let message_id = &held.delivery.message.id;
            tracing::warn!(processor = %self.processor.name, %message_id, error, untold, "an expression failed on a message");
        }
        held.has_outcome();
        self.bytes += held.owes(reply::of_failed_expression(&held.delivery.message, wall));
        held.history.failed_before_sending(error, wall);
        let reason = Reason::TransformFailed;
        self.processor.shared.failed(LastFailure {
            time: wall,
            message_id: held.delivery.message.id.to_string(),
            reason: reason.as_str(),
            status: None,
            message: held.history.last_error().to_owned(),
        });
        self.carry_out(delivery, give_up(&self.processor.plan.policy, reason), now);
    }

    fn attempt_failed(&mut self, delivery: Sequence, answer: &Answer, decision: Decision, at: Timestamp) {
        let outcome = &answer.outcome;
        let Some(held) = self.held.get_mut(&delivery) else { return };
        held.history.failed(outcome, at);
        let reason = match decision {
            Decision::DeadLetter(reason) | Decision::Deactivate(reason) | Decision::Drop(reason) => reason.as_str(),
            Decision::RetryAfter { .. } | Decision::Return | Decision::Settle => outcome.label(),
        };
        let message_id = held.delivery.message.id.to_string();
        let error = held.history.last_error();
        let attempt = held.history.tally.counted;
        tracing::debug!(processor = %self.processor.name, message_id, attempt, error, then = %decision, "attempt failed");
        if held.history.tally.failures == 1
            && let Some(untold) = self.state.noise.failing.due(self.processor.clock.elapsed())
        {
            tracing::warn!(processor = %self.processor.name, message_id, error, then = %decision, untold, "a message begins to fail");
        }
        self.processor.shared.attempt_failed(LastFailure {
            time: at,
            reason,
            status: outcome.status(),
            message: error.to_owned(),
            message_id,
        });
    }

    fn tell_given_up(&mut self, delivery: Sequence, reason: Reason, what: &'static str) {
        let Some(held) = self.held.get(&delivery) else { return };
        let (message_id, error) = (&held.delivery.message.id, held.history.last_error());
        let (attempts, status) = (held.history.tally.counted, held.history.last_status());
        let name = &self.processor.name;
        let reason = reason.as_str();
        tracing::debug!(processor = %name, %message_id, reason, attempts, what);
        if let Some(untold) = self.state.noise.given_up.due(self.processor.clock.elapsed()) {
            tracing::warn!(processor = %name, %message_id, reason, attempts, status, error, untold, "{what}");
        }
    }

    /// Only a failure to connect tells that a target is out of reach.
    fn reached(&mut self, outcome: &Outcome) {
        let reachable = !matches!(outcome, Outcome::ConnectionError(_) | Outcome::Tls(_));
        let before = self.processor.shared.reached(reachable);
        let name = &self.processor.name;
        if !reachable && before != Some(false) {
            tracing::warn!(processor = %name, error = outcome.describe(), "the target can't be reached");
        } else if reachable && before == Some(false) {
            tracing::info!(processor = %name, "the target is reached again");
        }
    }
}
