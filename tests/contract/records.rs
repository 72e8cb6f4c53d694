//! The deactivation record: durable, the first one stays, gone only by an explicit act.

use stagepost::core::deactivation::Deactivation;

use crate::subject::{Subject, plain};

fn record(message: &str) -> Deactivation {
    Deactivation {
        uid: "uid-1".to_owned(),
        time: "2026-11-21T08:00:00Z".parse().unwrap(),
        message_id: "m000001".to_owned(),
        reason: "MaxRedeliveries".to_owned(),
        message: message.to_owned(),
        attempts: 4,
    }
}

pub(crate) async fn there_is_no_deactivation_record_at_first(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    assert_eq!(store.deactivation("default.p").await.unwrap(), None);
    store.reactivate("default.p").await.unwrap();
}

pub(crate) async fn a_deactivation_record_survives_a_restart(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    store.deactivate("default.p", &record("status 500")).await.unwrap();
    assert_eq!(store.deactivation("default.p").await.unwrap(), Some(record("status 500")));
    drop(store);
    let subject = subject.restart().await;
    let store = subject.store("s", &plain("q")).await.unwrap();
    assert_eq!(store.deactivation("default.p").await.unwrap(), Some(record("status 500")));
}

pub(crate) async fn the_first_deactivation_record_stays(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    store.deactivate("default.p", &record("first")).await.unwrap();
    store.deactivate("default.p", &record("second")).await.unwrap();
    assert_eq!(store.deactivation("default.p").await.unwrap(), Some(record("first")));
}

pub(crate) async fn reactivation_removes_the_record_for_good(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    store.deactivate("default.p", &record("first")).await.unwrap();
    store.reactivate("default.p").await.unwrap();
    assert_eq!(store.deactivation("default.p").await.unwrap(), None);
    drop(store);
    let subject = subject.restart().await;
    let store = subject.store("s", &plain("q")).await.unwrap();
    assert_eq!(store.deactivation("default.p").await.unwrap(), None);
}

pub(crate) async fn records_of_two_processors_are_apart(subject: impl Subject) {
    let store = subject.store("s", &plain("q")).await.unwrap();
    store.deactivate("default.p", &record("p")).await.unwrap();
    store.deactivate("other.p", &record("other")).await.unwrap();
    store.reactivate("default.p").await.unwrap();
    assert_eq!(store.deactivation("default.p").await.unwrap(), None);
    assert_eq!(store.deactivation("other.p").await.unwrap(), Some(record("other")));
}
