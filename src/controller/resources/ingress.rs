//! What stands in front of the ingress pods.

use serde_json::json;

use super::{Child, ChildKind, Owner, child_name, selector};
use crate::api::ingress_route::{IngressService, ServiceType};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(in crate::controller) struct Front<'a> {
    pub(in crate::controller) owner: Owner<'a>,
    pub(in crate::controller) service: &'a IngressService,
    /// How many pods are wanted.
    pub(in crate::controller) replicas: u32,
}

/// The Service, and from two pods on a budget that keeps one of them while nodes are drained.
pub(in crate::controller) fn front(front: &Front<'_>) -> Vec<Child> {
    let Front { owner, service, replicas } = front;
    let kind = match service.kind {
        ServiceType::ClusterIp => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    };
    let spec = json!({
        "type": kind,
        "selector": selector(owner),
        "ports": [{"name": "http", "port": service.port, "targetPort": "http", "protocol": "TCP"}],
    });
    let mut child = owner.child(ChildKind::Service, &owner.object.name, json!({"spec": spec}));
    if !service.annotations.is_empty() {
        child.value["metadata"]["annotations"] = json!(service.annotations);
    }
    let mut children = vec![child];
    // With one pod a budget would only keep nodes from being drained.
    if *replicas > 1 {
        let spec = json!({"minAvailable": 1, "selector": {"matchLabels": selector(owner)}});
        children.push(owner.child(ChildKind::PodDisruptionBudget, &child_name(owner), json!({"spec": spec})));
    }
    children
}
