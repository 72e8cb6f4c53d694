//! Whatever the target answers and whatever breaks meanwhile: nothing is lost, order is kept, nothing leaves its
//! source before its next home has it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use stagepost::core::decision::{OnFailure, WhileUnreachable};
use stagepost::core::outcome::Outcome;
use stagepost::plan::OrderingPlan;
use stagepost::store::{PublishError, StoreError};

use super::bench::*;
use super::store::Event;
use super::target::{ScriptedTarget, response, response_with};

#[derive(Debug, Clone)]
enum Fault {
    BreakConnection,
    DeadLettersDown(bool),
    ConsumeDown(bool),
    RecordDown(bool),
    Restart(Duration),
    Reactivate,
}

fn outcome() -> impl Strategy<Value = (u64, u8)> {
    (0u64..3000, 0u8..12)
}

fn meaning(code: u8) -> Outcome {
    match code {
        0..=4 => response(202),
        5 | 6 => response(500),
        7 => response(404),
        8 => Outcome::ConnectionError("connection refused".into()),
        9 => Outcome::Timeout,
        10 => response_with(503, "retry-after", "2"),
        _ => Outcome::NoResponse("reset".into()),
    }
}

fn fault() -> impl Strategy<Value = (u64, Fault)> {
    let fault = prop_oneof![
        Just(Fault::BreakConnection),
        any::<bool>().prop_map(Fault::DeadLettersDown),
        any::<bool>().prop_map(Fault::ConsumeDown),
        any::<bool>().prop_map(Fault::RecordDown),
        (0u64..5000).prop_map(|grace| Fault::Restart(millis(grace))),
        Just(Fault::Reactivate),
    ];
    (1u64..8000, fault)
}

#[derive(Debug, Clone)]
struct Case {
    ordering: u8,
    concurrency: u32,
    action: OnFailure,
    hold_limit: u64,
    poll: bool,
    count: u32,
    script: Vec<(u64, u8)>,
    faults: Vec<(u64, Fault)>,
}

fn case() -> impl Strategy<Value = Case> {
    let action = prop_oneof![Just(OnFailure::DeadLetter), Just(OnFailure::Deactivate), Just(OnFailure::Drop)];
    (
        (0u8..3, 1u32..6, action, 5u64..60, any::<bool>(), 1u32..30),
        proptest::collection::vec(outcome(), 1..60),
        proptest::collection::vec(fault(), 0..12),
    )
        .prop_map(|((ordering, concurrency, action, hold_limit, poll, count), script, faults)| Case {
            ordering,
            concurrency,
            action,
            hold_limit,
            poll,
            count,
            script,
            faults,
        })
}

fn lane(case: &Case, id: &str) -> String {
    match case.ordering {
        0 => String::new(),
        1 => id.split(':').next().unwrap().to_owned(),
        _ => id.to_owned(),
    }
}

fn bench_of(case: &Case) -> Bench {
    let mut plan = on_failure(case.action);
    plan.ordering = match case.ordering {
        0 => OrderingPlan::Strict,
        1 => OrderingPlan::PerKey("headers['x-key']".into()),
        _ => OrderingPlan::None,
    };
    plan.concurrency = case.concurrency;
    plan.policy.while_unreachable = WhileUnreachable::Wait;
    plan.policy.max_redeliveries = Some(2);
    plan.poll = case.poll.then(|| stagepost::plan::PollPlan { batch_size: Some(7), ..poll(every_two_seconds()) });
    let script = case.script.clone();
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let target = ScriptedTarget::new(move |hit| {
        // After ten minutes all is well again, so that everything ends.
        if hit.at > seconds(600) {
            return (Duration::ZERO, response(202));
        }
        let (after, code) = script[asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % script.len()];
        (millis(after), meaning(code))
    });
    let mut bench = Bench::new(plan, target);
    bench.hold_limit = seconds(case.hold_limit);
    bench.put((0..case.count).map(|number| format!("{}:{number}", ["a", "b", "c"][number as usize % 3])));
    bench
}

