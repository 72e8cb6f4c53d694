//! Deactivated: it survives everything, and ends only when somebody says so.

use crate::support::{Recorder, Reply, Setup, Stagepost, eventually, manifest, millis, seconds};

const STOPS: &str =
    "retry: {maxRedeliveries: 2, interval: 100ms, backoffFactor: 1, jitter: 0}\nonFailure: {action: Deactivate}";

fn deactivated(target: &Recorder) -> Stagepost {
    let run = Setup::manifests(manifest::line(&target.url(), STOPS)).start();
    run.post("/in", &[], "one");
    target.await_hits(3, seconds(4));
    run.await_state("out", "Deactivated", seconds(2));
    run
}

#[test]
fn r5b_a_process_killed_the_moment_it_deactivated_is_still_deactivated() {
    let target = Recorder::statuses(&[500]);
    let mut run = Setup::manifests(manifest::line(&target.url(), STOPS)).start();
    run.post("/in", &[], "one");
    target.await_hits(3, seconds(4));
    eventually("it says Deactivated", seconds(2), || (run.processor("out")["state"] == "Deactivated").then_some(()));
    run.restart();
    run.await_state("out", "Deactivated", seconds(2));
    target.stays_at(3, seconds(3));
    run.await_depth("box", 1, seconds(1));
}

#[test]
fn deactivated_survives_kill_9_again_and_again_with_all_it_knows() {
    let target = Recorder::statuses(&[500]);
    let mut run = deactivated(&target);
    let before = run.processor("out")["deactivation"].clone();
    for round in 0..3 {
        run.post("/in", &[], format!("more {round}"));
        run.restart();
        let status = run.await_state("out", "Deactivated", seconds(2));
        assert_eq!(status["deactivation"], before);
        run.await_depth("box", 2 + round, seconds(1));
    }
    target.stays_at(3, seconds(2));
    target.script(|_| Reply::status(200));
    run.reactivate("out");
    target.await_hits(7, seconds(5));
    assert_eq!(target.texts()[3..], ["one", "more 0", "more 1", "more 2"]);
    run.restart();
    run.await_state("out", "Active", seconds(2));
}

#[test]
fn an_outcome_in_the_deactivate_list_stops_at_once() {
    let target = Recorder::statuses(&[410]);
    let run = Setup::manifests(manifest::line(&target.url(), "outcomes: {deactivate: [410]}")).start();
    run.post("/in", &[], "one");
    run.post("/in", &[], "two");
    let status = run.await_state("out", "Deactivated", seconds(3));
    assert_eq!(status["deactivation"]["reason"], "DeactivateOutcome");
    target.stays_at(1, seconds(1));
    run.await_depth("box", 2, seconds(1));
}

#[test]
fn suspending_and_resuming_ends_a_deactivation() {
    let target = Recorder::statuses(&[500, 500, 500, 200]);
    let run = deactivated(&target);
    run.edit("stagepost.yaml", "onFailure: {action: Deactivate}", "onFailure: {action: Deactivate}\n  suspend: true");
    run.await_state("out", "Suspended", seconds(3));
    target.stays_at(3, seconds(1));
    run.edit("stagepost.yaml", "suspend: true", "suspend: false");
    run.await_state("out", "Active", seconds(3));
    target.await_hits(4, seconds(3));
    run.await_depth("box", 0, seconds(2));
}

#[test]
fn an_edit_that_changes_something_else_does_not_end_a_deactivation() {
    let target = Recorder::statuses(&[500]);
    let run = deactivated(&target);
    run.edit("stagepost.yaml", "maxRedeliveries: 2", "maxRedeliveries: 1");
    std::thread::sleep(seconds(3));
    run.await_state("out", "Deactivated", millis(500));
    target.stays_at(3, seconds(1));
}

#[test]
fn reactivating_an_unknown_or_active_processor_is_told_to_the_user() {
    let target = Recorder::start();
    let run = Setup::manifests(manifest::line(&target.url(), "")).start();
    let unknown = run.command(&["reactivate", "nobody"]);
    assert_eq!(unknown.code, 5, "{}{}", unknown.stdout, unknown.stderr);
    assert!(unknown.stderr.contains("nobody"), "{}", unknown.stderr);
    let status = run.command(&["status"]);
    assert_eq!(status.code, 0, "{}", status.stderr);
    for word in ["out", "box", "in", "Active"] {
        assert!(status.stdout.contains(word), "{}", status.stdout);
    }
}
