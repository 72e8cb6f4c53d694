//! S1: ticks, batches and gaps.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::{Recorder, Setup, Stagepost, manifest, millis, process, seconds};

fn polling(target: &Recorder, poll: &str) -> Stagepost {
    Setup::manifests(manifest::line(&target.url(), &format!("poll: {{{poll}}}"))).start()
}

fn post_numbers(run: &Stagepost, numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers
        .map(|number| {
            assert_eq!(run.post("/in", &[], number.to_string()).status, 202);
            number.to_string()
        })
        .collect()
}

/// The time of day of a moment, within a period.
fn within_period(at: Instant, period: Duration) -> Duration {
    let wall = SystemTime::now() - at.elapsed();
    let nanos = wall.duration_since(UNIX_EPOCH).unwrap().as_nanos() % period.as_nanos();
    Duration::from_nanos(u64::try_from(nanos).unwrap())
}

#[test]
fn r11_a_poll_every_100_ms_delivers_at_most_ten_a_second_in_order() {
    let target = Recorder::start();
    let run = polling(&target, "interval: 100ms");
    let sent = post_numbers(&run, 0..20);
    let hits = target.await_hits(20, seconds(5));
    assert_eq!(target.texts(), sent);
    for window in hits.windows(11) {
        let span = window[10].at - window[0].at;
        assert!(span >= millis(950), "eleven in {span:?}");
    }
}

#[test]
fn r11_a_poll_of_five_with_a_gap_delivers_groups_of_five() {
    let target = Recorder::start();
    let run = polling(&target, "interval: 5s, batchSize: 5, messageInterval: 100ms");
    // All are there before the tick that takes the first of them.
    let sent = post_numbers(&run, 0..20);
    let hits = target.await_hits(20, seconds(25));
    assert_eq!(target.texts(), sent);
    // A tick may fall between the posts; then the first group is shorter. Groups are told by the gaps.
    let mut groups = vec![1];
    for pair in hits.windows(2) {
        let gap = pair[1].at - pair[0].at;
        if gap < seconds(1) {
            assert!(gap >= millis(95) && gap <= millis(400), "inside a group {gap:?}");
            *groups.last_mut().unwrap() += 1;
        } else {
            groups.push(1);
        }
    }
    let starts: Vec<_> = groups
        .iter()
        .scan(0, |at, size| {
            let start = *at;
            *at += size;
            Some(start)
        })
        .collect();
    for pair in starts.windows(2) {
        let period = hits[pair[1]].at - hits[pair[0]].at;
        assert!(period >= millis(4950) && period <= millis(5400), "ticks {period:?} apart");
    }
    assert!(groups.iter().all(|size| *size <= 5), "{groups:?}");
    let (full, rest) = if groups[0] < 5 { (&groups[1..groups.len() - 1], 2) } else { (&groups[..], 0) };
    assert!(full.iter().all(|size| *size == 5), "{groups:?}");
    assert_eq!(groups.len(), 4 + usize::from(rest > 0), "{groups:?}");
}

#[test]
fn r11_a_poll_each_second_of_five_with_a_gap_of_100_ms_delivers_groups_of_five() {
    let target = Recorder::start();
    let run = polling(&target, "interval: 1s, batchSize: 5, messageInterval: 100ms");
    run.edit("stagepost.yaml", "poll:", "suspend: true\n  poll:");
    run.await_state("out", "Suspended", seconds(5));
    let sent = post_numbers(&run, 0..20);
    // All twenty are there when the first tick comes.
    run.edit("stagepost.yaml", "suspend: true", "suspend: false");
    let hits = target.await_hits(20, seconds(15));
    assert_eq!(target.texts(), sent);
    for pair in hits.windows(2).enumerate().filter(|(at, _)| at % 5 != 4).map(|(_, pair)| pair) {
        let gap = pair[1].at - pair[0].at;
        assert!(gap >= millis(95) && gap <= millis(220), "inside a group {gap:?}");
    }
    for pair in hits.iter().step_by(5).collect::<Vec<_>>().windows(2) {
        let period = pair[1].at - pair[0].at;
        assert!(period >= millis(950) && period <= millis(1300), "ticks {period:?} apart");
    }
}

#[test]
fn r12_a_cron_batch_of_everything_runs_at_its_time_and_leaves_later_messages_to_the_next_tick() {
    let period = seconds(20);
    let target = Recorder::start();
    let run = polling(&target, r#"cron: "0/20 * * * * ?", batchSize: -1, messageInterval: 3s"#);
    // Not within the last four seconds before a tick, so that all four are there in time.
    while within_period(Instant::now(), period) > seconds(16) || within_period(Instant::now(), period) < millis(500) {
        std::thread::sleep(millis(100));
    }
    let mut sent = post_numbers(&run, 0..4);
    assert_eq!(target.count(), 0, "before the tick");
    let hits = target.await_hits(4, seconds(35));
    let late = within_period(hits[0].at, period);
    assert!(late <= millis(500), "{late:?} after the tick");
    for pair in hits.windows(2) {
        let gap = pair[1].at - pair[0].at;
        assert!(gap >= millis(2950) && gap <= millis(3400), "a gap of {gap:?}");
    }
    sent.extend(post_numbers(&run, 4..5));
    let last = target.await_hits(5, seconds(15)).remove(4);
    assert!(within_period(last.at, period) <= millis(500), "not at a tick");
    assert!(last.at - hits[0].at >= millis(19_500));
    assert_eq!(target.texts(), sent);
}

#[test]
fn c13_ticks_that_were_missed_are_not_caught_up_and_nothing_is_lost() {
    let target = Recorder::start();
    let run = polling(&target, r#"cron: "* * * * * ?""#);
    let sent = post_numbers(&run, 0..8);
    target.await_hits(2, seconds(6));
    let signal = |name: &str| {
        let done = std::process::Command::new("kill").args([name, &run.pid().to_string()]).status().unwrap();
        assert!(done.success());
    };
    signal("-STOP");
    std::thread::sleep(millis(3500));
    signal("-CONT");
    let hits = target.await_hits(8, seconds(15));
    assert_eq!(target.texts(), sent);
    let mut ticks: Vec<u64> = Vec::new();
    for hit in &hits {
        let wall = SystemTime::now() - hit.at.elapsed();
        ticks.push(wall.duration_since(UNIX_EPOCH).unwrap().as_secs());
    }
    // The tick that was due while the process was stopped may run at once; the one after keeps its own second.
    let twice = ticks.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert!(twice <= 1, "one tick delivered twice: {ticks:?}");
}

#[test]
fn a_schedule_that_does_not_parse_is_refused_with_its_field() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("stagepost.yaml");
    std::fs::write(&file, manifest::line("http://127.0.0.1:1/", r#"poll: {cron: "61 * * * * ?"}"#)).unwrap();
    let done = process::run(&["check", file.to_str().unwrap()]);
    assert_eq!(done.code, 1, "{}{}", done.stdout, done.stderr);
    assert!(done.stdout.contains("ForwardingProcessor/out: spec.poll.cron"), "{}", done.stdout);
}
