//! Attempts, retries, giving up: push and poll with one lane.

use std::time::Duration;

use stagepost::core::decision::{OnFailure, WhileUnreachable};
use stagepost::core::outcome::Outcome;
use stagepost::forwarder::{Hindrance, ProcessorState};
use stagepost::store::{PublishError, StoreError};

use super::bench::*;
use super::store::Event;
use super::target::{ScriptedTarget, at_once, response, response_with};

#[tokio::test(start_paused = true)]
async fn a_message_is_delivered_once_and_leaves_the_source() {
    let bench = Bench::new(plan(), ScriptedTarget::answering(202));
    bench.put([1]);
    let forwarder = bench.start();
    bench.drained().await;
    let hits = bench.target.hits();
    assert_eq!(hits.len(), 1);
    assert_eq!((hits[0].method.as_str(), hits[0].append.as_deref()), ("POST", None));
    assert_eq!(hits[0].headers["stagepost-message-id"], "1");
    assert_eq!(hits[0].headers["idempotency-key"], "1");
    assert!(!hits[0].headers.contains_key("stagepost-redelivered"));
    let report = forwarder.report();
    assert_eq!((report.delivered, report.failed_attempts, report.held), (1, 0, 0));
    assert_eq!(report.last_delivery.unwrap().status, Some(202));
    assert_eq!((report.state, report.target_reachable), (ProcessorState::Active, Some(true)));
}

