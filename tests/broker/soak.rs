//! Minutes of load in which the broker and the worker are killed by turns.
//!
//! `SOAK_SECONDS` says how long; without it this is left out, because it needs the machine for itself: what is killed
//! here must have had the time to do what it had been told. `make test` runs two minutes, `make soak` fifteen.

use std::time::{Duration, Instant};

use super::common::{self, PER_SENDER, QUORUM, broker, drained, judge_in_order, launch, line, recovered, say};
use super::traffic::Traffic;
use crate::support::checker::Saw;
use crate::support::{Recorder, millis, seconds};

const SENDERS: u32 = 10;
/// Ten senders, one message each 20 ms: 500 a second.
const PACE: Duration = millis(20);

/// Above what it had when the load had begun: buffers grow to their size, and then no more.
const GROWS_AT_MOST_KIB: u64 = 32 << 10;

#[test]
fn a_broker_and_a_worker_that_are_killed_by_turns_under_load_lose_and_reorder_nothing() {
    let Some(through) = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).map(seconds) else {
        return say("left out: the soak; SOAK_SECONDS says for how long it runs");
    };
    let Some(mut rabbit) = broker("") else { return };
    let begun = Instant::now();
    let target = Recorder::start();
    let mut run = common::start(&rabbit.uri(), &line(&target, QUORUM, PER_SENDER));
    let mut traffic = Traffic::start(&run, SENDERS, PACE);
    // Of each life of the worker.
    let (mut faults, mut resident) = (Vec::new(), vec![Vec::new()]);
    // In a short run each fault comes all the same, and each twice.
    let round = (through / 4).min(seconds(60));
    for number in 1.. {
        if begun.elapsed() + round > through {
            break;
        }
        std::thread::sleep(round / 2);
        let now = run.memory("VmRSS");
        resident.last_mut().unwrap().push(now);
        say(&format!("soak, minute {:.1}: {now} KiB resident", begun.elapsed().as_secs_f32() / 60.0));
        let fault = Instant::now();
        rabbit.kill();
        rabbit.run();
        faults.extend([fault, Instant::now()]);
        recovered(&format!("soak, broker killed, round {number}"), fault, Instant::now(), &traffic, &target);
        std::thread::sleep((round / 2).saturating_sub(fault.elapsed()));
        if number % 2 == 0 {
            let fault = Instant::now();
            run.kill9();
            launch(&mut run);
            traffic.moved(run.listen());
            faults.extend([fault, Instant::now()]);
            recovered(&format!("soak, worker killed, round {number}"), fault, Instant::now(), &traffic, &target);
            resident.push(Vec::new());
        }
    }
    traffic.finish();
    common::connected(&run, "box");
    let hits = drained(&run, &target, &traffic);
    let verdict = judge_in_order("soak", &traffic, &hits);
    say(&format!("soak: {} came twice", verdict.duplicated.len()));
    common::assert_explained(&hits, &faults);
    let least = usize::try_from(through.as_millis() / PACE.as_millis()).unwrap() * SENDERS as usize / 3;
    assert!(traffic.checker().count(Saw::Ok) > least, "a third of the load at least was accepted");
    // Within each life, and from the first life to the last.
    let lives: Vec<&[u64]> = resident.iter().map(Vec::as_slice).filter(|life| !life.is_empty()).collect();
    for (from, to) in
        lives.iter().map(|life| (life[0], life[life.len() - 1])).chain([(lives[0][0], lives[lives.len() - 1][0])])
    {
        assert!(to < from + GROWS_AT_MOST_KIB, "resident from {from} to {to} KiB: {resident:?}");
    }
}
