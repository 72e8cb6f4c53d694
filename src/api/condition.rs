//! Conditions: what `kubectl wait` and `kubectl describe` read, with names that are the same everywhere.

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The spec is valid.
pub const ACCEPTED: &str = "Accepted";
/// Stores, Secrets and ports that the spec names exist.
pub const RESOLVED_REFS: &str = "ResolvedRefs";
/// Every broker of the object's stores is connected.
pub const BROKER_CONNECTED: &str = "BrokerConnected";
/// The target can be reached.
pub const TARGET_REACHABLE: &str = "TargetReachable";
/// Messages are being delivered, or would be if there were any.
pub const DELIVERING: &str = "Delivering";
/// It works, but something is not as it should be.
pub const DEGRADED: &str = "Degraded";
/// Reconciling is stopped by the annotation `stagepost.dev/paused`.
pub const PAUSED: &str = "Paused";
/// The sum that tools wait for.
pub const READY: &str = "Ready";

/// Puts a condition into a list that holds one of each type, in order of type.
///
/// `lastTransitionTime` changes only with the status, as the convention of Kubernetes has it. Returns whether
/// anything but that time changed.
pub fn set(conditions: &mut Vec<Condition>, mut condition: Condition) -> bool {
    if let Some(present) = conditions.iter_mut().find(|present| present.type_ == condition.type_) {
        if present.status == condition.status {
            condition.last_transition_time = present.last_transition_time.clone();
        }
        let changed = *present != condition;
        *present = condition;
        changed
    } else {
        let at = conditions.partition_point(|present| present.type_ < condition.type_);
        conditions.insert(at, condition);
        true
    }
}

/// The condition of this type, if it is present.
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Whether the condition of this type is present and `True`.
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(kind: &str, status: &str, second: i64) -> Condition {
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: "Because".to_owned(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap()),
        }
    }

    #[test]
    fn the_time_of_a_condition_changes_only_with_its_status() {
        let mut list = Vec::new();
        assert!(set(&mut list, condition(READY, "True", 1)));
        assert!(!set(&mut list, condition(READY, "True", 2)));
        assert_eq!(list[0].last_transition_time, condition(READY, "True", 1).last_transition_time);
        assert!(set(&mut list, condition(READY, "False", 3)));
        assert_eq!(list[0].last_transition_time, condition(READY, "True", 3).last_transition_time);
        assert!(set(&mut list, condition(ACCEPTED, "True", 4)));
        assert_eq!(list.iter().map(|c| c.type_.as_str()).collect::<Vec<_>>(), [ACCEPTED, READY]);
    }
}
