//! M6: suspending and deleting stop delivery within two seconds of the saved file, whatever goes on.

use std::time::{Duration, Instant};

use crate::support::{Recorder, Reply, Setup, Stagepost, manifest, millis, seconds};

/// No attempt may start later than this after the file was saved.
const STOPPED_WITHIN: Duration = seconds(2);

/// Watches that no hit comes later than allowed.
#[track_caller]
fn assert_no_hit_later(target: &Recorder, saved: Instant, watch: Duration) {
    std::thread::sleep(watch);
    let late: Vec<_> = target.hits().into_iter().filter(|hit| hit.at > saved + STOPPED_WITHIN).collect();
    assert!(late.is_empty(), "{} attempts after two seconds, the first after {:?}", late.len(), late[0].at - saved);
}

fn suspend(run: &Stagepost) -> Instant {
    let saved = Instant::now();
    run.edit("stagepost.yaml", "suspend: false", "suspend: true");
    saved
}

#[test]
fn m6_suspend_stops_delivery_keeps_accepting_and_resumes_where_it_stopped() {
    let target = Recorder::start();
    let run =
        Setup::manifests(manifest::line(&target.url(), "suspend: false\nrateLimit: {requests: 10, per: 1s}")).start();
    let mut sent: Vec<String> = (0..60).map(|number: u32| number.to_string()).collect();
    for number in &sent {
        run.post("/in", &[], number);
    }
    target.await_hits(5, seconds(5));
    let saved = suspend(&run);
    run.await_state("out", "Suspended", STOPPED_WITHIN);
    assert_no_hit_later(&target, saved, seconds(5));
    let done = target.count();
    assert!(done < 40, "{done} of 60 went out within two seconds at ten a second");
    assert_eq!(run.post("/in", &[], "late").status, 202);
    sent.push("late".into());
    run.await_depth("box", 61 - done as u64, seconds(1));
    let conditions = run.processor("out")["conditions"].clone();
    let delivering = conditions.as_array().into_iter().flatten().find(|one| one["type"] == "Delivering").cloned();
    assert_eq!(delivering.unwrap_or_default()["reason"], "Suspended", "{conditions:#}");

    run.edit("stagepost.yaml", "suspend: true", "suspend: false");
    target.await_hits(61, seconds(12));
    assert_eq!(target.texts(), sent);
}

#[test]
fn m6_suspend_in_the_middle_of_a_retry_wait_starts_no_further_attempt() {
    let target = Recorder::statuses(&[500]);
    let spec = "suspend: false\nretry: {maxRedeliveries: -1, interval: 3s, backoffFactor: 1, jitter: 0}";
    let run = Setup::manifests(manifest::line(&target.url(), spec)).start();
    run.post("/in", &[], "one");
    target.await_hits(1, seconds(3));
    let saved = suspend(&run);
    run.await_state("out", "Suspended", STOPPED_WITHIN);
    run.await_depth("box", 1, seconds(1));
    assert_no_hit_later(&target, saved, seconds(6));
    assert_eq!(target.count(), 1);
}

#[test]
fn m6_suspend_during_endless_fast_retries_stops_them() {
    let target = Recorder::statuses(&[500]);
    let spec = "suspend: false\nretry: {maxRedeliveries: -1, interval: 50ms, backoffFactor: 1, jitter: 0}";
    let run = Setup::manifests(manifest::line(&target.url(), spec)).start();
    run.post("/in", &[], "one");
    target.await_hits(5, seconds(3));
    let saved = suspend(&run);
    assert_no_hit_later(&target, saved, seconds(5));
    run.await_depth("box", 1, seconds(1));
}

#[test]
fn m6_deleting_a_processor_during_endless_retries_stops_them_and_keeps_the_message() {
    let target = Recorder::statuses(&[500]);
    let spec = "retry: {maxRedeliveries: -1, interval: 50ms, backoffFactor: 1, jitter: 0}";
    let run = Setup::manifests([manifest::store("box", ""), manifest::route("in", "/in", "box")].concat()).start();
    run.write("out.yaml", &manifest::processor("out", "box", &target.url(), spec));
    run.post("/in", &[], "one");
    target.await_hits(5, seconds(5));
    let saved = Instant::now();
    run.remove("out.yaml");
    assert_no_hit_later(&target, saved, seconds(5));
    run.await_depth("box", 1, seconds(1));
    assert_eq!(run.processor("out"), serde_json::Value::Null);

    target.script(|_| Reply::status(200));
    let before = target.count();
    run.write("out.yaml", &manifest::processor("out", "box", &target.url(), spec));
    target.await_hits(before + 1, seconds(5));
    run.await_depth("box", 0, seconds(2));
}

#[test]
fn an_attempt_in_flight_ends_by_itself_when_its_processor_is_suspended() {
    let target = Recorder::answering(|_| Reply::status(200).after(seconds(4)));
    let run = Setup::manifests(manifest::line(&target.url(), "suspend: false")).start();
    run.post("/in", &[], "one");
    run.post("/in", &[], "two");
    target.await_hits(1, seconds(3));
    suspend(&run);
    run.await_status("ForwardingProcessor", "out", seconds(8), |status| status["delivered"] == 1);
    run.await_depth("box", 1, seconds(2));
    target.stays_at(1, millis(1500));
}
