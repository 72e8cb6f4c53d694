//! Which messages wait for which, and how many are under way.

use std::time::Duration;

use stagepost::core::decision::OnFailure;
use stagepost::forwarder::{Hindrance, ProcessorState};
use stagepost::plan::{ForwarderPlan, OrderingPlan};

use super::bench::*;
use super::store::Event;
use super::target::{ScriptedTarget, at_once, response};

fn per_key(concurrency: u32) -> ForwarderPlan {
    ForwarderPlan { ordering: OrderingPlan::PerKey("headers['x-key']".into()), concurrency, ..plan() }
}

fn unordered(concurrency: u32) -> ForwarderPlan {
    ForwarderPlan { ordering: OrderingPlan::None, concurrency, ..plan() }
}

#[tokio::test(start_paused = true)]
async fn a_waiting_key_stops_only_its_own_messages() {
    let target = ScriptedTarget::new(|hit| at_once(if hit.id == "a:1" && hit.attempt < 3 { 500 } else { 202 }));
    let bench = Bench::new(per_key(4), target);
    bench.put(["a:1", "b:1", "a:2", "b:2"]);
    let _forwarder = bench.start();
    bench.drained().await;
    assert_eq!(bench.source.acked(), ["b:1", "b:2", "a:1", "a:2"]);
    assert_eq!(bench.target.hits().last().unwrap().at.as_secs(), 6);
}

#[tokio::test(start_paused = true)]
async fn messages_without_a_key_share_one_lane() {
    let target = ScriptedTarget::new(|_| (seconds(1), response(202)));
    let bench = Bench::new(per_key(8), target);
    bench.put(["1", "2", "a:1", "3"]);
    let _forwarder = bench.start();
    bench.drained().await;
    assert_eq!(bench.source.acked(), ["1", "a:1", "2", "3"]);
    assert_eq!(bench.target.seconds(), [0.0, 0.0, 1.0, 2.0]);
}

