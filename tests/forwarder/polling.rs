//! Ticks, batches, gaps.

use stagepost::forwarder::Hindrance;
use stagepost::plan::{ForwarderPlan, PollPlan, SchedulePlan};
use stagepost::store::StoreError;

use super::bench::*;
use super::store::Event;
use super::target::{ScriptedTarget, at_once, response};

fn polling(schedule: SchedulePlan, batch_size: Option<u32>, gap: u64) -> ForwarderPlan {
    ForwarderPlan { poll: Some(PollPlan { schedule, batch_size, message_interval: millis(gap) }), ..plan() }
}

fn every(interval: u64) -> SchedulePlan {
    SchedulePlan::Interval(millis(interval))
}

#[tokio::test(start_paused = true)]
async fn r11_one_message_each_tick() {
    let bench = Bench::new(polling(every(100), Some(1), 0), ScriptedTarget::answering(202));
    bench.put(1..=20);
    let _forwarder = bench.start();
    bench.drained().await;
    let expected: Vec<f64> = (0..20).map(|tick| f64::from(tick) / 10.0).collect();
    assert_eq!(bench.target.seconds(), expected);
    let ids: Vec<String> = (1..=20).map(|id| id.to_string()).collect();
    assert_eq!(bench.source.acked(), ids);
    assert_eq!(bench.source.attached(), 0);
}

#[tokio::test(start_paused = true)]
async fn r11_groups_of_five_with_gaps() {
    let bench = Bench::new(polling(every(1000), Some(5), 100), ScriptedTarget::answering(202));
    bench.put(1..=20);
    let _forwarder = bench.start();
    bench.drained().await;
    let expected: Vec<f64> = (0..20).map(|n| f64::from(n / 5) + f64::from(n % 5) / 10.0).collect();
    assert_eq!(bench.target.seconds(), expected);
}

#[tokio::test(start_paused = true)]
async fn r12_all_that_were_there_at_the_tick_and_nothing_posted_later() {
    let soon = SchedulePlan::Cron { expression: "0 * * * * ?".into(), time_zone: "UTC".into() };
    let bench = Bench::new(polling(soon, None, 3000), ScriptedTarget::answering(202));
    bench.put(1..=4);
    let forwarder = bench.start();
    pass(seconds(59)).await;
    assert!(bench.target.hits().is_empty());
    assert_eq!(forwarder.report().next_tick, Some("2026-11-21T00:01:00Z".parse().unwrap()));
    pass(seconds(5)).await;
    bench.put([5]);
    bench.drained().await;
    assert_eq!(bench.target.seconds(), [60.0, 63.0, 66.0, 69.0, 120.0]);
}

