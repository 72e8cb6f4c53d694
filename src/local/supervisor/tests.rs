//! Changes that are refused.

use super::super::brokers::Brokers;
use super::*;
use crate::plan::load;
use crate::store::embedded::Broker;

fn desired(stores: &[&str]) -> Desired {
    let store = |name: &&str| {
        format!(
            "apiVersion: stagepost.dev/v1alpha1\nkind: MessageStore\nmetadata: {{name: {name}}}\n\
             spec: {{broker: {{secretRef: {{name: rabbitmq}}}}, queue: {{}}}}\n---\n"
        )
    };
    let route = "apiVersion: stagepost.dev/v1alpha1\nkind: IngressRoute\nmetadata: {name: in}\n\
        spec: {rules: [{name: post, path: /in, storeRef: {name: box}}]}\n";
    let yaml = stores.iter().map(store).collect::<String>() + route;
    Desired::of(&load::load_text("test.yaml", &yaml, &load::Options::default()), &[]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_does_not_compile_declares_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let brokers = Brokers::new(Broker::open(folder.path()).unwrap(), None, true);
    let supervisor = Supervisor::new(Stores::new(brokers), Services::default(), None);
    let bound = Bound::new("127.0.0.1:0".parse().unwrap(), &BTreeMap::new()).unwrap();
    supervisor.start(desired(&["box"]), bound, Duration::from_secs(1)).unwrap();
    let mut edited = desired(&["box", "extra"]);
    for wanted in edited.routes.values_mut() {
        wanted.plan.rules[0].path = "/{".to_owned();
    }
    let refused = supervisor.reload(edited).unwrap_err();
    assert!(refused[0].contains("rule `post` of default/in"), "{refused:?}");
    assert_eq!(supervisor.places(), BTreeMap::from([(Place::Embedded, vec!["box".to_owned()])]));
    assert!(!supervisor.scrape().await.contains("default/extra"));
    supervisor.reload(desired(&["box", "extra"])).unwrap();
    assert_eq!(supervisor.places()[&Place::Embedded], ["box", "extra"]);
    assert!(supervisor.drain(Duration::from_secs(5)).await);
}