async fn run(case: &Case) -> Bench {
    let bench = bench_of(case);
    let mut forwarder = bench.start();
    for (after, fault) in &case.faults {
        pass(millis(*after)).await;
        match fault {
            Fault::BreakConnection => bench.source.break_connection(),
            Fault::DeadLettersDown(down) => {
                bench.dlc.fail_publish(down.then(|| PublishError::Refused("full".into())));
            }
            Fault::ConsumeDown(down) => {
                bench.source.fail_consume(down.then(|| StoreError::NotConnected("down".into())));
            }
            Fault::RecordDown(down) => bench.source.fail_record(down.then(|| StoreError::Disk("full".into()))),
            Fault::Restart(grace) => {
                forwarder.stop(*grace).await;
                assert_eq!(bench.source.attached(), 0);
                let hits = bench.target.hits().len();
                pass(seconds(1)).await;
                assert_eq!(bench.target.hits().len(), hits, "an attempt started after the stop");
                forwarder = bench.start();
            }
            Fault::Reactivate => forwarder.reactivate().await.unwrap(),
        }
    }
    bench.dlc.fail_publish(None);
    bench.source.fail_consume(None);
    bench.source.fail_record(None);
    for _ in 0..2000 {
        if bench.source.messages().is_empty() {
            break;
        }
        pass(seconds(1)).await;
        forwarder.reactivate().await.unwrap();
    }
    forwarder.stop(seconds(1)).await;
    bench
}

fn judge(case: &Case, bench: &Bench) {
    assert_eq!(bench.source.ids(), Vec::<String>::new(), "everything ends");
    assert_eq!(bench.source.attached(), 0);
    assert_eq!(bench.source.most_attached(), 1, "never two consumers");

    let all: BTreeSet<String> =
        (0..case.count).map(|number| format!("{}:{number}", ["a", "b", "c"][number as usize % 3])).collect();
    let succeeded: Vec<String> = bench.target.succeeded();
    let dead: BTreeSet<String> = bench.dlc.ids().into_iter().collect();
    let dropped = case.action == OnFailure::Drop;
    for id in &all {
        let somewhere = succeeded.contains(id) || dead.contains(id) || dropped;
        assert!(somewhere, "{id} is lost");
    }
    // Per lane, the acknowledgements are in order, and so are first successes.
    let number = |id: &str| id.split(':').nth(1).unwrap().parse::<u32>().unwrap();
    let mut last: BTreeMap<String, u32> = BTreeMap::new();
    for id in bench.source.acked() {
        let before = last.insert(lane(case, &id), number(&id));
        assert!(before.is_none_or(|before| before < number(&id)), "{id} was acknowledged out of order");
    }
    let mut seen = BTreeSet::new();
    let mut last: BTreeMap<String, u32> = BTreeMap::new();
    for id in succeeded.iter().filter(|id| seen.insert((*id).clone())) {
        let before = last.insert(lane(case, id), number(id));
        assert!(before.is_none_or(|before| before < number(id)), "{id} succeeded out of order");
    }
    // Nothing is acknowledged before its success, or before its dead letter is stored.
    if !dropped {
        let mut stored: BTreeSet<String> = BTreeSet::new();
        let mut succeeded: BTreeSet<String> = BTreeSet::new();
        for (_, event) in bench.timeline() {
            match event {
                Event::Published(id) => drop(stored.insert(id)),
                Event::Succeeded(id) => drop(succeeded.insert(id)),
                Event::Acked(id) => assert!(stored.contains(&id) || succeeded.contains(&id), "{id} left too early"),
                _ => {}
            }
        }
    }
    // Duplicates only where something was cut off.
    let clean = !case.faults.iter().any(|(_, fault)| matches!(fault, Fault::Restart(_)));
    if clean {
        assert_eq!(succeeded.len(), succeeded.iter().collect::<BTreeSet<_>>().len(), "delivered twice");
        assert_eq!(bench.dlc.ids().len(), dead.len(), "dead twice");
    }
}

proptest! {
    // Each case is hours on the paused clock: a quarter of the usual number. `PROPTEST_CASES` makes it more.
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases / 4,
        max_shrink_iters: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn nothing_is_lost_reordered_or_settled_early(case in case()) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let bench = runtime.block_on(run(&case));
        judge(&case, &bench);
    }
}
