use serde_json::{Value, json};

use super::*;
use crate::api::shared::Workload;
use crate::plan::compile::{self, Environment};
use crate::plan::world::World;

fn settings() -> WorkerSettings {
    WorkerSettings {
        image: "registry/stagepost:1".to_owned(),
        image_pull_policy: "IfNotPresent".to_owned(),
        log_format: "json".to_owned(),
        log_level: "info".to_owned(),
        admin_peers: None,
    }
}

fn object<K: serde::de::DeserializeOwned>(kind: &str, name: &str, spec: &Value) -> K {
    let metadata = json!({"name": name, "namespace": "shop", "uid": format!("uid-of-{name}")});
    serde_json::from_value(
        json!({"apiVersion": "stagepost.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}),
    )
    .unwrap()
}

fn plans() -> (Plan, Plan) {
    let store = object("MessageStore", "orders", &json!({"broker": {"secretRef": {"name": "rabbitmq"}}, "queue": {}}));
    let rules = json!([{"name": "post", "path": "/orders", "storeRef": {"name": "orders"}}]);
    let route = object("IngressRoute", "in", &json!({"rules": rules}));
    let target =
        json!({"url": "https://settle", "tls": {"caRef": {"kind": "ConfigMap", "name": "roots", "key": "ca.crt"}}});
    let processor = object(
        "ForwardingProcessor",
        "settle",
        &json!({"storeRef": {"name": "orders"}, "target": target, "workload": {"replicas": 1}}),
    );
    let world = World::new([&store], [&route], [&processor]);
    let ingress = Plan::Ingress(compile::route(&route, &world).unwrap());
    (ingress, Plan::Forwarder(compile::processor(&processor, &world, Environment::Cluster).unwrap()))
}

fn name_of(plan: &Plan) -> ObjectName {
    match plan {
        Plan::Ingress(plan) => plan.object.clone(),
        Plan::Forwarder(plan) => plan.object.clone(),
    }
}

fn role_of(plan: &Plan) -> Role {
    if matches!(plan, Plan::Ingress(_)) { Role::Ingress } else { Role::Forwarder }
}

fn made(plan: &Plan, workload: &Workload, replicas: u32) -> Value {
    let name = name_of(plan);
    let owner = Owner { role: role_of(plan), object: &name };
    deployment(&Pods { owner, plan, workload, replicas }, &settings()).value
}

#[test]
fn every_child_says_whose_it_is() {
    let (ingress, _) = plans();
    let name = name_of(&ingress);
    let owner = Owner { role: Role::Ingress, object: &name };
    for child in [config_map(&owner, &ingress), service_account(&owner), network_policy(&owner, &[])] {
        let meta = &child.value["metadata"];
        assert_eq!(meta["ownerReferences"][0]["uid"], "uid-of-in");
        assert_eq!(meta["ownerReferences"][0]["controller"], true);
        assert_eq!(meta["labels"]["stagepost.dev/uid"], "uid-of-in");
        assert_eq!(meta["labels"]["stagepost.dev/kind"], "ingressroute");
        assert_eq!(meta["labels"]["app.kubernetes.io/managed-by"], "stagepost");
        assert!(meta["name"].as_str().unwrap().starts_with("in-ingress"));
    }
}

#[test]
fn a_plan_is_immutable_and_another_plan_has_another_name() {
    let (ingress, forwarder) = plans();
    let (name, settle) = (name_of(&ingress), name_of(&forwarder));
    let first = config_map(&Owner { role: Role::Ingress, object: &name }, &ingress);
    assert_eq!(first.value["immutable"], true);
    let text = first.value["data"]["plan.json"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Plan>(text).unwrap(), ingress);
    assert_ne!(first.name, config_map(&Owner { role: Role::Forwarder, object: &settle }, &forwarder).name);
    let Plan::Ingress(mut changed) = ingress else { panic!("an ingress plan") };
    changed.rules[0].path = "/other".to_owned();
    assert_ne!(first.name, config_map(&Owner { role: Role::Ingress, object: &name }, &Plan::Ingress(changed)).name);
}

#[test]
fn ordered_pods_are_never_two_and_callers_always_have_one() {
    let (ingress, forwarder) = plans();
    assert_eq!(made(&forwarder, &Workload::default(), 1)["spec"]["strategy"], json!({"type": "Recreate"}));
    let rolling = &made(&ingress, &Workload::default(), 2)["spec"]["strategy"]["rollingUpdate"];
    assert_eq!(rolling["maxUnavailable"], 0);
}

#[test]
fn pods_are_restricted_and_have_time_to_end() {
    let (ingress, forwarder) = plans();
    for plan in [&ingress, &forwarder] {
        let pod = &made(plan, &Workload::default(), 1)["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        let container = &pod["containers"][0];
        assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(container["resources"]["limits"]["cpu"], Value::Null);
        let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(grace > plan.patience().as_secs(), "{grace}");
    }
    let longer = Workload { termination_grace_period_seconds: Some(3600), ..Workload::default() };
    assert_eq!(made(&ingress, &longer, 1)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"], 3600);
    let shorter = Workload { termination_grace_period_seconds: Some(1), ..Workload::default() };
    let floor = &made(&ingress, &shorter, 1)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"];
    assert_eq!(
        *floor,
        made(&ingress, &Workload::default(), 1)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    );
}

#[test]
fn what_a_plan_names_is_mounted_where_a_worker_looks_for_it() {
    let (_, forwarder) = plans();
    let pod = &made(&forwarder, &Workload::default(), 1)["spec"]["template"]["spec"];
    let text = pod["volumes"].to_string();
    assert!(text.contains(r#""secretName":"rabbitmq""#) && text.contains(r#""name":"roots""#), "{text}");
    let mounts = pod["containers"][0]["volumeMounts"].to_string();
    assert!(mounts.contains("/etc/stagepost/mounted/secret/rabbitmq"), "{mounts}");
    assert!(mounts.contains("/etc/stagepost/mounted/config-map/roots"), "{mounts}");
}

#[test]
fn what_the_user_says_of_pods_wins_but_for_our_labels() {
    let (ingress, _) = plans();
    let workload: Workload = serde_json::from_value(json!({
        "podLabels": {"team": "payments", "stagepost.dev/uid": "theirs"},
        "podAnnotations": {"mesh": "in"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "resources": {"limits": {"memory": "1Gi"}},
        "priorityClassName": "high",
        "imagePullSecrets": [{"name": "pull"}],
    }))
    .unwrap();
    let template = &made(&ingress, &workload, 2)["spec"]["template"];
    assert_eq!(template["metadata"]["labels"]["team"], "payments");
    assert_eq!(template["metadata"]["labels"]["stagepost.dev/uid"], "uid-of-in");
    assert_eq!(template["metadata"]["annotations"]["mesh"], "in");
    let pod = &template["spec"];
    assert_eq!(pod["nodeSelector"]["disk"], "ssd");
    assert_eq!(pod["tolerations"][0]["key"], "spot");
    assert_eq!(pod["containers"][0]["resources"], json!({"limits": {"memory": "1Gi"}}));
    assert_eq!((&pod["priorityClassName"], &pod["imagePullSecrets"][0]["name"]), (&json!("high"), &json!("pull")));
    assert_eq!(pod["topologySpreadConstraints"][0]["whenUnsatisfiable"], "ScheduleAnyway");
}

#[test]
fn a_budget_keeps_one_of_several_and_never_the_only_one() {
    let (ingress, _) = plans();
    let name = name_of(&ingress);
    let service = serde_json::from_value(json!({"type": "NodePort", "port": 8080, "annotations": {"a": "b"}})).unwrap();
    let kinds = |replicas| -> Vec<ChildKind> {
        let owner = Owner { role: Role::Ingress, object: &name };
        front(&Front { owner, service: &service, replicas }).iter().map(|child| child.kind).collect()
    };
    assert_eq!(kinds(2), [ChildKind::Service, ChildKind::PodDisruptionBudget]);
    assert_eq!(kinds(1), [ChildKind::Service]);
    let owner = Owner { role: Role::Ingress, object: &name };
    let made = &front(&Front { owner, service: &service, replicas: 1 })[0];
    assert_eq!(made.name, "in");
    assert_eq!(
        (&made.value["spec"]["type"], &made.value["spec"]["ports"][0]["port"]),
        (&json!("NodePort"), &json!(8080))
    );
    assert_eq!(made.value["metadata"]["annotations"], json!({"a": "b"}));
}

#[test]
fn the_number_of_pods_is_no_part_of_a_plan() {
    let store = object(
        "MessageStore",
        "orders",
        &json!({"broker": {"secretRef": {"name": "r"}}, "queue": {"consumers": "Competing"}}),
    );
    let hash = |replicas: u32| {
        let spec = json!({"storeRef": {"name": "orders"}, "target": {"url": "http://t"}, "ordering": "None", "workload": {"replicas": replicas}});
        let processor = object("ForwardingProcessor", "out", &spec);
        let world = World::new([&store], [], [&processor]);
        Plan::Forwarder(compile::processor(&processor, &world, Environment::Cluster).unwrap()).hash()
    };
    assert_eq!(hash(1), hash(7), "scaling would restart every pod");
}
