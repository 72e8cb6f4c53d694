//! What the conditions of an object say, from facts that were just read.
//!
//! Pure: facts in, conditions out. Reasons are stable names that scripts rely on; messages are in lower case and
//! name the object and the remedy.

use crate::api::condition::{
    ACCEPTED, BROKER_CONNECTED, Condition, DEGRADED, DELIVERING, PAUSED, READY, RESOLVED_REFS, TARGET_REACHABLE, Time,
};
use crate::forwarder::Hindrance;
use crate::store::{Connection, Fault, StoreError};

/// The conditions of one object, in the making.
#[derive(Debug)]
pub(super) struct Verdict {
    generation: i64,
    now: jiff::Timestamp,
    conditions: Vec<Condition>,
}

impl Verdict {
    /// Of an object that runs: its spec was accepted, or it would not be here.
    pub(super) fn new(generation: i64, now: jiff::Timestamp) -> Self {
        let mut verdict = Self { generation, now, conditions: Vec::new() };
        verdict.say(ACCEPTED, Some(true), "Accepted", "");
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
    pub(super) fn references(&mut self, missing: Option<&Missing>) {
        match missing {
            None => self.say(RESOLVED_REFS, Some(true), "ResolvedRefs", ""),
            Some(missing) => self.say(RESOLVED_REFS, Some(false), missing.reason, &missing.message),
        }
    }

    /// The brokers of all stores that the object uses, by the stores' names. A queue that exists with other arguments
    /// is on a broker that is connected.
    pub(super) fn brokers<'a>(&mut self, stores: impl IntoIterator<Item = (&'a str, Connection)>) {
        let mut worst = (Some(true), "Connected", String::new());
        for (store, connection) in stores {
            match connection {
                Connection::Connecting if worst.0 == Some(true) => {
                    worst = (None, "Connecting", format!("store `{store}` is connecting"));
                }
                Connection::Up | Connection::Connecting | Connection::Down(StoreError::Mismatch(_)) => {}
                Connection::Down(error) => {
                    worst = (Some(false), down(&error), format!("store `{store}`: {}", remedy(&error)));
                }
            }
        }
        self.say(BROKER_CONNECTED, worst.0, worst.1, &worst.2);
    }

    /// Whether the last attempt reached the target.
    pub(super) fn target(&mut self, reachable: Option<bool>, last_error: &str) {
        match reachable {
            None => self.say(TARGET_REACHABLE, None, "NotTried", "no attempt was made yet"),
            Some(true) => self.say(TARGET_REACHABLE, Some(true), "Reached", ""),
            Some(false) => self.say(TARGET_REACHABLE, Some(false), "ConnectionError", last_error),
        }
    }

    /// Whether messages are being delivered, or would be if there were any.
    pub(super) fn delivering(&mut self, delivering: Delivering) {
        let (holds, reason, message) = match delivering {
            Delivering::Yes => (true, "Delivering", ""),
            Delivering::Suspended => (false, "Suspended", "spec.suspend is true; set it to false to go on"),
            Delivering::NotStarted => (false, "NotStarted", "it has not started; see ResolvedRefs and Ready"),
            Delivering::Hindered(hindrance) => (false, hindrance.as_str(), explain(hindrance)),
        };
        self.say(DELIVERING, Some(holds), reason, message);
    }

    /// Only a controller can be told to leave an object alone; edited files are always taken over.
    pub(super) fn never_paused(&mut self) {
        self.say(PAUSED, Some(false), "NotPaused", "");
    }

    /// Works, but not as it should.
    pub(super) fn degraded(&mut self, reason: Option<(&str, &str)>) {
        match reason {
            None => self.say(DEGRADED, Some(false), "AsExpected", ""),
            Some((reason, message)) => self.say(DEGRADED, Some(true), reason, message),
        }
    }

    /// Ready, unless `against` or one of the conditions that count says otherwise; `reason` says how it is ready.
    pub(super) fn finish(mut self, against: Option<(&str, String)>, reason: &str) -> Vec<Condition> {
        let counts = |condition: &&Condition| {
            [ACCEPTED, RESOLVED_REFS, BROKER_CONNECTED].contains(&condition.type_.as_str())
                && condition.status != "True"
        };
        let hindered = self.conditions.iter().find(counts).map(|found| (found.reason.clone(), found.message.clone()));
        match against.map(|(reason, message)| (reason.to_owned(), message)).or(hindered) {
            Some((reason, message)) => self.say(READY, Some(false), &reason, &message),
            None => self.say(READY, Some(true), reason, ""),
        }
        self.conditions
    }
}

/// A reference that leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// Whether a processor delivers, and why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivering {
    Yes,
    Suspended,
    NotStarted,
    Hindered(Hindrance),
}

/// The class of a broker's failure; details are in the message.
fn down(error: &StoreError) -> &'static str {
    match error {
        StoreError::Unreachable { fault, .. } => fault.reason(),
        StoreError::NotConnected(_) | StoreError::Stale | StoreError::InUse(_) => "NotConnected",
        StoreError::Mismatch(_) => "QueueMismatch",
        StoreError::NotFound(_) => "NotFound",
        StoreError::Disk(_) => "DiskFailed",
        StoreError::Corrupt(_) => "DataCorrupt",
        StoreError::Closed => "Closed",
    }
}

/// What to do about it. What a broker said in its own words is in the log, not in a status that many may read.
fn remedy(error: &StoreError) -> String {
    let StoreError::Unreachable { fault, detail } = error else { return error.to_string() };
    match fault {
        Fault::Refused => {
            "the broker refuses or ends connections; see that it runs, and that host, port and scheme are right"
        }
        Fault::TimedOut => "the broker does not answer; see that host and port are right and nothing blocks the way",
        Fault::AuthenticationFailed => {
            "the broker refuses the user, or its use of the virtual host or queue; correct the Secret or the permissions"
        }
        Fault::TlsFailed => {
            "TLS with the broker fails; see that it speaks TLS on that port, and that its certificate is valid, is for \
             this host name, and is signed by the CA that is given"
        }
        Fault::NotFound => "no such virtual host, or no such host name; correct it, or create it",
        Fault::InvalidSecret => return detail.clone(),
    }
    .to_owned()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::condition::find;

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
        missing.brokers([("orders", Connection::Down(StoreError::NotConnected("refused".to_owned())))]);
        let conditions = missing.finish(None, "Ready");
        assert_eq!(said(&conditions, READY), pair("False", "ServiceNotFound"));
        assert_eq!(said(&conditions, BROKER_CONNECTED), pair("False", "NotConnected"));
    }

    #[test]
    fn a_target_that_can_not_be_reached_does_not_count() {
        let mut unreachable = verdict();
        unreachable.references(None);
        unreachable.brokers([("orders", Connection::Up)]);
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
        mismatch.brokers([("orders", Connection::Down(StoreError::Mismatch("other arguments".to_owned())))]);
        assert_eq!(said(&mismatch.finish(None, "Ready"), BROKER_CONNECTED), pair("True", "Connected"));
    }
}
