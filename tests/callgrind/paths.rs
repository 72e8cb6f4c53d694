//! The two paths, on the broker of the tests.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::figures;
use super::profile::{self, Costs};
use crate::fake::broker::{FakeBroker, Stored};
use crate::support::{Connection, Recorder, Setup, Stagepost, eventually, manifest, seconds};

const QUEUE: &str = "box";
const STORE: &str = "queue: {type: Classic, name: box}";
/// In callgrind a message takes a millisecond or so, and a start ten seconds.
const PATIENCE: Duration = seconds(120);
/// What the few pay for, the start and the first times of everything, the many pay for as well.
const FEW: usize = 200;
const MANY: usize = 1_200;

#[test]
fn the_hot_paths_cost_no_more_than_they_did() {
    let Some(counted) = std::env::var("STAGEPOST_TEST_COUNTED").ok().filter(|path| !path.is_empty()) else {
        figures::leave_out("left out: counting instructions; tests/callgrind/count does it");
        return;
    };
    let (few, stored) = ingress(&counted, FEW);
    let (many, _) = ingress(&counted, MANY);
    let found = [
        ("ingress", each(&few, &many)),
        ("forward", each(&forward(&counted, FEW, &stored), &forward(&counted, MANY, &stored))),
    ];
    figures::hold(&found);
}

/// What each of the messages costs that the many have more.
fn each(few: &Costs, many: &Costs) -> Costs {
    let before = |name: &str| few.get(name).copied().unwrap_or(0);
    let count = i64::try_from(MANY - FEW).unwrap();
    many.iter().map(|(name, cost)| (name.clone(), (cost - before(name)) / count)).collect()
}

/// So many messages one after the other from the caller to the broker; one of them as it was stored.
fn ingress(counted: &str, count: usize) -> (Costs, Stored) {
    let folder = TempDir::new().unwrap();
    let broker = FakeBroker::start();
    let mut run = start(counted, folder.path(), &broker, &manifest::route("in", "/in", "box"));
    let mut caller = Connection::open(run.listen()).unwrap();
    let headers: [(&str, &[u8]); 3] =
        [("Content-Type", b"application/json"), ("User-Agent", b"caller/1.0"), ("Accept", b"*/*")];
    for number in 0..count {
        let answer = caller.request("POST", "/in", &headers, body(number).as_bytes()).unwrap();
        assert_eq!(answer.status, 202, "message {number}");
    }
    let costs = end(&mut run, folder.path());
    let messages = broker.messages(QUEUE);
    assert_eq!(messages.len(), count);
    (costs, messages[0].clone())
}

/// So many messages, in order, from the broker to the target.
fn forward(counted: &str, count: usize, stored: &Stored) -> Costs {
    let folder = TempDir::new().unwrap();
    let (broker, target) = (FakeBroker::start(), Recorder::start());
    broker.fill(
        QUEUE,
        (0..count).map(|number| {
            let properties = stored.properties.clone().with_message_id(format!("message-{number}").into());
            Stored { properties, body: body(number).into_bytes(), ..stored.clone() }
        }),
    );
    let processor = manifest::processor("out", "box", &target.url(), "ordering: Strict\nresponse: {log: None}");
    let mut run = start(counted, folder.path(), &broker, &processor);
    eventually("all are delivered and acknowledged", PATIENCE, || broker.messages(QUEUE).is_empty().then_some(()));
    let costs = end(&mut run, folder.path());
    assert_eq!(target.hits().len(), count, "each once");
    costs
}

/// 1 KiB of JSON.
fn body(number: usize) -> String {
    format!(r#"{{"number":"{number:08}","pad":"{}"}}"#, "x".repeat(1024 - 30))
}

fn start(counted: &str, folder: &Path, broker: &FakeBroker, yaml: &str) -> Stagepost {
    let program = profile::program(counted, &output(folder));
    let yaml = [manifest::store("box", STORE), yaml.to_owned()].concat();
    let run = Setup::manifests(yaml).program(program).arg("--amqp").arg(&broker.uri()).start();
    eventually("it is connected", PATIENCE, || (broker.lines().len() >= 2).then_some(()));
    run
}

/// Ends it, which writes the profile.
fn end(run: &mut Stagepost, folder: &Path) -> Costs {
    assert!(run.terminate(PATIENCE).success());
    profile::read(&std::fs::read_to_string(output(folder)).unwrap())
}

fn output(folder: &Path) -> std::path::PathBuf {
    folder.join("callgrind.out")
}
