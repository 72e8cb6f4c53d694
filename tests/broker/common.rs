//! Brokers, manifests and verdicts that these tests share.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::traffic::Traffic;
use crate::rabbitmq::{self, Cluster, Rabbit, Turn};
use crate::support::checker::{Saw, Verdict};
use crate::support::{Hit, Recorder, Setup, Stagepost, eventually, manifest, millis, seconds};

pub(crate) const QUORUM: &str = "queue: {type: Quorum}";
pub(crate) const CLASSIC: &str = "queue: {type: Classic}";

/// Of a broker that was killed: an acknowledgement that it had read and not yet written is lost with it. Ours leave
/// within 10 ms; the rest is the broker's.
pub(crate) const SETTLED_WITHIN: Duration = millis(300);

/// A broker of one test's own; `None` where this run has none.
pub(crate) fn broker(config: &str) -> Option<Rabbit> {
    match rabbitmq::version() {
        Some(version) => Some(Rabbit::start(&version, config)),
        None => left_out(),
    }
}

/// Three nodes, with a virtual host of this test's own: one test after the other has them.
pub(crate) fn three_nodes() -> Option<MutexGuard<'static, Cluster>> {
    static CLUSTER: OnceLock<Mutex<Cluster>> = OnceLock::new();
    let Some(version) = rabbitmq::version() else { return left_out() };
    let cluster = CLUSTER.get_or_init(|| Mutex::new(Cluster::start(&version, "")));
    let mut cluster = cluster.lock().unwrap_or_else(|left| {
        // By a test that failed, in any state.
        let mut cluster = left.into_inner();
        *cluster = Cluster::start(&version, "");
        cluster
    });
    cluster.next_turn();
    Some(cluster)
}

/// A virtual host of one test's own on the broker that this run shares: for tests that leave the broker alone.
pub(crate) fn shared() -> Option<Share> {
    static BROKER: OnceLock<Option<Rabbit>> = OnceLock::new();
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let turn = Turn::wait();
    let rabbit = BROKER.get_or_init(|| broker("")).as_ref()?;
    let name = format!("test-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let uri = rabbit.virtual_host(&name);
    Some(Share { rabbit, name, uri, turn })
}

/// See [`shared`].
pub(crate) struct Share {
    pub(crate) rabbit: &'static Rabbit,
    /// The virtual host.
    pub(crate) name: String,
    pub(crate) uri: String,
    pub(crate) turn: Arc<Turn>,
}

fn left_out<T>() -> Option<T> {
    rabbitmq::leave_out("the broker's faults");
    None
}

/// Prints also with tests that pass: what was measured is half of what these tests are for.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "    {text}");
}

/// POST `/in` into store `box`, from there to the target by the processor `out`.
pub(crate) fn line(target: &Recorder, store: &str, spec: &str) -> String {
    [
        manifest::store("box", store),
        manifest::route("in", "/in", "box"),
        manifest::processor("out", "box", &target.url(), spec),
    ]
    .concat()
}

/// One lane for each sender, eight attempts at once.
pub(crate) const PER_SENDER: &str = "ordering: PerKey\norderingKey: body.sender\nconcurrency: 8";

/// Starts a process on a broker, and waits until its store takes messages.
pub(crate) fn start(uri: &str, yaml: &str) -> Stagepost {
    let run = Setup::manifests(yaml).arg("--amqp").arg(uri).start();
    connected(&run, "box");
    run
}

/// Starts a process that was killed or has ended again, likewise.
pub(crate) fn launch(run: &mut Stagepost) {
    run.launch();
    connected(run, "box");
}

/// Waits until a store takes messages.
#[track_caller]
pub(crate) fn connected(run: &Stagepost, store: &str) {
    run.await_status("MessageStore", store, seconds(60), |status| is(status, "BrokerConnected", "True"));
}

/// Whether a condition of a status is as said.
pub(crate) fn is(status: &Value, kind: &str, wanted: &str) -> bool {
    condition(status, kind)["status"] == wanted
}

