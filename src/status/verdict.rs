//! What the conditions of an object say, from facts that were just read.
//!
//! Pure: facts in, conditions out. Reasons are stable names that scripts rely on; messages are in lower case and
//! name the object and the remedy.

use super::link::Link;
use crate::api::condition::{
    ACCEPTED, BROKER_CONNECTED, Condition, DEGRADED, DELIVERING, PAUSED, READY, RESOLVED_REFS, TARGET_REACHABLE, Time,
};
use crate::core::poison::SUSPECTED_AFTER;
use crate::core::topology::{Management, Queue, QueueKind};
use crate::forwarder::Hindrance;

/// The conditions of one object, in the making.
#[derive(Debug)]
pub struct Verdict {
    generation: i64,
    now: jiff::Timestamp,
    conditions: Vec<Condition>,
    /// A queue that exists with other arguments: nothing can be stored in it, or taken from it.
    mismatch: Option<String>,
}

impl Verdict {
    /// Nothing is said yet.
    pub fn silent(generation: i64, now: jiff::Timestamp) -> Self {
        Self { generation, now, conditions: Vec::new(), mismatch: None }
    }

    /// Of an object that runs: its spec was accepted, or it would not be here.
    pub fn new(generation: i64, now: jiff::Timestamp) -> Self {
        let mut verdict = Self::silent(generation, now);
        verdict.say(ACCEPTED, Some(true), "Accepted", "");
        verdict
    }

    /// Of an object whose spec is not valid. What was valid before goes on; nothing else is known of it.
    pub fn rejected(generation: i64, now: jiff::Timestamp, reason: &str, message: &str) -> Self {
        let mut verdict = Self::silent(generation, now);
        verdict.say(ACCEPTED, Some(false), reason, message);
        verdict
    }

    fn say(&mut self, kind: &str, holds: Option<bool>, reason: &str, message: &str) {
        self.conditions.push(Condition {
            type_: kind.to_owned(),
            status: holds.map_or("Unknown", |holds| if holds { "True" } else { "False" }).to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_generation: Some(self.generation),
            last_transition_time: Time(self.now),
        });
    }

    /// References: the first that is missing, with its reason.
    pub fn references(&mut self, missing: Option<&Missing>) {
        match missing {
            None => self.say(RESOLVED_REFS, Some(true), "ResolvedRefs", ""),
            Some(missing) => self.say(RESOLVED_REFS, Some(false), missing.reason, &missing.message),
        }
    }

