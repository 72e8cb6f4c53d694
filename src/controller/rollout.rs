//! Whether the pods of an object are as they should be. Pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rollout {
    /// As many as are wanted run the plan, and are ready.
    Complete,
    /// Not yet; why, and for how long.
    Progressing(&'static str, String),
}

/// Of a Deployment that was applied with `wanted` pods.
pub(super) fn of(deployment: Option<&Deployment>, wanted: u32, pods: &[Arc<Pod>]) -> Rollout {
    let Some(deployment) = deployment else {
        return Rollout::Progressing("Progressing", "its pods are about to be created".to_owned());
    };
    let status = deployment.status.clone().unwrap_or_default();
    let count = |count: Option<i32>| u32::try_from(count.unwrap_or(0)).unwrap_or(0);
    let observed = status.observed_generation >= deployment.metadata.generation;
    let (total, updated, available) =
        (count(status.replicas), count(status.updated_replicas), count(status.available_replicas));
    if observed && total == wanted && updated == wanted && available == wanted {
        return Rollout::Complete;
    }
    if let Some((reason, message)) = pods.iter().find_map(|pod| stuck(pod)) {
        return Rollout::Progressing(reason, message);
    }
    let message = if total > wanted {
        format!("{available} pods are available, {wanted} are wanted; those of the old plan are ending")
    } else {
        format!("{available} of {wanted} pods are available")
    };
    Rollout::Progressing("Progressing", message)
}

/// Why a pod does not come up by itself.
fn stuck(pod: &Pod) -> Option<(&'static str, String)> {
    let name = pod.name_any();
    let status = pod.status.as_ref()?;
    let scheduled = status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled");
    if let Some(not) = scheduled.filter(|condition| condition.status == "False") {
        let why = not.message.clone().unwrap_or_default();
        return Some(("PodNotScheduled", format!("pod `{name}` is not scheduled: {why}")));
    }
    let container = status.container_statuses.iter().flatten().next()?;
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let why = waiting.reason.clone().unwrap_or_default();
    if ["ContainerCreating", "PodInitializing", ""].contains(&why.as_str()) {
        return None;
    }
    // Why it ended says more than that it is not started again yet.
    let ended = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
    let (detail, look) = match ended {
        Some(ended) => {
            let reason = ended.reason.clone().unwrap_or_default();
            (
                format!("(it ended: {reason}, exit code {})", ended.exit_code),
                "kubectl describe pod and kubectl logs --previous",
            )
        }
        None => (waiting.message.clone().unwrap_or_default(), "kubectl describe pod"),
    };
    Some(("PodNotStarted", format!("pod `{name}` does not start: {why} {detail}; look at it by {look}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(generation: i64, status: &serde_json::Value) -> Deployment {
        serde_json::from_value(json!({"metadata": {"generation": generation}, "status": status})).unwrap()
    }

    #[test]
    fn it_is_complete_when_all_pods_run_the_plan() {
        let all = json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2});
        assert_eq!(of(Some(&deployment(2, &all)), 2, &[]), Rollout::Complete);
        assert_ne!(of(Some(&deployment(3, &all)), 2, &[]), Rollout::Complete);
        let old = json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 3});
        assert_ne!(of(Some(&deployment(2, &old)), 2, &[]), Rollout::Complete);
        assert_eq!(of(Some(&deployment(1, &json!({"observedGeneration": 1}))), 0, &[]), Rollout::Complete);
        assert_ne!(of(None, 1, &[]), Rollout::Complete);
    }

    #[test]
    fn a_pod_that_does_not_start_is_named() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "settle-forwarder-1"},
            "status": {"containerStatuses": [{"name": "stagepost", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]},
        }))
        .unwrap();
        let Rollout::Progressing(reason, message) = of(None, 1, &[]) else { panic!("complete") };
        assert_eq!((reason, message.as_str()), ("Progressing", "its pods are about to be created"));
        let empty = deployment(1, &json!({}));
        let Rollout::Progressing(reason, message) = of(Some(&empty), 1, &[Arc::new(pod)]) else { panic!("complete") };
        assert_eq!(reason, "PodNotStarted");
        assert!(
            message.contains("settle-forwarder-1") && message.contains("ImagePullBackOff no such image"),
            "{message}"
        );
    }
}
