//! A message in our hands, what has happened to it, and what is remembered of it after it was returned.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::suspects::{Suspects, Suspicion};
use crate::core::decision::{Reason, Tally};
use crate::core::message::{Death, Message, MessageId};
use crate::core::outcome::Outcome;
use crate::core::poison::SUSPECTED_AFTER;
use crate::expression::Content;
use crate::store::Delivery;

/// Most histories that are kept of returned messages: two windows of the widest, many of most. Beyond it the oldest is
/// forgotten, and that message starts at attempt 1, as after a crash.
const MAX_REMEMBERED: usize = 8192;
/// Most bytes of an error text in a dead letter, a record or a status.
const MAX_ERROR_BYTES: usize = 1024;

/// A delivery that is neither acknowledged nor returned.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) delivery: Delivery,
    /// Bytes it holds in memory, the result of its transform included.
    pub(super) weight: usize,
    /// When it was taken, on the forwarder's clock: the hold limit counts from here.
    pub(super) taken: Duration,
    /// The deactivation record must be read before an attempt starts.
    pub(super) unchecked: bool,
    /// It was handed out before, and not returned by us: somebody who is gone may have delivered it.
    pub(super) suspect: bool,
    /// Present until its first attempt has ended, if it may be what killed those before us.
    pub(super) suspicion: Option<Suspicion>,
    /// The result of the transform, made before the first attempt; or why there is none, as text.
    pub(super) content: Option<Result<Content, String>>,
    /// What its caller is told, if one waits, once it is decided what becomes of it.
    pub(super) reply: Option<Message>,
    pub(super) history: History,
}

impl Held {
    /// Before anything is done with it that may kill this process, if it may be what killed those before us.
    pub(super) fn note_if_suspected(&mut self, suspects: &Arc<Suspects>) {
        if self.suspect && self.suspicion.is_none() && self.delivery.returned >= SUSPECTED_AFTER {
            self.suspicion = Some(suspects.suspect(&self.delivery.message.id, self.delivery.returned));
        }
    }

    /// It has an outcome.
    pub(super) fn has_outcome(&mut self) {
        if let Some(suspicion) = self.suspicion.take() {
            suspicion.clear();
        }
    }

    /// Keeps what its caller is to be told. Answers how many bytes more it holds.
    pub(super) fn owes(&mut self, reply: Option<Message>) -> usize {
        let more = reply.as_ref().map_or(0, Message::weight);
        self.weight += more;
        self.reply = reply;
        more
    }
}

/// What has happened to a message so far.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    pub(super) tally: Tally,
    pub(super) phase: Phase,
    first_at: Option<Timestamp>,
    last_at: Option<Timestamp>,
    last_status: Option<u16>,
    last_error: Option<String>,
}

/// What must be done next with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Phase {
    /// An attempt at the target.
    #[default]
    Attempt,
    /// It has finally failed: it moves to the dead letter store, then leaves the source.
    DeadLetter(Reason),
    /// It has its outcome, and only the acknowledgement is missing.
    Settled,
}

impl History {
    /// An attempt starts.
    pub(super) fn began(&mut self, now: Timestamp) {
        self.first_at.get_or_insert(now);
    }

    /// An attempt ended without success.
    pub(super) fn failed(&mut self, outcome: &Outcome, now: Timestamp) {
        self.last_at = Some(now);
        self.last_status = outcome.status();
        self.last_error = Some(bounded(outcome.describe()));
    }

    /// It failed before anything was sent.
    pub(super) fn failed_before_sending(&mut self, error: String, now: Timestamp) {
        self.last_at = Some(now);
        self.last_error = Some(bounded(error));
    }

    /// The last error in words.
    pub(super) fn last_error(&self) -> &str {
        self.last_error.as_deref().unwrap_or_default()
    }

    /// The last status, if the target answered the last attempt.
    pub(super) fn last_status(&self) -> Option<u16> {
        self.last_status
    }

    /// The message as it goes to the dead letter store: the original, and why it is there.
    pub(super) fn dead_letter(&self, original: &Delivery, reason: Reason, processor: &str, source: &str) -> Message {
        Message {
            death: Some(Death {
                reason: reason.as_str().to_owned(),
                attempts: self.tally.counted,
                last_status: self.last_status,
                first_at: self.first_at,
                last_at: self.last_at,
                last_error: self.last_error.clone(),
                processor: processor.to_owned(),
                source: source.to_owned(),
            }),
            ..original.message.again(&original.source)
        }
    }
}

/// Cuts a text at 1 KiB, between two characters.
fn bounded(mut text: String) -> String {
    if text.len() > MAX_ERROR_BYTES {
        let end = (0..=MAX_ERROR_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// Histories of messages that went back to the store, so that a plan of hours goes on when they are taken again.
///
/// Lives in memory only: a crash forgets it, and the message starts at attempt 1.
#[derive(Debug, Default)]
pub(super) struct Memory {
    known: HashMap<MessageId, (History, Duration)>,
    order: VecDeque<MessageId>,
}

impl Memory {
    /// Keeps the history of a message that goes back, and when its next attempt is due.
    pub(super) fn remember(&mut self, message: &Message, history: History, not_before: Duration) {
        // An id is ours, and unique, only if the message came in over HTTP. A copy of an id that another client
        // used twice must not pass for the message that was delivered.
        if history.phase == Phase::Settled && message.origin.is_none() {
            return;
        }
        if self.known.insert(message.id.clone(), (history, not_before)).is_none() {
            self.order.push_back(message.id.clone());
        }
        while self.order.len() > MAX_REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }

    /// Takes out what is known of a message that was taken (again).
    pub(super) fn recall(&mut self, id: &MessageId) -> Option<(History, Duration)> {
        if self.known.is_empty() {
            return None;
        }
        let found = self.known.remove(id)?;
        // What comes again comes in the order in which it went back: it is near the front.
        if let Some(at) = self.order.iter().position(|other| other == id) {
            self.order.remove(at);
        }
        Some(found)
    }

    /// Forgets all failures: after a reactivation everything starts at attempt 1. What was delivered stays known.
    pub(super) fn forget_failures(&mut self) {
        self.known.retain(|_, (history, _)| history.phase == Phase::Settled);
        self.order.retain(|id| self.known.contains_key(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: &str) -> Message {
        Message::new(MessageId::new(id), "")
    }

    #[test]
    fn an_error_text_is_cut_between_characters() {
        let text = bounded("ä".repeat(1000));
        assert_eq!(text.len(), 1024);
        assert_eq!(bounded(format!("x{}", "ä".repeat(1000))).len(), 1023);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_taken_once() {
        let mut memory = Memory::default();
        for number in 0..MAX_REMEMBERED + 10 {
            memory.remember(&message(&number.to_string()), History::default(), Duration::ZERO);
        }
        assert_eq!(memory.known.len(), MAX_REMEMBERED);
        assert!(memory.recall(&MessageId::new("9")).is_none());
        assert!(memory.recall(&MessageId::new("10")).is_some());
        assert!(memory.recall(&MessageId::new("10")).is_none());
    }

    #[test]
    fn a_delivered_message_whose_id_is_not_ours_is_not_taken_for_delivered_again() {
        let mut memory = Memory::default();
        memory.remember(&message("m"), History { phase: Phase::Settled, ..History::default() }, Duration::ZERO);
        assert!(memory.recall(&MessageId::new("m")).is_none());
    }
}
