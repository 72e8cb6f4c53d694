//! A11: a broker that takes no more publishes, because its memory or its disk is used up.

use std::time::{Duration, Instant};

use super::common::{assert_explained, broker, condition, connected, drained, is, judge, line, recovered, say, start};
use super::traffic::Traffic;
use crate::support::{Recorder, Reply, eventually, millis, seconds};

/// What a refusal may take, also of a request that was under way when the alarm came.
const AT_ONCE: Duration = seconds(1);

#[test]
fn a11_in_an_alarm_callers_are_refused_at_once_and_what_waits_is_delivered_in_flat_memory() {
    let Some(broker) = broker("") else { return };
    let target = Recorder::answering(|_| Reply::status(200).after(millis(40)));
    let run = start(&broker.uri(), &line(&target, "queue: {type: Classic}", "ordering: None\nconcurrency: 4"));
    let high = ["set_vm_memory_high_watermark", "0.0001"];
    let low = ["set_vm_memory_high_watermark", "0.6"];
    let full = ["set_disk_free_limit", "1000000GB"];
    let free = ["set_disk_free_limit", "50MB"];
    // What waits when the alarms come.
    let mut traffic = Traffic::start(&run, 8, millis(20));
    for (what, alarm, clear) in [("memory", high, low), ("disk", full, free)] {
        // More comes in than goes out.
        eventually("a backlog", seconds(60), || (run.processor("out")["backlog"].as_u64() > Some(300)).then_some(()));
        let asked = Instant::now();
        broker.ctl(&alarm);
        eventually("callers are refused", seconds(10), || {
            let calls = traffic.calls_since(asked);
            (calls.iter().filter(|call| call.status == Some(503)).count() > 5).then_some(())
        });
        let alarmed = Instant::now();
        let status =
            run.await_status("MessageStore", "box", seconds(5), |status| is(status, "BrokerConnected", "False"));
        say(&format!("A11, {what}: {}", condition(&status, "BrokerConnected")["message"]));
        let (before, delivered) = (run.memory("VmRSS"), target.count());
        eventually("what waits is delivered meanwhile", seconds(20), || {
            (target.count() > delivered + 150).then_some(())
        });
        let backlog = run.processor("out")["backlog"].as_u64().unwrap_or(u64::MAX);
        std::thread::sleep(seconds(2));
        let after = run.memory("VmRSS");
        let calls = traffic.calls_since(alarmed);
        assert!(calls.iter().all(|call| call.status == Some(503)), "taken in an alarm");
        let slowest = traffic.calls_since(asked).iter().map(super::traffic::Call::took).max().unwrap_or_default();
        say(&format!(
            "A11, {what}: {} refused, the slowest after {slowest:.1?}; {backlog} still waited; {before} KiB, then {after} KiB",
            calls.len()
        ));
        broker.ctl(&clear);
        let cleared = Instant::now();
        recovered(&format!("A11, {what}"), asked, cleared, &traffic, &target);
        connected(&run, "box");
        assert!(after < before + 16 * 1024, "{before} KiB, then {after} KiB");
    }
    traffic.finish();
    target.script(|_| Reply::status(200));
    let hits = drained(&run, &target, &traffic);
    let verdict = judge("A11", &traffic, &hits);
    assert!(verdict.duplicated.is_empty(), "{:?}", verdict.duplicated);
    assert_explained(&hits, &[]);
    let told: Vec<_> = run.log().into_iter().filter(|line| line.contains("session=stagepost run publish")).collect();
    let lost = told.iter().any(|line| line.contains("connection to the broker lost"));
    assert!(!lost, "a connection that is blocked is alive: {told:#?}");
    assert!(traffic.slowest() < AT_ONCE, "a caller waited {:.1?}", traffic.slowest());
}