/// A condition of a status.
pub(crate) fn condition(status: &Value, kind: &str) -> Value {
    let found = status["conditions"].as_array().into_iter().flatten().find(|condition| condition["type"] == kind);
    found.cloned().unwrap_or_default()
}

/// Waits until everything promised has come and nothing is left behind.
#[track_caller]
pub(crate) fn drained(run: &Stagepost, target: &Recorder, traffic: &Traffic) -> Vec<Hit> {
    let begun = Instant::now();
    loop {
        let hits = target.hits();
        let promised = traffic.checker().all_promised_in(hits.iter().map(|hit| hit.body.as_slice()));
        // Lost ones would keep us here for ever; the verdict names them.
        if run.processor("out")["backlog"] == 0 && (promised || begun.elapsed() > seconds(40)) {
            return target.hits();
        }
        assert!(begun.elapsed() < seconds(90), "not drained: {:#}", run.processor("out"));
        std::thread::sleep(millis(200));
    }
}

/// Nothing lost, nothing made up; prints the counts.
#[track_caller]
pub(crate) fn judge(what: &str, traffic: &Traffic, hits: &[Hit]) -> Verdict {
    let checker = traffic.checker();
    let verdict = checker.judge(hits.iter().map(|hit| hit.body.as_slice()));
    say(&format!("{what}: {}", checker.summary(&verdict)));
    assert!(verdict.lost.is_empty(), "answered 202 and lost: {}, {:?}", verdict.lost.len(), verdict.lost.first());
    assert!(verdict.unexpected.is_empty(), "never sent: {:?}", verdict.unexpected);
    assert!(checker.count(Saw::Ok) > 50, "no load");
    verdict
}

/// The same, and everything that was promised came in its order.
#[track_caller]
pub(crate) fn judge_in_order(what: &str, traffic: &Traffic, hits: &[Hit]) -> Verdict {
    let verdict = judge(what, traffic, hits);
    // A message whose caller was told that it is not stored may have been under way still when the next one was sent
    // on another connection; nobody was promised its place.
    let promised: Vec<_> =
        verdict.reordered.iter().filter(|id| traffic.checker().what(**id) == Some(Saw::Ok)).collect();
    assert!(promised.is_empty(), "{promised:?}");
    verdict
}

/// Every repetition is explained by a fault at one of these times: the attempt before it was in flight then, or ended
/// just before.
#[track_caller]
pub(crate) fn assert_explained(hits: &[Hit], faults: &[Instant]) {
    let mut by_body: BTreeMap<&[u8], Vec<&Hit>> = BTreeMap::new();
    for hit in hits {
        by_body.entry(&hit.body).or_default().push(hit);
    }
    for (body, hits) in by_body {
        for pair in hits.windows(2) {
            let explained = faults.iter().any(|fault| {
                let settled = pair[0].answered.is_some_and(|answered| answered + SETTLED_WITHIN < *fault);
                *fault <= pair[1].at && !settled
            });
            let before = faults.iter().find(|fault| **fault >= pair[0].at).map(|fault| *fault - pair[0].at);
            let apart = pair[1].at - pair[0].at;
            let body = String::from_utf8_lossy(body);
            assert!(explained, "{body} came twice, {before:?} before a fault, the second time {apart:?} later");
        }
    }
}

/// Waits until a message that was sent after `since` is stored and one is delivered, and prints how long that took, and
/// for how long at most nothing was stored since `fault`.
#[track_caller]
pub(crate) fn recovered(what: &str, fault: Instant, since: Instant, traffic: &Traffic, target: &Recorder) {
    let stored = eventually("something is stored again", seconds(90), || traffic.first_stored_since(since));
    let delivered = eventually("something is delivered again", seconds(90), || {
        let hits = target.hits();
        hits.iter().rev().take_while(|hit| hit.at > since).map(|hit| hit.at).last()
    });
    let gap = traffic.longest_gap_since(fault);
    let (stored, delivered) = (stored - since, delivered - since);
    say(&format!(
        "{what}: stored again after {stored:.1?}, delivered after {delivered:.1?}; nothing stored for {gap:.1?}"
    ));
}