#[tokio::test(start_paused = true)]
async fn r2_six_attempts_three_seconds_apart_then_the_dead_letter_store() {
    for status in [500, 400] {
        let mut plan = plan();
        plan.poll = Some(poll(every_two_seconds()));
        let bench = Bench::new(plan, ScriptedTarget::answering(status));
        bench.put([1]);
        let forwarder = bench.start();
        bench.drained().await;
        assert_eq!(bench.target.seconds(), [2.0, 5.0, 8.0, 11.0, 14.0, 17.0]);
        assert_eq!(bench.target.asked(), ["1:1", "1:2", "1:3", "1:4", "1:5", "1:6"]);
        let dead = bench.dlc.messages().pop().unwrap();
        let death = dead.death.clone().unwrap();
        assert_eq!((death.reason.as_str(), death.attempts, death.last_status), ("MaxRedeliveries", 6, Some(status)));
        assert_eq!((death.processor.as_str(), death.source.as_str()), ("shop/settle", "orders"));
        assert!(death.first_at < death.last_at);
        assert_eq!(dead.body, "1");
        let report = forwarder.report();
        assert_eq!((report.failed_attempts, report.dead_lettered, report.delivered), (6, 1, 0));
        assert_eq!(report.last_failure.unwrap().reason, "MaxRedeliveries");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_retried_goes_to_the_dead_letter_store_at_once() {
    let bench = Bench::new(plan(), ScriptedTarget::answering(404));
    bench.put([1]);
    let _forwarder = bench.start();
    bench.drained().await;
    assert_eq!(bench.target.hits().len(), 1);
    assert_eq!(bench.dlc.messages()[0].death.as_ref().unwrap().reason, "Rejected");
}

#[tokio::test(start_paused = true)]
async fn r3_a_refused_connection_counts_if_it_shall() {
    let refused = || (Duration::ZERO, Outcome::ConnectionError("connection refused".into()));
    let bench = Bench::new(plan(), ScriptedTarget::new(move |_| refused()));
    bench.put([1]);
    let forwarder = bench.start();
    bench.drained().await;
    assert_eq!(bench.target.seconds(), [0.0, 3.0, 6.0, 9.0, 12.0, 15.0]);
    let death = bench.dlc.messages()[0].death.clone().unwrap();
    assert_eq!((death.reason.as_str(), death.last_error.as_deref()), ("MaxRedeliveries", Some("connection refused")));
    assert_eq!(forwarder.report().target_reachable, Some(false));
}

#[tokio::test(start_paused = true)]
async fn r4_a_target_that_recovers_gets_the_message() {
    let target = ScriptedTarget::new(|hit| at_once(if hit.attempt < 3 { 500 } else { 202 }));
    let bench = Bench::new(plan(), target);
    bench.put([1]);
    let _forwarder = bench.start();
    bench.drained().await;
    assert_eq!(bench.target.seconds(), [0.0, 3.0, 6.0]);
    assert!(bench.dlc.messages().is_empty());
}

#[tokio::test(start_paused = true)]
async fn r5_deactivated_keeps_the_message_over_ticks_and_restarts_and_starts_again_at_attempt_1() {
    let repaired = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let fixed = std::sync::Arc::clone(&repaired);
    let target =
        ScriptedTarget::new(move |_| at_once(if fixed.load(std::sync::atomic::Ordering::Relaxed) { 202 } else { 500 }));
    let mut plan = on_failure(OnFailure::Deactivate);
    plan.poll = Some(poll(every_two_seconds()));
    let bench = Bench::new(plan, target);
    bench.put([1]);
    let forwarder = bench.start();
    deactivated(&forwarder).await;
    assert_eq!(bench.target.hits().len(), 6);
    let record = forwarder.report().deactivation.unwrap();
    assert_eq!((record.message_id.as_str(), record.reason.as_str(), record.attempts), ("1", "MaxRedeliveries", 6));
    assert_eq!(forwarder.report().hindrance, Some(Hindrance::Deactivated));
    bench.put([2]);
    pass(seconds(10)).await;
    assert_eq!(forwarder.stop(seconds(1)).await.cut_off, 0);
    assert_eq!((bench.target.hits().len(), bench.source.ids()), (6, vec!["1".to_owned(), "2".to_owned()]));

    let again = bench.start();
    pass(seconds(10)).await;
    assert_eq!((again.report().state, bench.target.hits().len()), (ProcessorState::Deactivated, 6));
    repaired.store(true, std::sync::atomic::Ordering::Relaxed);
    again.reactivate().await.unwrap();
    bench.drained().await;
    assert_eq!(bench.target.asked()[6..], ["1:1", "2:1"]);
    assert_eq!((again.report().state, again.report().deactivation), (ProcessorState::Active, None));
}

#[tokio::test(start_paused = true)]
async fn the_record_is_stored_before_anything_is_returned() {
    let bench = Bench::new(on_failure(OnFailure::Deactivate), ScriptedTarget::answering(404));
    bench.put([1, 2, 3]);
    let forwarder = bench.start();
    deactivated(&forwarder).await;
    let log = bench.source.log();
    let recorded = log.iter().position(|event| *event == Event::RecordStored).unwrap();
    let returned = log.iter().position(|event| matches!(event, Event::Returned(_))).unwrap();
    assert!(recorded < returned);
    assert_eq!(bench.target.hits().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn while_the_record_cannot_be_stored_nothing_is_delivered_and_it_is_tried_again() {
    let mut bench = Bench::new(on_failure(OnFailure::Deactivate), ScriptedTarget::answering(404));
    bench.hold_limit = seconds(60);
    bench.source.fail_record(Some(StoreError::Disk("full".into())));
    bench.put([1, 2]);
    let forwarder = bench.start();
    pass(seconds(30)).await;
    assert_eq!(forwarder.report().hindrance, Some(Hindrance::DeactivationNotStored));
    assert_eq!(forwarder.report().held, 2);
    // Beyond the hold limit the messages are back, and still nothing is delivered.
    pass(seconds(300)).await;
    assert_eq!((bench.target.hits().len(), forwarder.report().held), (1, 0));
    bench.source.fail_record(None);
    deactivated(&forwarder).await;
    assert_eq!((bench.target.hits().len(), bench.source.record().unwrap().message_id.as_str()), (1, "1"));
    assert_eq!(bench.source.ids(), ["1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn r6_dropped_is_counted_and_the_next_goes_on() {
    let target = ScriptedTarget::new(|hit| at_once(if hit.id == "1" { 500 } else { 202 }));
    let bench = Bench::new(on_failure(OnFailure::Drop), target);
    bench.put([1, 2]);
    let forwarder = bench.start();
    bench.drained().await;
    assert_eq!((forwarder.report().dropped, forwarder.report().delivered), (1, 1));
    assert_eq!(bench.target.asked(), ["1:1", "1:2", "1:3", "1:4", "1:5", "1:6", "2:1"]);
}

#[tokio::test(start_paused = true)]
async fn r8_a_poisonous_message_does_not_overlap_with_the_next() {
    let target = ScriptedTarget::new(|hit| (seconds(1), response(if hit.id == "1" { 500 } else { 202 })));
    let bench = Bench::new(plan(), target);
    bench.put([1, 2]);
    let _forwarder = bench.start();
    bench.drained().await;
    assert_eq!(bench.target.asked(), ["1:1", "1:2", "1:3", "1:4", "1:5", "1:6", "2:1"]);
    assert_eq!(bench.target.most_running(), 1);
}

#[tokio::test(start_paused = true)]
async fn r13_first_successes_are_in_order_whatever_fails() {
    let target = ScriptedTarget::new(|hit| {
        let hash = hit.id.bytes().fold(hit.attempt, |hash, byte| hash.wrapping_mul(31) + u32::from(byte));
        at_once(if hash % 3 == 0 || hit.attempt > 4 { 200 } else { 500 })
    });
    let bench = Bench::new(plan(), target);
    bench.put(1..=100);
    let _forwarder = bench.start();
    bench.drained().await;
    let expected: Vec<String> = (1..=100).map(|id| id.to_string()).collect();
    assert_eq!(bench.source.acked(), expected);
    assert!(bench.dlc.messages().is_empty());
}

#[tokio::test(start_paused = true)]
async fn r14_a_dead_letter_store_that_takes_nothing_holds_the_message_in_its_place() {
    let target = ScriptedTarget::new(|hit| at_once(if hit.id == "1" { 404 } else { 202 }));
    let mut bench = Bench::new(plan(), target);
    bench.hold_limit = seconds(60);
    bench.dlc.fail_publish(Some(PublishError::Refused("full".into())));
    bench.put([1, 2]);
    let forwarder = bench.start();
    pass(seconds(30)).await;
    assert_eq!(forwarder.report().hindrance, Some(Hindrance::DeadLetterStoreUnavailable));
    pass(seconds(600)).await;
    assert_eq!(bench.target.asked(), ["1:1"]);
    assert_eq!(bench.source.ids(), ["1", "2"]);
    bench.dlc.fail_publish(None);
    bench.drained().await;
    assert_eq!(bench.target.asked(), ["1:1", "2:1"]);
    assert_eq!(bench.dlc.ids(), ["1"]);
    assert_eq!(forwarder.report().hindrance, None);
}

#[tokio::test(start_paused = true)]
async fn r16_each_timeout_is_an_attempt() {
    let bench = Bench::new(plan(), ScriptedTarget::new(|_| (seconds(2), Outcome::Timeout)));
    bench.put([1]);
    let _forwarder = bench.start();
    bench.drained().await;
    assert_eq!(bench.target.seconds(), [0.0, 5.0, 10.0, 15.0, 20.0, 25.0]);
    assert_eq!(bench.dlc.messages()[0].death.as_ref().unwrap().last_error.as_deref(), Some("timeout"));
}

#[tokio::test(start_paused = true)]
async fn a_target_that_keeps_no_bound_is_cut_off_by_ours() {
    let bench = Bench::new(
        plan(),
        ScriptedTarget::new(|hit| if hit.attempt == 1 { (seconds(100_000), response(202)) } else { at_once(202) }),
    );
    bench.put([1]);
    let _forwarder = bench.start();
    bench.drained().await;
    assert_eq!(bench.target.asked(), ["1:1", "1:2"]);
}

#[tokio::test(start_paused = true)]
async fn r17_an_unreachable_target_uses_up_no_attempts() {
    let mut plan = plan();
    plan.policy.while_unreachable = WhileUnreachable::Wait;
    plan.policy.backoff.interval = millis(250);
    let target = ScriptedTarget::new(|hit| {
        let down = hit.at < seconds(30);
        if down { (Duration::ZERO, Outcome::ConnectionError("connection refused".into())) } else { at_once(202) }
    });
    let bench = Bench::new(plan, target);
    bench.put(1..=5);
    let _forwarder = bench.start();
    bench.drained().await;
    assert_eq!(bench.source.acked(), ["1", "2", "3", "4", "5"]);
    assert!(bench.dlc.messages().is_empty());
    assert!(bench.target.hits().iter().all(|hit| hit.attempt == 1));
}

#[tokio::test(start_paused = true)]
async fn r18_a_plan_longer_than_the_hold_limit_goes_on_counting() {
    let target = ScriptedTarget::new(|hit| at_once(if hit.id == "1" { 500 } else { 202 }));
    let mut bench = Bench::new(plan(), target);
    bench.plan.policy.backoff.interval = seconds(30);
    bench.hold_limit = seconds(20);
    bench.put([1, 2, 3]);
    let _forwarder = bench.start();
    bench.drained().await;
    assert_eq!(bench.target.asked(), ["1:1", "1:2", "1:3", "1:4", "1:5", "1:6", "2:1", "3:1"]);
    assert_eq!(bench.target.seconds(), [0.0, 30.0, 60.0, 90.0, 120.0, 150.0, 150.0, 150.0]);
    assert!(bench.source.log().contains(&Event::Returned(3)));
    assert_eq!((bench.dlc.ids(), bench.source.most_attached()), (vec!["1".to_owned()], 1));
}

#[tokio::test(start_paused = true)]
async fn m6_a_stop_in_the_middle_of_a_retry_wait_returns_at_once_and_counts_nothing() {
    let bench = Bench::new(plan(), ScriptedTarget::answering(500));
    bench.put([1, 2]);
    let forwarder = bench.start();
    pass(seconds(4)).await;
    let asked = tokio::time::Instant::now();
    assert_eq!(forwarder.stop(seconds(60)).await.cut_off, 0);
    assert!(asked.elapsed() < millis(10));
    pass(seconds(60)).await;
    assert_eq!((bench.target.hits().len(), bench.source.ids()), (2, vec!["1".to_owned(), "2".to_owned()]));
    assert!(bench.dlc.messages().is_empty());
    assert_eq!(bench.source.attached(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_the_attempt_under_way_end_and_starts_no_other() {
    let bench = Bench::new(plan(), ScriptedTarget::new(|_| (seconds(5), response(202))));
    bench.put([1, 2]);
    let forwarder = bench.start();
    pass(seconds(1)).await;
    assert_eq!(forwarder.stop(seconds(60)).await.cut_off, 0);
    assert_eq!((bench.source.acked(), bench.source.ids()), (vec!["1".to_owned()], vec!["2".to_owned()]));
    assert_eq!(bench.target.hits().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_grace_period_that_is_over_cuts_off_and_returns() {
    let bench = Bench::new(plan(), ScriptedTarget::new(|_| (seconds(50), response(202))));
    bench.put([1, 2]);
    let forwarder = bench.start();
    pass(seconds(1)).await;
    assert_eq!(forwarder.stop(seconds(5)).await.cut_off, 1);
    assert_eq!((bench.source.ids(), bench.source.attached()), (vec!["1".to_owned(), "2".to_owned()], 0));
    assert_eq!(forwarder.report().failed_attempts, 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_handle_stops_and_returns() {
    let bench = Bench::new(plan(), ScriptedTarget::answering(500));
    bench.put([1]);
    drop(bench.start());
    pass(seconds(30)).await;
    assert!(bench.target.hits().len() <= 1);
    assert_eq!((bench.source.ids(), bench.source.attached()), (vec!["1".to_owned()], 0));
}

#[tokio::test(start_paused = true)]
async fn retry_after_of_429_and_503_pauses_everything_and_other_waits_only_the_message() {
    for (status, expected) in [(503, [0.0, 20.0]), (429, [0.0, 20.0])] {
        let mut plan = plan();
        plan.ordering = stagepost::plan::OrderingPlan::None;
        let target = ScriptedTarget::new(move |hit| {
            let first = hit.id == "1" && hit.attempt == 1;
            if first { (Duration::ZERO, response_with(status, "retry-after", "20")) } else { at_once(202) }
        });
        let bench = Bench::new(plan, target);
        bench.put([1, 2]);
        let forwarder = bench.start();
        pass(seconds(10)).await;
        assert_eq!(forwarder.report().hindrance, Some(Hindrance::PausedByTarget));
        bench.drained().await;
        assert_eq!(bench.target.seconds()[..2], expected);
        assert_eq!(bench.target.hits().len(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_pause_that_was_asked_for_holds_up_the_others() {
    for (asked, expected) in [("2", [0.0, 2.0, 2.0, 30.0]), ("0", [0.0, 0.0, 0.0, 30.0])] {
        let mut plan = plan();
        plan.ordering = stagepost::plan::OrderingPlan::None;
        plan.policy.backoff.interval = seconds(30);
        let target = ScriptedTarget::new(move |hit| {
            let first = hit.id == "1" && hit.attempt == 1;
            if first { (Duration::ZERO, response_with(503, "retry-after", asked)) } else { at_once(202) }
        });
        let bench = Bench::new(plan, target);
        bench.put([1, 2, 3]);
        let _forwarder = bench.start();
        bench.drained().await;
        assert_eq!(bench.target.asked(), ["1:1", "2:1", "3:1", "1:2"]);
        assert_eq!(bench.target.seconds(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_overlaps_nothing_keeps_order_and_goes_on_counting() {
    let target = ScriptedTarget::new(|hit| (seconds(2), response(if hit.attempt < 3 { 500 } else { 202 })));
    let bench = Bench::new(plan(), target);
    bench.put([1, 2]);
    let _forwarder = bench.start();
    // In the middle of the second attempt.
    pass(seconds(6)).await;
    bench.source.break_connection();
    bench.drained().await;
    assert_eq!(bench.target.asked(), ["1:1", "1:2", "1:3", "2:1", "2:2", "2:3"]);
    assert_eq!((bench.source.acked(), bench.source.most_attached()), (vec!["1".to_owned(), "2".to_owned()], 1));
}

#[tokio::test(start_paused = true)]
async fn what_was_delivered_while_the_connection_broke_is_acknowledged_and_not_sent_again() {
    let bench = Bench::new(plan(), ScriptedTarget::new(|_| (seconds(2), response(202))));
    bench.put([1, 2]);
    let forwarder = bench.start();
    pass(seconds(1)).await;
    bench.source.break_connection();
    bench.drained().await;
    assert_eq!(bench.target.asked(), ["1:1", "2:1"]);
    assert_eq!(forwarder.report().delivered, 2);
}

#[tokio::test(start_paused = true)]
async fn a_message_of_another_client_is_sent_again_because_its_id_may_not_be_unique() {
    let bench = Bench::new(plan(), ScriptedTarget::new(|_| (seconds(2), response(202))));
    let mut foreign = message(1);
    foreign.origin = None;
    bench.source.put(foreign);
    let _forwarder = bench.start();
    pass(seconds(1)).await;
    bench.source.break_connection();
    bench.drained().await;
    assert_eq!(bench.target.hits().len(), 2);
    assert_eq!(bench.target.hits()[1].headers["stagepost-redelivered"], "true");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_cannot_be_consumed_is_tried_again_and_said() {
    let bench = Bench::new(plan(), ScriptedTarget::answering(202));
    bench.source.fail_consume(Some(StoreError::NotFound("no queue".into())));
    bench.put([1]);
    let forwarder = bench.start();
    pass(seconds(100)).await;
    assert_eq!(forwarder.report().hindrance, Some(Hindrance::SourceUnavailable));
    bench.source.fail_consume(None);
    bench.drained().await;
    assert_eq!(forwarder.report().hindrance, None);
}

#[tokio::test(start_paused = true)]
async fn a_panic_returns_what_was_held_and_the_work_goes_on() {
    let mut plan = plan();
    plan.circuit_breaker = Some(stagepost::core::breaker::BreakerPolicy { failures: 1, open_for: seconds(10) });
    let target = ScriptedTarget::new(|hit| {
        // The probe after the breaker opened.
        assert!(hit.id != "1" || !(seconds(9)..seconds(11)).contains(&hit.at), "a bug");
        at_once(if hit.at < seconds(5) { 500 } else { 202 })
    });
    let bench = Bench::new(plan, target);
    bench.put([1, 2]);
    let _forwarder = bench.start();
    bench.drained().await;
    assert_eq!(bench.source.acked(), ["1", "2"]);
    assert_eq!(bench.target.seconds(), [0.0, 10.0, 11.0, 11.0]);
}

#[tokio::test(start_paused = true)]
async fn a_reactivation_while_the_record_cannot_be_read_says_what_came_of_it() {
    let bench = Bench::new(on_failure(OnFailure::Deactivate), ScriptedTarget::answering(404));
    bench.source.fail_record(Some(StoreError::NotConnected("down".into())));
    bench.put([1]);
    let mut short = bench;
    short.hold_limit = seconds(5);
    let forwarder = short.start();
    // The record could not be stored, and what was held is back.
    pass(seconds(60)).await;
    assert_eq!(short.target.hits().len(), 1);
    forwarder.reactivate().await.unwrap();
    pass(seconds(30)).await;
    // Attempt 1 again: the human wanted it.
    assert_eq!(short.target.asked(), ["1:1", "1:1"]);
}

#[tokio::test(start_paused = true)]
async fn a_reactivation_while_the_record_is_on_its_way_takes_the_deactivation_back() {
    let bench = Bench::new(on_failure(OnFailure::Deactivate), ScriptedTarget::answering(404));
    bench.source.fail_record(Some(StoreError::NotConnected("down".into())));
    bench.put([1]);
    let forwarder = bench.start();
    pass(seconds(10)).await;
    assert_eq!(forwarder.report().hindrance, Some(Hindrance::DeactivationNotStored));
    forwarder.reactivate().await.unwrap();
    pass(seconds(5)).await;
    assert_eq!(bench.target.asked(), ["1:1", "1:1"]);
    assert_eq!(bench.source.ids(), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn in_a_batch_nothing_is_delivered_before_a_deactivation_is_stored_either() {
    let mut plan = on_failure(OnFailure::Deactivate);
    plan.poll = Some(poll(every_two_seconds()));
    let mut bench = Bench::new(plan, ScriptedTarget::answering(404));
    bench.hold_limit = seconds(60);
    bench.source.fail_record(Some(StoreError::Disk("full".into())));
    bench.put([1, 2]);
    let forwarder = bench.start();
    pass(seconds(300)).await;
    assert_eq!(bench.target.hits().len(), 1);
    bench.source.fail_record(None);
    deactivated(&forwarder).await;
    assert_eq!(bench.target.hits().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_on_what_others_may_have_delivered_is_counted_and_on_what_we_returned_it_is_not() {
    let counted = |bench: &Bench| {
        let line = r#"stagepost_possible_duplicates_total{processor="shop/settle",cause="redelivered"} "#;
        let text = bench.metrics.encode();
        text.lines().find_map(|found| found.strip_prefix(line)).map(str::to_owned)
    };
    let target = ScriptedTarget::new(|hit| at_once(if hit.id == "1" && hit.attempt < 4 { 500 } else { 202 }));
    let mut bench = Bench::new(plan(), target);
    bench.hold_limit = seconds(5);
    bench.put([1, 2]);
    let _forwarder = bench.start();
    bench.drained().await;
    assert!(bench.source.log().contains(&Event::Returned(2)));
    assert_eq!(counted(&bench).as_deref(), Some("0"));
    bench.source.put_redelivered(message(3));
    bench.drained().await;
    assert_eq!(counted(&bench).as_deref(), Some("1"));
}