#[tokio::test(start_paused = true)]
async fn a_tick_that_falls_into_a_running_batch_is_skipped() {
    let target = ScriptedTarget::new(|_| (millis(2500), response(202)));
    let bench = Bench::new(polling(every(1000), Some(1), 0), target);
    bench.put(1..=3);
    let _forwarder = bench.start();
    bench.drained().await;
    assert_eq!(bench.target.seconds(), [0.0, 3.0, 6.0]);
    assert_eq!(bench.source.most_attached(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_gap_is_from_end_to_start_and_not_between_retries() {
    let target =
        ScriptedTarget::new(|hit| (seconds(1), response(if hit.id == "1" && hit.attempt == 1 { 500 } else { 202 })));
    let bench = Bench::new(polling(every(60_000), Some(3), 2000), target);
    bench.put(1..=3);
    let _forwarder = bench.start();
    bench.drained().await;
    assert_eq!(bench.target.seconds(), [0.0, 4.0, 7.0, 10.0]);
}

#[tokio::test(start_paused = true)]
async fn a_large_batch_comes_in_rounds() {
    let bench = Bench::new(polling(every(60_000), Some(600), 0), ScriptedTarget::answering(202));
    bench.put(1..=700);
    let _forwarder = bench.start();
    pass(seconds(30)).await;
    assert_eq!((bench.target.hits().len(), bench.source.ids().len()), (600, 100));
    let rounds: Vec<Event> =
        bench.source.log().into_iter().filter(|event| matches!(event, Event::Attached(_))).collect();
    assert_eq!(rounds, [Event::Attached(256), Event::Attached(256), Event::Attached(88)]);
    assert!(!bench.source.log().iter().any(|event| matches!(event, Event::Returned(1..))));
}

#[tokio::test(start_paused = true)]
async fn an_empty_store_attaches_nothing() {
    let bench = Bench::new(polling(every(1000), Some(5), 0), ScriptedTarget::answering(202));
    let _forwarder = bench.start();
    pass(seconds(10)).await;
    assert_eq!(bench.source.log(), []);
}

#[tokio::test(start_paused = true)]
async fn messages_that_were_counted_and_are_gone_do_not_hold_up_a_tick() {
    let bench = Bench::new(polling(every(5000), Some(5), 0), ScriptedTarget::answering(202));
    bench.put([1]);
    bench.source.pretend_depth(Some(5));
    let _forwarder = bench.start();
    pass(seconds(3)).await;
    assert_eq!((bench.source.acked().len(), bench.source.attached()), (1, 0));
    bench.source.pretend_depth(None);
    bench.put([2]);
    bench.drained().await;
    assert_eq!(bench.target.seconds(), [0.0, 5.0]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_reaches_the_hold_limit_goes_on_in_the_same_tick() {
    let target = ScriptedTarget::new(|hit| at_once(if hit.id == "1" && hit.attempt < 4 { 500 } else { 202 }));
    let mut bench = Bench::new(polling(every(600_000), Some(3), 0), target);
    bench.plan.policy.backoff.interval = seconds(30);
    bench.hold_limit = seconds(20);
    bench.put(1..=4);
    let _forwarder = bench.start();
    pass(seconds(120)).await;
    assert_eq!(bench.target.asked(), ["1:1", "1:2", "1:3", "1:4", "2:1", "3:1"]);
    assert_eq!(bench.source.ids(), ["4"]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_lost_in_a_batch_loses_nothing_and_keeps_the_order() {
    let target = ScriptedTarget::new(|_| (millis(300), response(202)));
    let bench = Bench::new(polling(every(1000), Some(3), 0), target);
    bench.put(1..=9);
    let _forwarder = bench.start();
    pass(millis(400)).await;
    bench.source.break_connection();
    bench.source.fail_consume(Some(StoreError::NotConnected("gone".into())));
    pass(seconds(30)).await;
    bench.source.fail_consume(None);
    bench.drained().await;
    let ids: Vec<String> = (1..=9).map(|id| id.to_string()).collect();
    assert_eq!(bench.source.acked(), ids);
    assert_eq!(bench.target.hits().len(), 9);
}

#[tokio::test(start_paused = true)]
async fn a_batch_goes_on_when_a_lost_connection_is_back() {
    let target = ScriptedTarget::new(|_| (millis(300), response(202)));
    let bench = Bench::new(polling(every(600_000), Some(3), 0), target);
    bench.put(1..=4);
    let _forwarder = bench.start();
    pass(millis(400)).await;
    bench.source.break_connection();
    bench.source.fail_consume(Some(StoreError::NotConnected("gone".into())));
    pass(seconds(30)).await;
    bench.source.fail_consume(None);
    pass(seconds(60)).await;
    assert_eq!(bench.source.acked(), ["1", "2", "3"]);
    assert_eq!(bench.target.hits().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn times_that_passed_while_deactivated_are_not_made_up_for() {
    let hourly = SchedulePlan::Cron { expression: "0 0 * * * ?".into(), time_zone: "UTC".into() };
    let bench = Bench::new(polling(hourly, Some(1), 0), ScriptedTarget::answering(202));
    bench.put([1]);
    bench.source.set_record(Some(stagepost::core::deactivation::Deactivation {
        uid: String::new(),
        time: jiff::Timestamp::UNIX_EPOCH,
        message_id: "1".into(),
        reason: "MaxRedeliveries".into(),
        message: String::new(),
        attempts: 1,
    }));
    let forwarder = bench.start();
    deactivated(&forwarder).await;
    pass(seconds(5400)).await;
    forwarder.reactivate().await.unwrap();
    bench.drained().await;
    assert_eq!(bench.target.seconds(), [7200.0]);
}

#[tokio::test(start_paused = true)]
async fn times_that_passed_while_the_source_was_away_are_skipped_and_its_return_is_said_at_once() {
    let hourly = SchedulePlan::Cron { expression: "0 0 * * * ?".into(), time_zone: "UTC".into() };
    let bench = Bench::new(polling(hourly, Some(1), 0), ScriptedTarget::answering(202));
    bench.put([1]);
    bench.source.fail_reading(Some(StoreError::NotConnected("gone".into())));
    let forwarder = bench.start();
    pass(seconds(5400)).await;
    assert_eq!(forwarder.report().hindrance, Some(Hindrance::SourceUnavailable));
    bench.source.fail_reading(None);
    pass(seconds(60)).await;
    assert_eq!(forwarder.report().hindrance, None);
    bench.drained().await;
    assert_eq!(bench.target.seconds(), [7200.0]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_a_batch_between_two_messages() {
    let bench = Bench::new(polling(every(60_000), Some(5), 3000), ScriptedTarget::answering(202));
    bench.put(1..=5);
    let forwarder = bench.start();
    pass(seconds(4)).await;
    forwarder.stop(seconds(10)).await;
    pass(seconds(30)).await;
    assert_eq!((bench.target.hits().len(), bench.source.ids().len()), (2, 3));
}
