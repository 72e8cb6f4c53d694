//! Rate, breaker, hold limit under waits that pacing makes.

use stagepost::core::breaker::BreakerPolicy;
use stagepost::core::rate::RateLimit;
use stagepost::forwarder::Hindrance;
use stagepost::plan::OrderingPlan;

use super::bench::*;
use super::store::Event;
use super::target::{ScriptedTarget, at_once, response};

#[tokio::test(start_paused = true)]
async fn attempts_keep_the_rate_with_retries_included() {
    let mut plan = plan();
    plan.ordering = OrderingPlan::None;
    plan.concurrency = 10;
    plan.policy.backoff.interval = millis(10);
    plan.rate_limit = Some(RateLimit { requests: 10, per: seconds(1), burst: 1 });
    let target = ScriptedTarget::new(|hit| at_once(if hit.attempt == 1 { 500 } else { 202 }));
    let bench = Bench::new(plan, target);
    bench.put(1..=20);
    let _forwarder = bench.start();
    bench.drained().await;
    let hits = bench.target.hits();
    assert_eq!(hits.len(), 40);
    for pair in hits.windows(2) {
        assert!(pair[1].at.checked_sub(pair[0].at).unwrap() >= millis(100), "{:?} {:?}", pair[0].at, pair[1].at);
    }
    assert!(hits[39].at <= millis(4100), "{:?}", hits[39].at);
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_makes_no_attempt_and_lets_one_probe_through() {
    let mut plan = plan();
    plan.ordering = OrderingPlan::None;
    plan.concurrency = 8;
    plan.policy.max_redeliveries = Some(1000);
    plan.policy.backoff.interval = millis(100);
    plan.circuit_breaker = Some(BreakerPolicy { failures: 5, open_for: seconds(30) });
    let target = ScriptedTarget::new(|hit| (millis(10), response(if hit.at < seconds(50) { 503 } else { 202 })));
    let bench = Bench::new(plan, target);
    bench.put(1..=50);
    let forwarder = bench.start();
    pass(seconds(20)).await;
    assert_eq!(forwarder.report().hindrance, Some(Hindrance::BreakerOpen));
    let before = bench.target.hits().len();
    // Eight were under way, and four more began before the fifth failure was seen.
    assert!((5..=12).contains(&before), "{before}");
    pass(seconds(15)).await;
    assert_eq!(bench.target.hits().len(), before + 1);
    bench.drained().await;
    // The second probe succeeds at 60 s, and then everything is delivered.
    assert_eq!(bench.target.hits().len(), before + 2 + 49);
    assert!(bench.dlc.messages().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_over_the_hold_limit_returns_and_keeps_the_order() {
    let mut plan = plan();
    plan.circuit_breaker = Some(BreakerPolicy { failures: 1, open_for: seconds(50) });
    let target = ScriptedTarget::new(|hit| at_once(if hit.id == "1" && hit.attempt == 1 { 500 } else { 202 }));
    let mut bench = Bench::new(plan, target);
    bench.hold_limit = seconds(20);
    bench.put([1, 2]);
    let _forwarder = bench.start();
    bench.drained().await;
    assert_eq!(bench.target.asked(), ["1:1", "1:2", "2:1"]);
    assert_eq!(bench.target.seconds(), [0.0, 50.0, 50.0]);
    assert_eq!(bench.source.log().iter().filter(|event| matches!(event, Event::Returned(2))).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn no_attempt_starts_on_what_was_held_for_longer_than_the_limit() {
    let target = ScriptedTarget::new(|_| (seconds(8), response(202)));
    let mut bench = Bench::new(plan(), target);
    bench.hold_limit = seconds(20);
    bench.put(1..=6);
    let _forwarder = bench.start();
    bench.drained().await;
    // 1 to 3 start at 0, 8 and 16 s; the third ends after the limit; then everything is taken anew.
    assert_eq!(bench.target.seconds(), [0.0, 8.0, 16.0, 24.0, 32.0, 40.0]);
    assert!(bench.source.log().contains(&Event::Returned(3)));
    assert_eq!(bench.source.acked(), ["1", "2", "3", "4", "5", "6"]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_forwarder_sleeps() {
    let bench = Bench::new(plan(), ScriptedTarget::answering(202));
    let _forwarder = bench.start();
    until(|| bench.source.attached() == 1).await;
    pass(seconds(3600)).await;
    assert_eq!(bench.source.log(), [Event::Attached(256)]);
    assert_eq!(bench.source.polls(), 1);
}