#[tokio::test(start_paused = true)]
async fn a_window_full_of_one_waiting_key_is_said() {
    let target = ScriptedTarget::new(|hit| at_once(if hit.id.starts_with('a') { 500 } else { 202 }));
    let bench = Bench::new(per_key(4), target);
    bench.put((1..=64).map(|number| format!("a:{number}")));
    bench.put(["b:1"]);
    let forwarder = bench.start();
    pass(seconds(1)).await;
    assert_eq!((forwarder.report().hindrance, forwarder.report().held), (Some(Hindrance::WindowFull), 64));
    assert_eq!(bench.target.asked(), ["a:1:1"]);
    // The first dead letter makes room for one more: the other key.
    pass(seconds(15)).await;
    assert!(bench.source.acked().contains(&"b:1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_cannot_be_evaluated_makes_a_dead_letter() {
    let ordering = OrderingPlan::PerKey("[1, 2] | int".into());
    let bench = Bench::new(ForwarderPlan { ordering, ..plan() }, ScriptedTarget::answering(202));
    bench.put([1]);
    let _forwarder = bench.start();
    bench.drained().await;
    assert!(bench.target.hits().is_empty());
    let death = bench.dlc.messages()[0].death.clone().unwrap();
    assert_eq!((death.reason.as_str(), death.attempts), ("TransformFailed", 0));
    assert!(death.last_error.unwrap().starts_with("orderingKey: "));
}

#[tokio::test(start_paused = true)]
async fn without_order_as_many_run_as_may_and_none_waits_for_another() {
    let target = ScriptedTarget::new(|hit| (seconds(if hit.id == "1" { 100 } else { 1 }), response(202)));
    let bench = Bench::new(unordered(4), target);
    bench.put(1..=31);
    let _forwarder = bench.start();
    pass(seconds(11)).await;
    assert_eq!(bench.source.ids(), ["1"]);
    assert_eq!(bench.target.most_running(), 4);
    bench.drained().await;
}

#[tokio::test(start_paused = true)]
async fn strict_never_runs_two_whatever_concurrency_says() {
    let bench =
        Bench::new(ForwarderPlan { concurrency: 8, ..plan() }, ScriptedTarget::new(|_| (millis(10), response(202))));
    bench.put(1..=20);
    let _forwarder = bench.start();
    bench.drained().await;
    assert_eq!(bench.target.most_running(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_window_is_as_wide_as_the_order_needs() {
    for (plan, expected) in [
        (plan(), 256),
        (per_key(1), 64),
        (per_key(16), 256),
        (per_key(1000), 1024),
        (unordered(1), 64),
        (unordered(16), 64),
        (unordered(100), 200),
    ] {
        let bench = Bench::new(plan, ScriptedTarget::answering(202));
        let _forwarder = bench.start();
        until(|| bench.source.attached() == 1).await;
        assert_eq!(bench.source.log(), [Event::Attached(expected)]);
    }
}

#[tokio::test(start_paused = true)]
async fn large_messages_are_returned_together_and_taken_in_small_numbers() {
    let target = ScriptedTarget::new(|_| (seconds(1), response(202)));
    let bench = Bench::new(plan(), target);
    for id in 1..=12 {
        let mut large = message(id);
        large.body = vec![0; 8 * 1024 * 1024].into();
        bench.source.put(large);
    }
    let _forwarder = bench.start();
    bench.drained().await;
    let expected: Vec<String> = (1..=12).map(|id| id.to_string()).collect();
    assert_eq!(bench.source.acked(), expected);
    assert_eq!(bench.target.hits().len(), 12);
    let log = bench.source.log();
    assert!(log.contains(&Event::Returned(9)), "{log:?}");
    assert!(log.contains(&Event::Attached(4)), "{log:?}");
    // Quiet for a while, the window is wide again.
    pass(seconds(60)).await;
    bench.put([13, 14]);
    bench.drained().await;
    assert_eq!(bench.source.log().iter().filter(|event| **event == Event::Attached(256)).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_a_transform_made_counts_among_what_is_held() {
    let mut plan = unordered(2);
    // 4 MB of 1 byte: the 64 MiB are full at the 17th.
    let template = "{% set part = 'x' * 1000000 %}{{ part }}{{ part }}{{ part }}{{ part }}";
    plan.transform = vec![stagepost::expression::Step::SetBody { template: template.into() }];
    let target = ScriptedTarget::new(|hit| at_once(if hit.attempt == 1 { 500 } else { 202 }));
    let bench = Bench::new(plan, target);
    bench.put(1..=40);
    let forwarder = bench.start();
    until(|| bench.source.log().iter().any(|event| matches!(event, Event::Returned(_)))).await;
    let made = bench.target.hits().len();
    assert!((17..=19).contains(&made), "{made} results were held");
    until(|| bench.source.log().contains(&Event::Attached(8))).await;
    bench.drained().await;
    assert_eq!(forwarder.report().delivered, 40);
}

#[tokio::test(start_paused = true)]
async fn a_narrow_window_becomes_wide_again_under_load() {
    // Of different lengths, so that something is always under way.
    let target = ScriptedTarget::new(|hit| {
        let number: u64 = hit.id.parse().unwrap();
        (millis(400 + 37 * (number % 7)), response(202))
    });
    let bench = Bench::new(unordered(4), target);
    for id in 1..=12 {
        let mut large = message(id);
        large.body = vec![0; 8 * 1024 * 1024].into();
        bench.source.put(large);
    }
    bench.put(13..=2000);
    let _forwarder = bench.start();
    pass(seconds(90)).await;
    assert!(!bench.source.messages().is_empty(), "still under load");
    let windows: Vec<Event> =
        bench.source.log().into_iter().filter(|event| matches!(event, Event::Attached(_))).collect();
    assert_eq!(windows, [Event::Attached(64), Event::Attached(4), Event::Attached(64)]);
    bench.drained().await;
    assert_eq!(bench.target.hits().len(), 2000);
}

#[tokio::test(start_paused = true)]
async fn c14_several_that_fail_at_once_deactivate_once_and_lose_nothing() {
    let target = ScriptedTarget::new(|_| (seconds(1), response(410)));
    let mut plan = ForwarderPlan { concurrency: 4, ..on_failure(OnFailure::Deactivate) };
    plan.ordering = OrderingPlan::None;
    let bench = Bench::new(plan, target);
    bench.put(1..=10);
    let forwarder = bench.start();
    deactivated(&forwarder).await;
    assert_eq!((bench.target.hits().len(), bench.source.ids().len()), (4, 10));
    assert_eq!(bench.source.log().iter().filter(|event| **event == Event::RecordStored).count(), 1);
    pass(seconds(30)).await;
    assert_eq!((bench.target.hits().len(), bench.source.attached()), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_another_wrote_stops_within_the_interval_and_before_redelivered_messages() {
    let target = ScriptedTarget::new(|_| (millis(100), response(202)));
    let mut bench = Bench::new(unordered(1), target);
    bench.check_record_every = Some(seconds(1));
    bench.put(1..=1000);
    let forwarder = bench.start();
    pass(seconds(5)).await;
    bench.source.set_record(Some(record()));
    deactivated(&forwarder).await;
    let hits = bench.target.hits().len();
    assert!((50..62).contains(&hits), "{hits}");
    pass(seconds(10)).await;
    assert_eq!(bench.target.hits().len(), hits);
    // Removed by another: it goes on by itself.
    bench.source.set_record(None);
    until(|| forwarder.report().state == ProcessorState::Active).await;
    bench.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_redelivered_message_is_attempted_only_after_the_record_was_read() {
    let bench_with = |check| {
        let mut bench = Bench::new(unordered(4), ScriptedTarget::new(|_| (Duration::ZERO, response(202))));
        bench.check_record_every = check;
        bench
    };
    let bench = bench_with(Some(seconds(3600)));
    let forwarder = bench.start();
    until(|| bench.source.attached() == 1).await;
    bench.source.set_record(Some(record()));
    bench.source.put_redelivered(message("1"));
    deactivated(&forwarder).await;
    assert!(bench.target.hits().is_empty());
    assert_eq!(bench.source.ids(), ["1"]);
}

fn record() -> stagepost::core::deactivation::Deactivation {
    stagepost::core::deactivation::Deactivation {
        uid: String::new(),
        time: jiff::Timestamp::UNIX_EPOCH,
        message_id: "1".into(),
        reason: "MaxRedeliveries".into(),
        message: "status 500".into(),
        attempts: 6,
    }
}