    /// The brokers of all stores that the object uses, by the stores' names. A queue that exists with other arguments
    /// is on a broker that is connected.
    pub fn brokers<'a>(&mut self, stores: impl IntoIterator<Item = (&'a str, Link)>) {
        let mut worst = (Some(true), "Connected".to_owned(), String::new());
        for (store, link) in stores {
            match link {
                Link::Mismatch(text) if self.mismatch.is_none() => {
                    self.mismatch = Some(format!("store `{store}`: {text}"));
                }
                Link::Connecting if worst.0 == Some(true) => {
                    worst = (None, "Connecting".to_owned(), format!("store `{store}` is connecting"));
                }
                Link::Up | Link::Connecting | Link::Mismatch(_) => {}
                // The first is that which the user wrote, before its dead letter queue.
                Link::Down { .. } if worst.0 == Some(false) => {}
                Link::Down { reason, message } => worst = (Some(false), reason, format!("store `{store}`: {message}")),
            }
        }
        self.say(BROKER_CONNECTED, worst.0, &worst.1, &worst.2);
    }

    /// Nobody looks at a broker before the references that lead to it are there.
    pub fn brokers_unresolved(&mut self) {
        self.say(BROKER_CONNECTED, None, "Unresolved", "a reference is missing; see ResolvedRefs");
    }

    /// Whether the last attempt reached the target.
    pub fn target(&mut self, reachable: Option<bool>, last_error: &str) {
        match reachable {
            None => self.say(TARGET_REACHABLE, None, "NotTried", "no attempt was made yet"),
            Some(true) => self.say(TARGET_REACHABLE, Some(true), "Reached", ""),
            Some(false) => self.say(TARGET_REACHABLE, Some(false), "ConnectionError", last_error),
        }
    }

    /// A condition of which nothing new is known.
    pub fn as_before(&mut self, condition: &Condition) {
        self.conditions.push(Condition { observed_generation: Some(self.generation), ..condition.clone() });
    }

    /// What has been said so far, without a sum.
    pub fn so_far(self) -> Vec<Condition> {
        self.conditions
    }

    /// Whether messages are being delivered, or would be if there were any.
    pub fn delivering(&mut self, delivering: Delivering) {
        let (holds, reason, message) = match delivering {
            Delivering::Yes => (true, "Delivering", ""),
            Delivering::Suspended => (false, "Suspended", "spec.suspend is true; set it to false to go on"),
            Delivering::NotStarted => (false, "NotStarted", "it has not started; see ResolvedRefs and Ready"),
            Delivering::Hindered(hindrance) => (false, hindrance.as_str(), explain(hindrance)),
        };
        self.say(DELIVERING, Some(holds), reason, message);
    }

    /// Whether the object is left alone, by its annotation. Only a controller can be told so; edited files are always
    /// taken over.
    pub fn paused(&mut self, paused: bool) {
        if paused {
            let message =
                "the annotation stagepost.dev/paused is \"true\": changes are not taken over; remove it to go on";
            self.say(PAUSED, Some(true), "Paused", message);
        } else {
            self.say(PAUSED, Some(false), "NotPaused", "");
        }
    }

    /// Works, but not as it should.
    pub fn degraded(&mut self, reason: Option<(&str, &str)>) {
        match reason {
            None => self.say(DEGRADED, Some(false), "AsExpected", ""),
            Some((reason, message)) => self.say(DEGRADED, Some(true), reason, message),
        }
    }

    /// Of a processor: by the messages at which its workers died again and again, and by answers that were not stored.
    pub fn degraded_processor(&mut self, suspected: &[String], responses_lost: u64) {
        if !suspected.is_empty() {
            let what = match suspected {
                [one] => format!("message {one}"),
                several => format!("one of the messages {}", several.join(", ")),
            };
            let message = format!(
                "a worker died while it delivered {what}, which had come back {SUSPECTED_AFTER} times or more; nothing is \
                 lost, it stays in the queue. See why it died (kubectl describe pod): give it more memory, or take the \
                 message out of the queue"
            );
            return self.degraded(Some((POISON_SUSPECTED, &message)));
        }
        let lost = format!("{responses_lost} answers could not be stored in spec.response.storeRef");
        self.degraded((responses_lost > 0).then_some(("ResponsesLost", lost.as_str())));
    }

    /// Ready, unless `against` or one of the conditions that count says otherwise; `reason` says how it is ready.
    pub fn finish(mut self, against: Option<(&str, String)>, reason: &str) -> Vec<Condition> {
        let counts = |condition: &&Condition| {
            [ACCEPTED, RESOLVED_REFS, BROKER_CONNECTED].contains(&condition.type_.as_str())
                && condition.status != "True"
        };
        let hindered = self.conditions.iter().find(counts).map(|found| (found.reason.clone(), found.message.clone()));
        let mismatch = self.mismatch.take().map(|text| ("QueueMismatch".to_owned(), text));
        match against.map(|(reason, message)| (reason.to_owned(), message)).or(mismatch).or(hindered) {
            Some((reason, message)) => self.say(READY, Some(false), &reason, &message),
            None => self.say(READY, Some(true), reason, ""),
        }
        self.conditions
    }
}

/// A reference that leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Of the condition, in CamelCase.
    pub reason: &'static str,
    /// What is missing, and what to do.
    pub message: String,
}

/// Whether a processor delivers, and why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivering {
    /// It does, or would if there were any.
    Yes,
    /// The user does not want it to.
    Suspended,
    /// Nothing of it runs.
    NotStarted,
    /// Something stands in the way.
    Hindered(Hindrance),
}

fn explain(hindrance: Hindrance) -> &'static str {
    match hindrance {
        Hindrance::Deactivated => {
            "it stopped itself at a message that failed; repair the cause, then `stagepost reactivate`"
        }
        Hindrance::SourceUnavailable => "the source can't be consumed now; it is tried again",
        Hindrance::DeadLetterStoreUnavailable => {
            "the dead letter store takes nothing now; the message is held and tried again"
        }
        Hindrance::DeactivationNotStored => "the record of the deactivation can't be stored now; the message is held",
        Hindrance::PausedByTarget => "the target asked for a pause by retry-after",
        Hindrance::BreakerOpen => "the circuit breaker is open after many failures in a row",
        Hindrance::WaitingForRetry => "the next attempt waits for its time",
        Hindrance::WindowFull => "the window is full of messages whose key waits for a retry",
    }
}

