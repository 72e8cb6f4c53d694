//! What containers left behind when they ended. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::core::poison;

/// The messages at which workers died though they had come back again and again before, without those that had an
/// outcome since.
pub(super) fn suspected(pods: &[Arc<Pod>], cleared: &[String]) -> Vec<String> {
    let statuses = pods.iter().filter_map(|pod| pod.status.as_ref()?.container_statuses.as_ref());
    let states = statuses.flatten().flat_map(|container| [&container.last_state, &container.state]);
    let ended = states.filter_map(|state| state.as_ref()?.terminated.as_ref());
    let notes = ended.filter_map(|ended| ended.message.as_deref());
    let named: BTreeSet<String> = notes.flat_map(poison::read).filter(|id| !cleared.contains(id)).collect();
    named.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(last: &str) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": "out-forwarder-1"}, "status": {"containerStatuses": [{
            "name": "stagepost", "image": "i", "imageID": "", "ready": false, "restartCount": 6,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": last}},
        }]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn what_a_worker_died_at_is_named_once_and_until_it_has_an_outcome() {
        let pods = [pod(&poison::note(["b", "a"])), pod(&poison::note(["a"])), pod("no space left"), pod("")];
        assert_eq!(suspected(&pods, &[]), ["a", "b"]);
        assert_eq!(suspected(&pods, &["a".to_owned()]), ["b"]);
        assert_eq!(suspected(&[], &[]), Vec::<String>::new());
    }
}
