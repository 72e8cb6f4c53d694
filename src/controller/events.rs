//! Events: what an operator who looks at an object later should know happened. On transitions only.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use super::error::api;
use crate::api::condition::{self, BROKER_CONNECTED, Condition, DEGRADED, READY, RESOLVED_REFS, TARGET_REACHABLE};
use crate::api::processor_status::ProcessorState;
use crate::status::verdict::POISON_SUSPECTED;

/// An API server cuts longer notes off.
const LONGEST_NOTE: usize = 1000;

/// See the module.
#[derive(Clone)]
pub(super) struct Events(Recorder);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Happened {
    pub(super) warning: bool,
    pub(super) reason: &'static str,
    pub(super) note: String,
}

impl Events {
    pub(super) fn new(client: Client, instance: Option<String>) -> Self {
        Self(Recorder::new(client, Reporter { controller: "stagepost".into(), instance }))
    }

    /// Tells; that it can't be told is no reason for anything.
    pub(super) async fn tell(&self, about: &ObjectReference, happened: &Happened) {
        let event = Event {
            type_: if happened.warning { EventType::Warning } else { EventType::Normal },
            reason: happened.reason.to_owned(),
            note: Some(happened.note.chars().take(LONGEST_NOTE).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = api("write an Event", self.0.publish(&event, about)).await {
            tracing::debug!(%error, reason = happened.reason, "an Event could not be written");
        }
    }
}

/// What the change from one list of conditions to the next means.
pub(super) fn between(before: &[Condition], after: &[Condition]) -> Vec<Happened> {
    let mut happened = Vec::new();
    let has = |conditions: &[Condition], kind: &str, status: &str| {
        condition::find(conditions, kind).is_some_and(|found| found.status == status)
    };
    let mut failed = |kind: &str, bad: &str, reason: &'static str| {
        let now = condition::find(after, kind).filter(|now| now.status == bad);
        if let Some(now) = now.filter(|_| !has(before, kind, bad)) {
            let note = if now.message.is_empty() { now.reason.clone() } else { now.message.clone() };
            happened.push(Happened { warning: true, reason, note });
        }
    };
    failed(BROKER_CONNECTED, "False", "BrokerLost");
    failed(TARGET_REACHABLE, "False", "TargetUnreachable");
    failed(RESOLVED_REFS, "False", "ReferenceMissing");
    let poison = |conditions: &[Condition]| {
        let degraded = condition::find(conditions, DEGRADED).filter(|found| found.reason == POISON_SUSPECTED);
        degraded.map(|degraded| degraded.message.clone())
    };
    match poison(after) {
        // What it is degraded by now is news.
        None if poison(before).is_some() => {
            if let Some(now) = condition::find(after, DEGRADED).filter(|now| now.status == "True") {
                happened.push(Happened { warning: true, reason: "Degraded", note: now.message.clone() });
            }
        }
        None => failed(DEGRADED, "True", "Degraded"),
        // Of another message it is told again, not of fewer.
        Some(note) if poison(before).is_none_or(|before| names_more(&note, &before)) => {
            happened.push(Happened { warning: true, reason: POISON_SUSPECTED, note });
        }
        Some(_) => {}
    }
    for (kind, reason, note) in [
        (BROKER_CONNECTED, "BrokerBack", "every broker that it needs is connected again"),
        (TARGET_REACHABLE, "TargetBack", "the target is reached again"),
        (RESOLVED_REFS, "ReferenceFound", "everything that it names is there now"),
    ] {
        if has(before, kind, "False") && has(after, kind, "True") {
            happened.push(Happened { warning: false, reason, note: note.to_owned() });
        }
    }
    for (reason, told) in [("QueueMismatch", "QueueMismatch"), ("NameConflict", "NameConflict")] {
        let is =
            |conditions: &[Condition]| condition::find(conditions, READY).is_some_and(|ready| ready.reason == reason);
        if is(after) && !is(before) {
            let note = condition::find(after, READY).map(|ready| ready.message.clone()).unwrap_or_default();
            happened.push(Happened { warning: true, reason: told, note });
        }
    }
    happened
}

/// Whether a note names a message that the one before it does not.
fn names_more(note: &str, before: &str) -> bool {
    note.split([' ', ',']).any(|word| !before.contains(word))
}

/// What the change from one state to the next means.
pub(super) fn of_states(before: Option<ProcessorState>, after: ProcessorState, note: &str) -> Option<Happened> {
    use ProcessorState::{Deactivated, Suspended};
    let (warning, reason, note) = match (before, after) {
        (was, now) if was == Some(now) => return None,
        (_, Deactivated) => (true, "Deactivated", note.to_owned()),
        (_, Suspended) => (false, "Suspended", "spec.suspend is true: nothing is delivered".to_owned()),
        (Some(Deactivated), _) => (false, "Reactivated", "it delivers again, from attempt 1".to_owned()),
        (Some(Suspended), _) => (false, "Resumed", "it delivers again".to_owned()),
        _ => return None,
    };
    Some(Happened { warning, reason, note })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::condition::Time;

    fn is(kind: &str, status: &str) -> Condition {
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: "Because".to_owned(),
            message: "why".to_owned(),
            observed_generation: None,
            last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
        }
    }

