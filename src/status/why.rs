//! What of a processor's conditions one must see first, in one word: the column REASON. Pure.
//!
//! Where an Event tells the same, it has the same name, but for lost answers (`Degraded`).

use super::verdict::POISON_SUSPECTED;
use crate::api::condition::{
    ACCEPTED, BROKER_CONNECTED, Condition, DEGRADED, DELIVERING, PAUSED, READY, RESOLVED_REFS, TARGET_REACHABLE, find,
};

/// Reasons of `Delivering` that are our side's affair, whatever the target does.
const OURS: [&str; 3] = ["SourceUnavailable", "DeadLetterStoreUnavailable", "DeactivationNotStored"];

/// Reasons of `Ready` that say that there is no pod, and not why.
const NO_POD: [&str; 2] = ["Progressing", "PodNotStarted"];

/// The word; `None` while nothing is known.
pub fn why(conditions: &[Condition]) -> Option<&str> {
    let ready = find(conditions, READY)?;
    let failing = |kind: &str| find(conditions, kind).filter(|found| found.status != "True");
    let degraded = find(conditions, DEGRADED).filter(|found| found.status == "True");
    let poison = degraded.filter(|found| found.reason == POISON_SUSPECTED);
    let delivering = failing(DELIVERING);
    if find(conditions, PAUSED).is_some_and(|paused| paused.status == "True") {
        // What the others say may be old.
        return Some("Paused");
    }
    if ready.status != "True" {
        // A reason alone does not tell what refuses, or what was not found.
        let of = |kind: &str| failing(kind).filter(|found| found.reason == ready.reason);
        let killed = poison.filter(|_| NO_POD.contains(&&*ready.reason));
        return Some(match (of(ACCEPTED), of(RESOLVED_REFS), of(BROKER_CONNECTED), killed) {
            (None, Some(_), _, _) => "ReferenceMissing",
            (None, None, Some(broker), _) if broker.status == "False" => "BrokerLost",
            (None, None, None, Some(killed)) => &killed.reason,
            _ => &ready.reason,
        });
    }
    if ready.reason != "Ready" {
        return Some(&ready.reason);
    }
    if let Some(poison) = poison {
        return Some(&poison.reason);
    }
    if let Some(ours) = delivering.filter(|found| OURS.contains(&&*found.reason)) {
        return Some(&ours.reason);
    }
    if find(conditions, TARGET_REACHABLE).is_some_and(|target| target.status == "False") {
        return Some("TargetUnreachable");
    }
    Some(delivering.or(degraded).map_or("Delivering", |found| &found.reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forwarder::Hindrance;
    use crate::status::link::Link;
    use crate::status::verdict::{Delivering, Missing, Verdict};

    /// How a processor stands in which everything is well, but for what a test makes of it.
    #[derive(Default)]
    struct Stands<'a> {
        missing: Option<Missing>,
        link: Option<Link>,
        unreachable: bool,
        hindrance: Option<Hindrance>,
        suspected: &'a [String],
        responses_lost: u64,
        paused: bool,
        against: Option<&'static str>,
        ready: Option<&'static str>,
    }

    fn word(stands: Stands<'_>) -> String {
        let mut verdict = Verdict::new(1, jiff::Timestamp::UNIX_EPOCH);
        verdict.references(stands.missing.as_ref());
        verdict.brokers([("orders", stands.link.unwrap_or(Link::Up))]);
        verdict.target(Some(!stands.unreachable), "connection refused");
        verdict.delivering(stands.hindrance.map_or(Delivering::Yes, Delivering::Hindered));
        verdict.degraded_processor(stands.suspected, stands.responses_lost);
        verdict.paused(stands.paused);
        let against = stands.against.map(|reason| (reason, String::new()));
        why(&verdict.finish(against, stands.ready.unwrap_or("Ready"))).unwrap().to_owned()
    }

    fn refused() -> Link {
        Link::Down { reason: "Refused".to_owned(), message: String::new() }
    }

    #[test]
    fn it_delivers_if_nothing_speaks_against_it() {
        assert_eq!(word(Stands::default()), "Delivering");
        assert_eq!(why(&[]), None);
    }

    #[test]
    fn a_target_that_is_down_is_named_before_the_wait_that_comes_of_it() {
        let waiting = || Some(Hindrance::WaitingForRetry);
        assert_eq!(word(Stands { unreachable: true, hindrance: waiting(), ..Stands::default() }), "TargetUnreachable");
        assert_eq!(word(Stands { unreachable: true, ..Stands::default() }), "TargetUnreachable");
        // One that answers with errors is reached.
        assert_eq!(word(Stands { hindrance: waiting(), ..Stands::default() }), "WaitingForRetry");
        // What the target does is no matter while a dead letter can't leave.
        let hindrance = Some(Hindrance::DeadLetterStoreUnavailable);
        assert_eq!(word(Stands { unreachable: true, hindrance, ..Stands::default() }), "DeadLetterStoreUnavailable");
    }

    #[test]
    fn what_keeps_it_from_being_ready_comes_first_and_says_of_what_it_speaks() {
        let unreachable = || Stands { unreachable: true, ..Stands::default() };
        assert_eq!(word(Stands { link: Some(refused()), ..unreachable() }), "BrokerLost");
        assert_eq!(word(Stands { link: Some(Link::Connecting), ..unreachable() }), "Connecting");
        let missing = Some(Missing { reason: "NotFound", message: String::new() });
        assert_eq!(word(Stands { missing, link: Some(refused()), ..unreachable() }), "ReferenceMissing");
        assert_eq!(word(Stands { link: Some(Link::Mismatch(String::new())), ..unreachable() }), "QueueMismatch");
        for reason in ["Deactivated", "NameConflict", "PodNotScheduled", "Progressing"] {
            assert_eq!(word(Stands { against: Some(reason), link: Some(refused()), ..unreachable() }), reason);
        }
        let rejected = Verdict::rejected(1, jiff::Timestamp::UNIX_EPOCH, "Invalid", "cron").finish(None, "Ready");
        assert_eq!(why(&rejected), Some("Invalid"));
    }

    #[test]
    fn what_the_user_wants_is_no_fault_and_is_named() {
        for reason in ["Suspended", "ScaledToZero"] {
            assert_eq!(word(Stands { ready: Some(reason), unreachable: true, ..Stands::default() }), reason);
        }
        assert_eq!(word(Stands { paused: true, unreachable: true, ..Stands::default() }), "Paused");
    }

    #[test]
    fn a_message_that_kills_is_named_before_the_pods_that_it_kills() {
        let suspected = ["01a2".to_owned()];
        let poison = || Stands { suspected: &suspected, ..Stands::default() };
        assert_eq!(word(poison()), "PoisonSuspected");
        assert_eq!(word(Stands { hindrance: Some(Hindrance::WaitingForRetry), ..poison() }), "PoisonSuspected");
        assert_eq!(word(Stands { against: Some("PodNotStarted"), ..poison() }), "PoisonSuspected");
        assert_eq!(word(Stands { against: Some("Deactivated"), ..poison() }), "Deactivated");
        assert_eq!(word(Stands { responses_lost: 2, ..Stands::default() }), "ResponsesLost");
    }
}
