//! N1, N3, N5: `kill -9` at random moments, twenty times, under load.

use std::time::{Duration, Instant};

use crate::support::checker::{Checker, Saw, Verdict};
use crate::support::load::Load;
use crate::support::{Hit, Random, Recorder, Reply, Setup, Stagepost, alone, beside_others, manifest, millis, seconds};

const KILLS: u32 = 20;
/// Attempts side by side.
const CONCURRENCY: usize = 16;
/// An acknowledgement is durable within 10 ms; the rest is the disk's time to write it.
const SETTLED_WITHIN: Duration = millis(50);

/// Kills and restarts under load, then waits until everything that was promised has come. Returns the hits and
/// the moments of the kills.
fn kill_under_load(run: &mut Stagepost, target: &Recorder, load: &mut Load) -> (Vec<Hit>, Vec<Instant>) {
    let mut random = Random::new();
    let mut kills = Vec::new();
    for _ in 0..KILLS {
        std::thread::sleep(millis(random.between(20, 600)));
        kills.push(Instant::now());
        run.restart();
        load.moved(run.listen());
    }
    load.finish();
    drained(run, target, load.checker());
    (target.hits(), kills)
}

fn drained(run: &Stagepost, target: &Recorder, checker: &Checker) {
    let deadline = Instant::now() + seconds(90);
    while Instant::now() < deadline {
        if run.depth("box") == 0 && run.processor("out")["backlog"] == 0 {
            break;
        }
        std::thread::sleep(millis(50));
    }
    let hits = target.hits();
    let done = checker.all_promised_in(hits.iter().map(|hit| hit.body.as_slice()));
    println!("drained: {} hits, all promised: {done}", hits.len());
}

fn judge(checker: &Checker, hits: &[Hit]) -> Verdict {
    let verdict = checker.judge(hits.iter().map(|hit| hit.body.as_slice()));
    println!("{}", checker.summary(&verdict));
    assert!(
        verdict.lost.is_empty(),
        "answered 202 and lost: {} of them, {:?}",
        verdict.lost.len(),
        verdict.lost.first()
    );
    assert!(verdict.unexpected.is_empty(), "never sent: {:?}", verdict.unexpected);
    verdict
}

/// Every repetition is explained by a kill: the attempt before it was in flight then, or settled just before.
fn assert_duplicates_are_explained(hits: &[Hit], kills: &[Instant]) {
    let mut by_body: std::collections::BTreeMap<&[u8], Vec<&Hit>> = std::collections::BTreeMap::new();
    for hit in hits {
        by_body.entry(&hit.body).or_default().push(hit);
    }
    for (body, hits) in by_body {
        for pair in hits.windows(2) {
            let explained = kills.iter().any(|kill| {
                let settled = pair[0].answered.is_some_and(|answered| answered + SETTLED_WITHIN < *kill);
                *kill <= pair[1].at && !settled
            });
            let kill = kills.iter().find(|kill| **kill >= pair[0].at).map(|kill| *kill - pair[0].at);
            assert!(explained, "{} came twice, {kill:?} before a kill", String::from_utf8_lossy(body));
        }
    }
}

/// Repetitions by the kill before them: first those whose attempt was in flight at the kill, then those that had been
/// answered just before.
fn duplicates_per_kill(hits: &[Hit], kills: &[Instant]) -> Vec<(usize, usize)> {
    let mut by_body: std::collections::BTreeMap<&[u8], Vec<&Hit>> = std::collections::BTreeMap::new();
    for hit in hits {
        by_body.entry(&hit.body).or_default().push(hit);
    }
    let mut counts = vec![(0, 0); kills.len()];
    for pair in by_body.values().flat_map(|hits| hits.windows(2)) {
        let Some(at) = kills.iter().rposition(|kill| *kill <= pair[1].at) else { continue };
        if pair[0].answered.is_some_and(|answered| answered < kills[at]) {
            counts[at].1 += 1;
        } else {
            counts[at].0 += 1;
        }
    }
    counts
}

