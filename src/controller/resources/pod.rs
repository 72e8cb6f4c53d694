//! The pods of a worker: what they run, what they may, how they end.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Child, ChildKind, Owner, Role, WorkerSettings, child_name, labels, selector};
use crate::api::shared::Workload;
use crate::core::duration;
use crate::plan::{ForwarderPlan, IngressPlan, KeySource, OrderingPlan, Plan};

/// Requests.
pub(super) const HTTP_PORT: u16 = 8080;
/// Status, metrics, probes.
pub(in crate::controller) const ADMIN_PORT: u16 = 9901;
/// Key of the plan in its config map.
pub(super) const PLAN_FILE: &str = "plan.json";

const PLAN_FOLDER: &str = "/etc/stagepost/plan";
const SECRETS_FOLDER: &str = "/etc/stagepost/mounted";

/// What a container leaves here, the kubelet puts into its pod's status when it has ended.
const LAST_WORDS: &str = "/dev/termination-log";

/// Between SIGTERM and the moment from which an ingress accepts no more connections.
const LINGER: Duration = Duration::from_secs(5);

/// From the end of the drain to the moment at which the kubelet would kill: the last counts are told meanwhile.
const BEFORE_KILL: Duration = Duration::from_secs(6);

const MIB: u64 = 1024 * 1024;

/// What a process needs besides the messages in its hands.
const OWN_MEMORY: u64 = 128 * MIB;

/// The largest body that an ingress takes.
const LARGEST_BODY: u64 = 15 * MIB;

/// Of the messages that a forwarder is handed ahead, which it bounds by their bytes as well. Far more than that, and a
/// limit reserves nothing.
const MOST_HELD: u64 = 960 * MIB;

/// The pods of one object.
#[derive(Debug, Clone, Copy)]
pub(in crate::controller) struct Pods<'a> {
    pub(in crate::controller) owner: Owner<'a>,
    pub(in crate::controller) plan: &'a Plan,
    pub(in crate::controller) workload: &'a Workload,
    /// How many are wanted now.
    pub(in crate::controller) replicas: u32,
}

/// The Deployment.
pub(in crate::controller) fn deployment(pods: &Pods<'_>, settings: &WorkerSettings) -> Child {
    let owner = &pods.owner;
    let spec = json!({
        "replicas": pods.replicas,
        "revisionHistoryLimit": 3,
        "selector": {"matchLabels": selector(owner)},
        "strategy": strategy(pods.plan),
        "template": {
            "metadata": {
                "labels": pod_labels(pods),
                "annotations": pods.workload.pod_annotations,
            },
            "spec": pod_spec(pods, settings),
        },
    });
    owner.child(ChildKind::Deployment, &child_name(owner), json!({"spec": spec}))
}

/// With order, the old pod must have ended before the new one begins.
fn strategy(plan: &Plan) -> Value {
    match plan {
        Plan::Forwarder(ForwarderPlan { ordering: OrderingPlan::Strict | OrderingPlan::PerKey(_), .. }) => {
            json!({"type": "Recreate"})
        }
        _ => json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}),
    }
}

/// The user's, below ours.
fn pod_labels(pods: &Pods<'_>) -> BTreeMap<String, String> {
    let ours = labels::of(&pods.owner).into_iter().map(|(name, value)| (name.to_owned(), value));
    pods.workload.pod_labels.clone().into_iter().chain(ours).collect()
}

fn pod_spec(pods: &Pods<'_>, settings: &WorkerSettings) -> Value {
    let Pods { owner, plan, workload, .. } = pods;
    let name = child_name(owner);
    let drain = drain(plan, workload);
    let mut spec = json!({
        "serviceAccountName": name,
        "automountServiceAccountToken": false,
        // Environment variables for every Service of the namespace are of no use here.
        "enableServiceLinks": false,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": (drain + BEFORE_KILL).as_secs(),
        "containers": [container(pods, settings, drain)],
        "volumes": volumes(pods),
    });
    if let Some(fields) = spec.as_object_mut() {
        overrides(fields, pods);
    }
    spec
}