    fn reasons(before: &[Condition], after: &[Condition]) -> Vec<&'static str> {
        between(before, after).into_iter().map(|happened| happened.reason).collect()
    }

    #[test]
    fn only_transitions_are_told() {
        let (up, down) = ([is(BROKER_CONNECTED, "True")], [is(BROKER_CONNECTED, "False")]);
        assert_eq!(reasons(&[], &up), Vec::<&str>::new());
        assert_eq!(reasons(&up, &up), Vec::<&str>::new());
        assert_eq!(reasons(&up, &down), ["BrokerLost"]);
        assert_eq!(reasons(&down, &down), Vec::<&str>::new());
        assert_eq!(reasons(&down, &up), ["BrokerBack"]);
        assert_eq!(reasons(&[is(BROKER_CONNECTED, "Unknown")], &up), Vec::<&str>::new());
    }

    #[test]
    fn a_message_that_is_suspected_is_told_once() {
        let suspected = |message: &str| {
            let poison = Condition { reason: POISON_SUSPECTED.to_owned(), ..is(DEGRADED, "True") };
            [Condition { message: message.to_owned(), ..poison }]
        };
        let well = [is(DEGRADED, "False")];
        assert_eq!(reasons(&well, &suspected("a")), ["PoisonSuspected"]);
        assert_eq!(reasons(&suspected("a"), &suspected("a")), Vec::<&str>::new());
        assert_eq!(reasons(&suspected("a"), &suspected("b")), ["PoisonSuspected"]);
        assert_eq!(reasons(&suspected("a, b"), &suspected("b")), Vec::<&str>::new());
        assert_eq!(reasons(&suspected("b"), &suspected("a, b")), ["PoisonSuspected"]);
        assert_eq!(reasons(&suspected("a"), &well), Vec::<&str>::new());
        assert_eq!(reasons(&suspected("a"), &[is(DEGRADED, "True")]), ["Degraded"]);
        assert_eq!(reasons(&well, &[is(DEGRADED, "True")]), ["Degraded"]);
    }

    #[test]
    fn states_are_told_when_they_change() {
        use ProcessorState::{Active, Deactivated, Suspended};
        let reason = |before, after| of_states(before, after, "m").map(|happened| happened.reason);
        assert_eq!(reason(None, Active), None);
        assert_eq!(reason(Some(Active), Deactivated), Some("Deactivated"));
        assert_eq!(reason(Some(Deactivated), Deactivated), None);
        assert_eq!(reason(Some(Deactivated), Active), Some("Reactivated"));
        assert_eq!(reason(Some(Suspended), Active), Some("Resumed"));
        assert_eq!(reason(Some(Active), Suspended), Some("Suspended"));
    }
}
