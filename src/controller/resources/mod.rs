//! What an object's workers consist of, as Kubernetes objects. Pure: plans in, objects out.
//!
//! Objects are built as JSON, fresh each time, with nothing but what is ours: server-side apply leaves the rest to
//! whoever set it.

mod ingress;
mod labels;
mod pod;

use serde_json::{Value, json};

pub(super) use ingress::{Front, front};
pub(super) use labels::{Role, child_name, selector};
pub(super) use pod::{ADMIN_PORT, Pods, deployment};

use crate::plan::{ObjectName, Plan};

/// What a child is. In the order in which children are applied: a Deployment comes last, when what it needs is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum ChildKind {
    ServiceAccount,
    ConfigMap,
    Service,
    PodDisruptionBudget,
    NetworkPolicy,
    Deployment,
}

impl ChildKind {
    pub(super) const ALL: [Self; 6] = [
        Self::ServiceAccount,
        Self::ConfigMap,
        Self::Service,
        Self::PodDisruptionBudget,
        Self::NetworkPolicy,
        Self::Deployment,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::ServiceAccount => "ServiceAccount",
            Self::ConfigMap => "ConfigMap",
            Self::Service => "Service",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Deployment => "Deployment",
        }
    }

    /// Group and version, as in `apiVersion`.
    pub(super) fn api_version(self) -> &'static str {
        match self {
            Self::ServiceAccount | Self::ConfigMap | Self::Service => "v1",
            Self::PodDisruptionBudget => "policy/v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
            Self::Deployment => "apps/v1",
        }
    }

    /// As in a URL.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::ServiceAccount => "serviceaccounts",
            Self::ConfigMap => "configmaps",
            Self::Service => "services",
            Self::PodDisruptionBudget => "poddisruptionbudgets",
            Self::NetworkPolicy => "networkpolicies",
            Self::Deployment => "deployments",
        }
    }
}

/// One object to be applied.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Child {
    pub(super) kind: ChildKind,
    pub(super) name: String,
    pub(super) value: Value,
}

/// What the controller was started with that workers need.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// The image of this program.
    pub image: String,
    /// As in a pod.
    pub image_pull_policy: String,
    /// `text` or `json`.
    pub log_format: String,
    /// As on the command line.
    pub log_level: String,
    /// Who may reach the admin port, if network policies are wanted: the peers of a rule.
    pub admin_peers: Option<Vec<Value>>,
}

/// Who the children belong to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner<'a> {
    pub(super) role: Role,
    pub(super) object: &'a ObjectName,
}

impl Owner<'_> {
    /// An object of ours, with what every one of them carries.
    fn child(&self, kind: ChildKind, name: &str, fields: Value) -> Child {
        let mut value = json!({
            "apiVersion": kind.api_version(),
            "kind": kind.as_str(),
            "metadata": {
                "name": name,
                "namespace": self.object.namespace,
                "labels": labels::of(self),
                "ownerReferences": [{
                    "apiVersion": crate::api::API_VERSION,
                    "kind": self.role.owner_kind(),
                    "name": self.object.name,
                    "uid": self.object.uid,
                    "controller": true,
                    "blockOwnerDeletion": true,
                }],
            },
        });
        if let (Some(whole), Value::Object(fields)) = (value.as_object_mut(), fields) {
            whole.extend(fields);
        }
        Child { kind, name: name.to_owned(), value }
    }
}

/// The plan, where its pods find it. Never changed: another plan has another name.
pub(super) fn config_map(owner: &Owner<'_>, plan: &Plan) -> Child {
    let name = format!("{}-{}", child_name(owner), plan.hash());
    let text = serde_json::to_string(plan).unwrap_or_default();
    owner.child(ChildKind::ConfigMap, &name, json!({"immutable": true, "data": {pod::PLAN_FILE: text}}))
}

/// An account without a token and without a right.
pub(super) fn service_account(owner: &Owner<'_>) -> Child {
    owner.child(ChildKind::ServiceAccount, &child_name(owner), json!({"automountServiceAccountToken": false}))
}

/// Who may reach the pods: callers the HTTP port from anywhere, `admin` the admin port.
pub(super) fn network_policy(owner: &Owner<'_>, admin: &[Value]) -> Child {
    let mut rules = vec![json!({"from": admin, "ports": [{"port": pod::ADMIN_PORT, "protocol": "TCP"}]})];
    if owner.role == Role::Ingress {
        rules.push(json!({"ports": [{"port": pod::HTTP_PORT, "protocol": "TCP"}]}));
    }
    let spec = json!({"podSelector": {"matchLabels": selector(owner)}, "policyTypes": ["Ingress"], "ingress": rules});
    owner.child(ChildKind::NetworkPolicy, &child_name(owner), json!({"spec": spec}))
}

#[cfg(test)]
mod tests;