fn container(pods: &Pods<'_>, settings: &WorkerSettings, drain: Duration) -> Value {
    let command = match pods.owner.role {
        Role::Ingress => "ingress",
        Role::Forwarder => "forward",
    };
    let mut ports = vec![json!({"name": "admin", "containerPort": ADMIN_PORT, "protocol": "TCP"})];
    if pods.owner.role == Role::Ingress {
        ports.insert(0, json!({"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"}));
    }
    let mut arguments = vec![
        command.to_owned(),
        format!("--plan={PLAN_FOLDER}/{PLAN_FILE}"),
        format!("--secrets={SECRETS_FOLDER}"),
        format!("--grace={}", duration::format(drain)),
        format!("--log-format={}", settings.log_format),
        format!("--log-level={}", settings.log_level),
    ];
    if pods.owner.role == Role::Forwarder {
        arguments.push(format!("--last-words={LAST_WORDS}"));
    }
    let probe = |path: &str| json!({"path": path, "port": "admin"});
    json!({
        "name": "stagepost",
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": arguments,
        "ports": ports,
        "readinessProbe": {"httpGet": probe("/readyz"), "periodSeconds": 2, "failureThreshold": 2, "timeoutSeconds": 2},
        "livenessProbe": {"httpGet": probe("/livez"), "periodSeconds": 10, "failureThreshold": 6, "timeoutSeconds": 5},
        "resources": resources(pods),
        "terminationMessagePath": LAST_WORDS,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts(pods),
    })
}

/// Whole seconds, and never less than what is under way may take.
fn drain(plan: &Plan, workload: &Workload) -> Duration {
    let needed = plan.patience() + if matches!(plan, Plan::Ingress(_)) { LINGER } else { Duration::ZERO };
    let wanted = Duration::from_secs(u64::from(workload.termination_grace_period_seconds.unwrap_or(0)));
    Duration::from_secs(needed.as_secs() + 1).max(wanted.saturating_sub(BEFORE_KILL))
}

/// What the user says, else what the plan may need at most. No limit of the processor: throttling is no help.
fn resources(pods: &Pods<'_>) -> Value {
    if let Some(resources) = &pods.workload.resources {
        return json!(resources);
    }
    let bytes = match pods.plan {
        Plan::Ingress(IngressPlan { limits, .. }) => OWN_MEMORY + 2 * limits.max_in_flight_bytes,
        Plan::Forwarder(plan) => OWN_MEMORY + (u64::from(plan.window()) * LARGEST_BODY).min(MOST_HELD),
    };
    json!({
        "requests": {"cpu": "50m", "memory": "32Mi"},
        "limits": {"memory": format!("{}Mi", bytes.div_ceil(MIB))},
    })
}

fn sources(pods: &Pods<'_>) -> Vec<(String, KeySource, String)> {
    let sources = pods.plan.sources().into_iter().enumerate();
    sources.map(|(at, (source, name))| (format!("source-{at}"), source, name)).collect()
}

/// The plan, and each Secret and config map that it names, whole: the kubelet changes the files when they change.
fn volumes(pods: &Pods<'_>) -> Vec<Value> {
    let plan = format!("{}-{}", child_name(&pods.owner), pods.plan.hash());
    let mut volumes = vec![json!({"name": "plan", "configMap": {"name": plan}})];
    volumes.extend(sources(pods).into_iter().map(|(volume, source, name)| match source {
        KeySource::Secret => json!({"name": volume, "secret": {"secretName": name}}),
        KeySource::ConfigMap => json!({"name": volume, "configMap": {"name": name}}),
    }));
    volumes
}

fn mounts(pods: &Pods<'_>) -> Vec<Value> {
    let mut mounts = vec![json!({"name": "plan", "mountPath": PLAN_FOLDER, "readOnly": true})];
    mounts.extend(sources(pods).into_iter().map(|(volume, source, name)| {
        json!({"name": volume, "mountPath": format!("{SECRETS_FOLDER}/{}/{name}", source.folder()), "readOnly": true})
    }));
    mounts
}

/// What `spec.workload` says of pods. The API server judges it.
fn overrides(spec: &mut Map<String, Value>, pods: &Pods<'_>) {
    let workload = pods.workload;
    let mut put = |name: &str, value: Value| {
        spec.insert(name.to_owned(), value);
    };
    if !workload.node_selector.is_empty() {
        put("nodeSelector", json!(workload.node_selector));
    }
    if !workload.tolerations.is_empty() {
        put("tolerations", json!(workload.tolerations));
    }
    if let Some(affinity) = &workload.affinity {
        put("affinity", json!(affinity));
    }
    if let Some(class) = &workload.priority_class_name {
        put("priorityClassName", json!(class));
    }
    if !workload.image_pull_secrets.is_empty() {
        put("imagePullSecrets", json!(workload.image_pull_secrets));
    }
    if !workload.topology_spread_constraints.is_empty() {
        put("topologySpreadConstraints", json!(workload.topology_spread_constraints));
    } else if pods.replicas > 1 {
        // One lost node should not take all pods along.
        let spread = json!({
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(&pods.owner)},
        });
        put("topologySpreadConstraints", json!([spread]));
    }
}