#[test]
fn ten_thousand_messages_from_32_connections_survive_twenty_kills() {
    let _machine = alone();
    let target = Recorder::start();
    let spec = format!("ordering: None\nconcurrency: {CONCURRENCY}");
    let mut run = Setup::manifests(manifest::line(&target.url(), &spec)).start();
    let mut load = Load::start(run.listen(), 32, 313, millis(20));
    let (hits, kills) = kill_under_load(&mut run, &target, &mut load);
    assert!(load.checker().sent() >= 10_000);
    let verdict = judge(load.checker(), &hits);
    assert_duplicates_are_explained(&hits, &kills);
    let twice: usize = verdict.duplicated.values().map(|count| count - 1).sum();
    let per_kill = duplicates_per_kill(&hits, &kills);
    println!(
        "{twice} duplicates over {KILLS} kills at {CONCURRENCY} in flight; (in flight, settled) per kill: {per_kill:?}"
    );
    assert!(per_kill.iter().all(|(in_flight, _)| *in_flight <= CONCURRENCY), "{per_kill:?}");
    assert_eq!(per_kill.iter().map(|(in_flight, settled)| in_flight + settled).sum::<usize>(), twice);
    assert_eq!(run.depth("box"), 0);
}

#[test]
fn one_connection_and_strict_order_stay_in_order_over_twenty_kills() {
    let _machine = beside_others();
    let target = Recorder::start();
    let mut run = Setup::manifests(manifest::line(&target.url(), "")).start();
    let mut load = Load::start(run.listen(), 1, 0, Duration::ZERO);
    let (hits, kills) = kill_under_load(&mut run, &target, &mut load);
    assert!(load.checker().sent() >= 60, "{} sent: no load", load.checker().sent());
    let verdict = judge(load.checker(), &hits);
    assert_eq!(verdict.reordered, []);
    assert_duplicates_are_explained(&hits, &kills);
}

#[test]
fn keys_stay_in_order_over_kills_while_the_target_fails_at_random() {
    let _machine = beside_others();
    let random = std::sync::Mutex::new(Random::new());
    let target =
        Recorder::answering(move |_| Reply::status(if random.lock().unwrap().between(0, 5) == 0 { 503 } else { 200 }));
    let spec = "ordering: PerKey\norderingKey: body.sender\nconcurrency: 8\nretry: {maxRedeliveries: -1, interval: 20ms, backoffFactor: 1}";
    let mut run = Setup::manifests(manifest::line(&target.url(), spec)).start();
    let mut load = Load::start(run.listen(), 8, 100, millis(2));
    let (hits, _) = kill_under_load(&mut run, &target, &mut load);
    let verdict = judge(load.checker(), &hits);
    assert_eq!(verdict.reordered, []);
}

#[test]
fn a_run_without_faults_has_no_duplicate_and_loses_nothing() {
    let _machine = beside_others();
    let target = Recorder::start();
    let run = Setup::manifests(manifest::line(&target.url(), "ordering: None\nconcurrency: 16")).start();
    let mut load = Load::start(run.listen(), 32, 100, Duration::ZERO);
    load.finish();
    drained(&run, &target, load.checker());
    let verdict = judge(load.checker(), &target.hits());
    assert!(verdict.duplicated.is_empty(), "{:?}", verdict.duplicated);
    assert_eq!(load.checker().count(Saw::Ok), 3200);
}

#[test]
fn an_orderly_restart_under_load_loses_nothing_and_repeats_nothing() {
    let _machine = beside_others();
    let target = Recorder::answering(|_| Reply::status(200).after(millis(5)));
    let mut run = Setup::manifests(manifest::line(&target.url(), "ordering: None\nconcurrency: 8")).start();
    let mut load = Load::start(run.listen(), 8, 0, millis(1));
    for _ in 0..3 {
        std::thread::sleep(millis(500));
        let status = run.terminate(seconds(35));
        assert_eq!(status.code(), Some(0), "a clean drain");
        run.launch();
        load.moved(run.listen());
    }
    load.finish();
    drained(&run, &target, load.checker());
    let verdict = judge(load.checker(), &target.hits());
    assert!(verdict.duplicated.is_empty(), "{:?}", verdict.duplicated);
}
