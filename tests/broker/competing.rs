//! P1 with workers that die: several processes take from one store, and one of them is killed every five seconds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::common::{QUORUM, SETTLED_WITHIN, connected, say, shared, start};
use crate::support::load::Load;
use crate::support::{Hit, Recorder, Reply, Setup, eventually, manifest, millis, seconds};

const WORKERS: usize = 3;
/// Attempts side by side in each.
const CONCURRENCY: usize = 8;
const SENDERS: u32 = 16;
const EACH: u32 = 625;
/// Between the last byte of a worker and its reading at the target.
const IN_ITS_SOCKET: Duration = millis(100);
/// Takes care that it lasts for some kills: 3 x 8 at once make 400 a second.
const TARGET_TAKES: Duration = millis(60);

#[test]
fn p1_ten_thousand_messages_reach_the_target_though_a_worker_is_killed_every_five_seconds() {
    let Some(share) = shared() else { return };
    let target = Recorder::answering(|_| Reply::status(200).after(TARGET_TAKES));
    let store = QUORUM.replace('}', ", consumers: Competing}");
    let ingress = start(&share.uri, &[manifest::store("box", &store), manifest::route("in", "/in", "box")].concat());
    let mut workers: Vec<_> = (0..WORKERS)
        .map(|number| {
            let spec = format!(
                "storeRef: {{name: box}}\nordering: None\nconcurrency: {CONCURRENCY}\n\
                 target: {{url: \"{}\", headers: {{set: {{X-Worker: \"{number}\"}}}}}}",
                target.url()
            );
            let yaml = manifest::store("box", &store) + &manifest::object("ForwardingProcessor", "out", &spec);
            Setup::manifests(yaml).arg("--amqp").arg(&share.uri).start()
        })
        .collect();
    for worker in &workers {
        connected(worker, "box");
    }
    let begun = Instant::now();
    let mut load = Load::start(ingress.listen(), SENDERS, EACH, millis(20));
    let mut kills = Vec::new();
    let total = (SENDERS * EACH) as usize;
    std::thread::scope(|scope| {
        scope.spawn(|| load.finish());
        // The last kill is early enough to be followed by something.
        while target.count() + 500 < total {
            assert!(begun.elapsed() < seconds(120), "{} came", target.count());
            std::thread::sleep(millis(20));
            if begun.elapsed() >= seconds(5) * u32::try_from(kills.len() + 1).unwrap() {
                let worker = kills.len() % WORKERS;
                let from = Instant::now();
                workers[worker].kill9();
                kills.push(Kill { worker, from, to: Instant::now() });
                workers[worker].launch();
            }
        }
    });
    let all_came = || {
        let hits = target.hits();
        let came = load.checker().all_promised_in(hits.iter().map(|hit| hit.body.as_slice()));
        (came && share.rabbit.queue(&share.name, "default.box") == Some((0, 0))).then_some(())
    };
    eventually("all that was promised has come, and the store is empty", seconds(60), all_came);
    target.stays_at(target.count(), millis(500));

    let hits = target.hits();
    let verdict = load.checker().judge(hits.iter().map(|hit| hit.body.as_slice()));
    say(&format!("P1: {} in {:.1?} over {} kills", load.checker().summary(&verdict), begun.elapsed(), kills.len()));
    assert!(kills.len() >= 3, "{} kills", kills.len());
    assert_eq!(load.checker().sent(), total);
    assert_eq!((verdict.lost.len(), verdict.unexpected.len()), (0, 0), "{:?}", verdict.lost.first());
    let shares = (0..WORKERS).map(|number| hits.iter().filter(|hit| by(hit) == number).count()).collect::<Vec<_>>();
    assert!(shares.iter().all(|share| *share > total / 10), "all of them work: {shares:?}");
    assert_repetitions_are_bounded(&hits, &kills);
}

/// The end of a worker, some time between two moments.
struct Kill {
    worker: usize,
    from: Instant,
    to: Instant,
}

impl Kill {
    /// Whether an attempt was this worker's, and not over for long when it died.
    fn cut_off(&self, first: &Hit) -> bool {
        let arrived = self.to + IN_ITS_SOCKET;
        by(first) == self.worker
            && first.at <= arrived
            && first.answered.is_none_or(|answered| answered + SETTLED_WITHIN >= self.from)
    }
}

fn by(hit: &Hit) -> usize {
    hit.header("x-worker").and_then(|number| number.parse().ok()).unwrap()
}

/// Every repetition is of a message that the killed worker had in flight, or had settled just before its end.
fn assert_repetitions_are_bounded(hits: &[Hit], kills: &[Kill]) {
    let mut by_body: BTreeMap<&[u8], Vec<&Hit>> = BTreeMap::new();
    for hit in hits {
        by_body.entry(&hit.body).or_default().push(hit);
    }
    let mut counts = vec![(0, 0); kills.len()];
    for pair in by_body.values().flat_map(|hits| hits.windows(2)) {
        let Some(at) = kills.iter().position(|kill| kill.cut_off(pair[0]) && kill.from <= pair[1].at) else {
            panic!("{} came twice, and no kill explains it", pair[0].text());
        };
        assert_eq!(pair[0].header("stagepost-message-id"), pair[1].header("stagepost-message-id"));
        let settled = pair[0].answered.is_some_and(|answered| answered < kills[at].from);
        if settled { counts[at].1 += 1 } else { counts[at].0 += 1 }
    }
    say(&format!("P1: repeated (in flight, settled just before) by kill: {counts:?}"));
    // No more was ever in flight, and no more is answered within a time in which acknowledgements leave.
    let most = CONCURRENCY;
    assert!(counts.iter().all(|(in_flight, settled)| *in_flight <= most && *settled <= most), "{counts:?}");
}