/// Why a route is degraded whose callers wait for less than an attempt may take.
pub const REPLY_TOO_SHORT: &str = "RetryExceedsReply";

/// Why a processor is degraded whose workers die at a message.
pub const POISON_SUSPECTED: &str = "PoisonSuspected";

/// A queue that we did not declare may drop what is returned too often; AMQP does not tell.
pub fn unknown_limit(queue: &Queue) -> Option<(&'static str, &'static str)> {
    (queue.management == Management::Existing && queue.kind == QueueKind::Quorum).then_some((
        "DeliveryLimitUnknown",
        "the queue was not declared by us: without a large x-delivery-limit the broker drops or moves messages that are \
         returned to it, and that can't be seen; declare it with x-delivery-limit 1000000",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::condition::find;
    use crate::core::topology::Consumers;

    fn verdict() -> Verdict {
        Verdict::new(3, jiff::Timestamp::UNIX_EPOCH)
    }

    fn said(conditions: &[Condition], kind: &str) -> (String, String) {
        let found = find(conditions, kind).unwrap();
        (found.status.clone(), found.reason.clone())
    }

    fn pair(status: &str, reason: &str) -> (String, String) {
        (status.to_owned(), reason.to_owned())
    }

    #[test]
    fn ready_names_the_first_condition_that_speaks_against_it() {
        let mut missing = verdict();
        missing.references(Some(&Missing { reason: "ServiceNotFound", message: "give --service".to_owned() }));
        missing.brokers([("orders", Link::Down { reason: "NotConnected".to_owned(), message: "refused".to_owned() })]);
        let conditions = missing.finish(None, "Ready");
        assert_eq!(said(&conditions, READY), pair("False", "ServiceNotFound"));
        assert_eq!(said(&conditions, BROKER_CONNECTED), pair("False", "NotConnected"));
    }

    #[test]
    fn a_target_that_can_not_be_reached_does_not_count() {
        let mut unreachable = verdict();
        unreachable.references(None);
        unreachable.brokers([("orders", Link::Up)]);
        unreachable.target(Some(false), "connection refused");
        unreachable.delivering(Delivering::Hindered(Hindrance::WaitingForRetry));
        let conditions = unreachable.finish(None, "Ready");
        assert_eq!(said(&conditions, READY), pair("True", "Ready"));
        assert_eq!(said(&conditions, DELIVERING), pair("False", "WaitingForRetry"));
    }

    #[test]
    fn a_wanted_suspension_is_ready_and_a_deactivation_is_not() {
        let conditions = verdict().finish(None, "Suspended");
        assert_eq!(said(&conditions, READY), pair("True", "Suspended"));
        let conditions = verdict().finish(Some(("Deactivated", String::new())), "Ready");
        assert_eq!(said(&conditions, READY), pair("False", "Deactivated"));
    }

    #[test]
    fn a_queue_mismatch_is_no_lost_connection() {
        let mut mismatch = verdict();
        mismatch.brokers([("orders", Link::Mismatch("other arguments".to_owned()))]);
        assert_eq!(said(&mismatch.finish(None, "Ready"), BROKER_CONNECTED), pair("True", "Connected"));
    }

    #[test]
    fn only_a_quorum_queue_that_we_did_not_declare_has_unknown_limits() {
        let queue = |kind, management| Queue {
            name: "q".to_owned(),
            kind,
            management,
            consumers: Consumers::SingleActive,
            max_length: None,
            max_length_bytes: None,
        };
        let reason = |kind, management| unknown_limit(&queue(kind, management)).map(|(reason, _)| reason);
        assert_eq!(reason(QueueKind::Quorum, Management::Existing), Some("DeliveryLimitUnknown"));
        assert_eq!(reason(QueueKind::Quorum, Management::Declare), None);
        assert_eq!(reason(QueueKind::Classic, Management::Existing), None);
    }
}
