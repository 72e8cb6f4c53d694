//! What only the embedded store promises: crashes, full disks, foreign files, one process a folder.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use redb::{ReadableDatabase, TableDefinition};
use stagepost::core::message::{Message, MessageId};
use stagepost::core::topology::{Consumers, Exchange, ExchangeKind, Management, Queue, QueueKind, Topology};
use stagepost::store::embedded::{Broker, OpenError};
use stagepost::store::{Consumer, Delivery, MessageStore, PublishError};

#[path = "support/disk.rs"]
mod disk;

use disk::SmallDisk;

const SOON: Duration = Duration::from_secs(20);
const FILE: &str = "stagepost.redb";

fn plain(name: &str) -> Topology {
    Topology {
        queue: Some(Queue {
            name: name.to_owned(),
            kind: QueueKind::Classic,
            management: Management::Declare,
            consumers: Consumers::Competing,
            max_length: None,
            max_length_bytes: None,
        }),
        exchange: None,
        bindings: Vec::new(),
        routing_key: name.to_owned(),
    }
}

fn open(folder: &Path) -> (Broker, Arc<dyn MessageStore>) {
    let broker = Broker::open(folder).unwrap();
    let store = broker.store("/", "s", &plain("q")).unwrap();
    (broker, store)
}

fn sized(id: impl Into<String>, bytes: usize) -> Arc<Message> {
    Arc::new(Message::new(MessageId::new(id.into()), vec![b'x'; bytes]))
}

async fn next(consumer: &mut Box<dyn Consumer>) -> Delivery {
    tokio::time::timeout(SOON, consumer.next()).await.expect("a message comes").unwrap()
}

/// Takes and acknowledges exactly what is there now, in order.
async fn drain(store: &dyn MessageStore) -> Vec<String> {
    let mut consumer = store.consume(64).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..store.depth().await.unwrap().ready {
        let delivery = next(&mut consumer).await;
        consumer.ack(&[delivery.tag]).unwrap();
        ids.push(delivery.message.id.as_str().to_owned());
    }
    ids
}

async fn until<F: Future<Output = bool>>(what: &str, mut question: impl FnMut() -> F) {
    let all = async {
        while !question().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, all).await.unwrap_or_else(|_| panic!("never: {what}"));
}

// ---------------------------------------------------------------------------------------------- another process

const ROLE: &str = "STAGEPOST_TEST_ROLE";
const FOLDER: &str = "STAGEPOST_TEST_FOLDER";

/// Not a test of its own: what a child process of the tests below does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (_broker, store) = open(&PathBuf::from(std::env::var_os(FOLDER).unwrap()));
    let say = |line: &str| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "#{line}").and_then(|()| out.flush()).unwrap();
    };
    match role.as_str() {
        "publish" => {
            let publishers = (0..16).map(|publisher| {
                let store = store.clone();
                tokio::spawn(async move {
                    for number in 0.. {
                        let id = format!("{}-{publisher}-{number:06}", std::process::id());
                        store.publish(sized(id.clone(), 300), None).await.unwrap();
                        say(&id);
                    }
                })
            });
            futures_util::future::join_all(publishers).await;
        }
        "hold" => {
            let mut consumer = store.consume(5).await.unwrap();
            for _ in 0..5 {
                next(&mut consumer).await;
            }
            // As long as an attempt of some milliseconds takes.
            tokio::time::sleep(Duration::from_millis(200)).await;
            say("held");
            std::future::pending::<()>().await;
        }
        "idle" => {
            say("open");
            std::future::pending::<()>().await;
        }
        other => panic!("unknown role {other}"),
    }
}

/// A child process that is killed at the end, whatever happens.
struct Process(Child);

impl Process {
    fn start(role: &str, folder: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(FOLDER, folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// What it says, line by line; ends when the process does.
    fn lines(&mut self) -> impl Iterator<Item = String> + use<> {
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        // Only whole lines of its own count: the harness prints too.
        lines.map_while(Result::ok).filter_map(|line| line.rsplit_once('#').map(|(_, said)| said.to_owned()))
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[tokio::test]
async fn what_was_confirmed_before_a_kill_is_there_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut confirmed = BTreeSet::new();
    for round in 0..8usize {
        let mut process = Process::start("publish", folder.path());
        let mut lines = process.lines();
        // At another moment each time: it publishes some thousand a second.
        let enough = 1 + round * 137;
        confirmed.extend(lines.by_ref().take(enough));
        process.kill();
        confirmed.extend(lines);
        if round % 3 != 2 {
            continue;
        }
        let (broker, store) = open(folder.path());
        let found = drain(&*store).await;
        let set: BTreeSet<String> = found.iter().cloned().collect();
        assert_eq!(set.len(), found.len(), "each once");
        let lost: Vec<_> = confirmed.difference(&set).collect();
        assert!(lost.is_empty(), "{} lost of {}: {lost:?}", lost.len(), confirmed.len());
        for publisher in 0..16 {
            let key = format!("-{publisher}-");
            let of: Vec<&String> = found.iter().filter(|id| id.contains(&key)).collect();
            let in_order = of.windows(2).all(|pair| {
                let (process, number) = (pair[0].split('-').next(), pair[0].rsplit('-').next());
                process != pair[1].split('-').next() || number < pair[1].rsplit('-').next()
            });
            assert!(in_order, "what one publisher published one after the other is in order");
        }
        confirmed.clear();
        broker.close();
    }
}

#[tokio::test]
async fn what_was_held_at_a_kill_comes_again_marked_and_the_rest_unmarked() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, store) = open(folder.path());
    for number in 0..10 {
        store.publish(sized(format!("m{number}"), 10), None).await.unwrap();
    }
    drop((broker, store));
    let mut process = Process::start("hold", folder.path());
    assert_eq!(process.lines().next().as_deref(), Some("held"));
    process.kill();
    let (_broker, store) = open(folder.path());
    let mut consumer = store.consume(10).await.unwrap();
    for number in 0..10 {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.message.id.as_str(), format!("m{number}"));
        assert_eq!(delivery.redelivered, number < 5, "m{number}");
    }
}

#[test]
fn a_folder_that_another_process_has_open_is_refused_by_its_process_id() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start("idle", folder.path());
    assert_eq!(process.lines().next().as_deref(), Some("open"));
    let error = Broker::open(folder.path()).unwrap_err();
    assert!(matches!(&error, OpenError::Locked { pid: Some(pid), .. } if *pid == process.0.id()), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&process.0.id().to_string()) && text.contains(folder.path().to_str().unwrap()), "{text}");
    process.kill();
    Broker::open(folder.path()).unwrap();
}

#[test]
fn a_folder_is_free_again_after_the_last_handle_or_after_close() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, store) = open(folder.path());
    assert!(matches!(Broker::open(folder.path()), Err(OpenError::Locked { .. })));
    drop(broker);
    assert!(matches!(Broker::open(folder.path()), Err(OpenError::Locked { .. })), "a store of it is still there");
    drop(store);
    let (broker, _store) = open(folder.path());
    broker.close();
    Broker::open(folder.path()).unwrap();
}

// ------------------------------------------------------------------------------------------------- what is not ours

fn refused(folder: &Path) -> OpenError {
    let before = fs::read(folder.join(FILE)).unwrap();
    let error = Broker::open(folder).unwrap_err();
    assert!(error.to_string().contains(FILE), "names the file: {error}");
    assert!(fs::read(folder.join(FILE)).unwrap() == before, "the file is left as it was");
    error
}

#[test]
fn a_file_of_another_program_is_refused_and_left_alone() {
    let noise: Vec<u8> = (0..100_000u32).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
    for bytes in [b"SQLite format 3\0 and so on".to_vec(), Vec::new(), vec![0; 8192], noise, b"redb".to_vec()] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), &bytes).unwrap();
        let error = refused(folder.path());
        assert!(matches!(error, OpenError::Foreign { .. } | OpenError::Corrupt { .. }), "{error:?}");
    }
}

#[test]
fn a_redb_file_of_another_program_is_foreign() {
    let folder = tempfile::tempdir().unwrap();
    let database = redb::Database::create(folder.path().join(FILE)).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(TableDefinition::<u64, u64>::new("theirs")).unwrap().insert(1, 2).unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert!(matches!(Broker::open(folder.path()), Err(OpenError::Foreign { .. })));
    let database = redb::Database::open(folder.path().join(FILE)).unwrap();
    let table = TableDefinition::<u64, u64>::new("theirs");
    assert_eq!(database.begin_read().unwrap().open_table(table).unwrap().get(1).unwrap().unwrap().value(), 2);
}

const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("stagepost");

#[test]
fn a_file_of_an_older_or_newer_version_is_refused_and_says_so() {
    for format in [2, 4] {
        let folder = tempfile::tempdir().unwrap();
        Broker::open(folder.path()).unwrap().close();
        let database = redb::Database::open(folder.path().join(FILE)).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(NUMBERS).unwrap().insert("format", format).unwrap();
        transaction.commit().unwrap();
        drop(database);
        let error = Broker::open(folder.path()).unwrap_err();
        assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
        assert!(error.to_string().contains(&format!("format {format}")), "{error}");
    }
}

#[tokio::test]
async fn a_file_that_was_cut_off_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, store) = open(folder.path());
    for number in 0..200 {
        store.publish(sized(format!("m{number}"), 5000), None).await.unwrap();
    }
    broker.close();
    let whole = fs::read(folder.path().join(FILE)).unwrap();
    for length in [1, 8, 9, 63, 64, 320, 4095, 4096, 8192, 100_000, whole.len() / 2, whole.len() - 4096] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), &whole[..length]).unwrap();
        let error = refused(folder.path());
        assert!(matches!(error, OpenError::Foreign { .. } | OpenError::Corrupt { .. }), "at {length}: {error:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    /// Damage is an error or is not noticed, but never a panic and never an endless wait.
    #[test]
    fn damaged_pages_do_not_panic(damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..1000)) {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (broker, store) = open(folder.path());
            let publishes = (0..100).map(|number| store.publish(sized(format!("m{number}"), 500), None));
            futures_util::future::join_all(publishes).await.into_iter().for_each(Result::unwrap);
            broker.close();
        });
        let file = folder.path().join(FILE);
        let mut bytes = fs::read(&file).unwrap();
        // Within the pages that are in use.
        let used = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
        for (at, to) in damage {
            let at = at.index(used);
            bytes[at] = to;
        }
        fs::write(&file, &bytes).unwrap();
        if let Ok(broker) = Broker::open(folder.path())
            && let Ok(store) = broker.store("/", "s", &plain("q"))
        {
            runtime.block_on(async {
                let _ = store.publish(sized("more", 500), None).await;
                let mut consumer = store.consume(64).await.unwrap();
                while let Ok(Ok(delivery)) = tokio::time::timeout(Duration::from_millis(20), consumer.next()).await {
                    consumer.ack(&[delivery.tag]).unwrap();
                }
            });
        }
    }
}

// ------------------------------------------------------------------------------------------------------- a full disk

/// Publishes until the disk is full. Returns what was accepted.
async fn fill(store: &dyn MessageStore) -> Vec<String> {
    let mut accepted = Vec::new();
    loop {
        let id = format!("m{:06}", accepted.len());
        match store.publish(sized(id.clone(), 10_000), None).await {
            Ok(()) => accepted.push(id),
            Err(PublishError::Refused(text)) => {
                assert!(text.contains("full"), "{text}");
                return accepted;
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_hands_out_everything_once_and_recovers_by_the_drain() {
    let Some(disk) = SmallDisk::mount(24) else { return };
    let (broker, store) = open(&disk.folder());
    let accepted = fill(&*store).await;
    assert!(accepted.len() > 500, "{}", accepted.len());
    for _ in 0..20 {
        assert!(matches!(store.publish(sized("more", 10_000), None).await, Err(PublishError::Refused(_))));
    }
    assert_eq!(drain(&*store).await, accepted, "all of it, once, in order");
    until("a publish is accepted again", || async { store.publish(sized("again", 10_000), None).await.is_ok() }).await;
    broker.close();
    let (_broker, store) = open(&disk.folder());
    assert_eq!(drain(&*store).await, ["again"], "acknowledgements given on the full disk are in the file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_another_program_filled_refuses_until_there_is_room() {
    let Some(disk) = SmallDisk::mount(32) else { return };
    let (broker, store) = open(&disk.folder());
    store.publish(sized("first", 1000), None).await.unwrap();
    let other = disk.path().join("other");
    let mut file = fs::File::create(&other).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    drop(file);
    let accepted = fill(&*store).await;
    // A second time full, and still not stuck.
    assert!(matches!(store.publish(sized("more", 10_000), None).await, Err(PublishError::Refused(_))));
    store.deactivate("default.p", &record()).await.unwrap();
    fs::remove_file(&other).unwrap();
    until("a publish is accepted again", || async { store.publish(sized("last", 1000), None).await.is_ok() }).await;
    let expected = [vec!["first".to_owned()], accepted, vec!["last".to_owned()]].concat();
    broker.close();
    let (_broker, store) = open(&disk.folder());
    assert_eq!(drain(&*store).await, expected);
    assert_eq!(store.deactivation("default.p").await.unwrap(), Some(record()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_full_disk_accepted_is_there_after_a_restart_on_the_full_disk() {
    let Some(disk) = SmallDisk::mount(24) else { return };
    let (broker, store) = open(&disk.folder());
    let accepted = fill(&*store).await;
    broker.close();
    let (_broker, store) = open(&disk.folder());
    assert_eq!(drain(&*store).await, accepted);
}

fn record() -> stagepost::core::deactivation::Deactivation {
    stagepost::core::deactivation::Deactivation {
        uid: "uid-1".to_owned(),
        time: "2026-11-21T08:00:00Z".parse().unwrap(),
        message_id: "first".to_owned(),
        reason: "MaxRedeliveries".to_owned(),
        message: "status 500".to_owned(),
        attempts: 4,
    }
}

// ------------------------------------------------------------------------------------------------- cost and remainder

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_drained_file_gives_its_space_back() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, store) = open(folder.path());
    for group in 0..16 {
        let publishes = (0..200).map(|number| store.publish(sized(format!("m{group}-{number}"), 16_000), None));
        futures_util::future::join_all(publishes).await.into_iter().for_each(Result::unwrap);
    }
    let full = broker.used_bytes();
    assert!(full > 50 << 20, "{full}");
    assert_eq!(drain(&*store).await.len(), 3200);
    until("the file is small", || async { broker.used_bytes() < 1 << 20 }).await;
    // And it works as before.
    store.publish(sized("after", 16_000), None).await.unwrap();
    assert_eq!(drain(&*store).await, ["after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_publishes_share_commits() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, store) = open(folder.path());
    let publishers = (0..64).map(|publisher| {
        let store = store.clone();
        tokio::spawn(async move {
            for number in 0..50 {
                store.publish(sized(format!("m{publisher}-{number}"), 100), None).await.unwrap();
            }
        })
    });
    for publisher in futures_util::future::join_all(publishers).await {
        publisher.unwrap();
    }
    broker.close();
    let database = redb::Database::open(folder.path().join(FILE)).unwrap();
    let numbers = database.begin_read().unwrap().open_table(NUMBERS).unwrap();
    let commits = numbers.get("commits").unwrap().unwrap().value();
    assert!(commits < 3200 / 4, "{commits} commits for 3200 publishes");
}

#[tokio::test]
async fn a_message_for_several_queues_is_stored_in_all_or_in_none() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::open(folder.path()).unwrap();
    let exchange = || Exchange { name: "x".to_owned(), kind: ExchangeKind::Fanout, management: Management::Declare };
    let topology = |name: &str, max_length| {
        let mut topology = Topology { exchange: Some(exchange()), ..plain(name) };
        topology.queue.as_mut().unwrap().max_length = max_length;
        topology
    };
    let large = broker.store("/", "a", &topology("large", None)).unwrap();
    let small = broker.store("/", "b", &topology("small", Some(1))).unwrap();
    large.publish(sized("first", 10), None).await.unwrap();
    assert!(matches!(large.publish(sized("second", 10), None).await, Err(PublishError::Refused(_))));
    assert_eq!(drain(&*small).await, ["first"]);
    large.publish(sized("third", 10), None).await.unwrap();
    assert_eq!(drain(&*large).await, ["first", "third"]);
    assert_eq!(drain(&*small).await, ["third"]);
}

#[tokio::test]
async fn virtual_hosts_know_nothing_of_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::open(folder.path()).unwrap();
    let a = broker.store("a", "s", &plain("q")).unwrap();
    let b = broker.store("b", "s", &plain("q")).unwrap();
    a.publish(sized("to a", 10), None).await.unwrap();
    a.deactivate("default.p", &record()).await.unwrap();
    assert_eq!(b.depth().await.unwrap().ready, 0);
    assert_eq!(b.deactivation("default.p").await.unwrap(), None);
    assert_eq!(drain(&*a).await, ["to a"]);
}

/// The writer thread sleeps while there is nothing to do.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_idle_store_does_not_wake_up() {
    let switches = || -> u64 {
        let tasks = fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
        let writers = tasks
            .filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == IDLE_WRITER));
        let of = |task: fs::DirEntry| {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        writers.map(of).sum()
    };
    // The threads of other tests in this process have the same name, so this one looks from a process of its own.
    if std::env::var(ROLE).as_deref() != Ok("idle-check") {
        let folder = tempfile::tempdir().unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "an_idle_store_does_not_wake_up", "--test-threads=1"])
            .env(ROLE, "idle-check")
            .env(FOLDER, folder.path())
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let (_broker, store) = open(&PathBuf::from(std::env::var_os(FOLDER).unwrap()));
    let mut consumer = store.consume(1).await.unwrap();
    store.publish(sized("one", 10), None).await.unwrap();
    let delivery = next(&mut consumer).await;
    consumer.ack(&[delivery.tag]).unwrap();
    // Until the last commit is over, however slow the disk is.
    let mut before = switches();
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = switches();
        if std::mem::replace(&mut before, now) == now {
            break;
        }
    }
    assert!(before > 0, "the thread is found");
    assert!(tokio::time::timeout(Duration::from_millis(1500), consumer.next()).await.is_err());
    assert_eq!(switches(), before);
}

#[cfg(target_os = "linux")]
const IDLE_WRITER: &str = "store-writer";

#[derive(Debug, Clone)]
enum Act {
    Publish(u8),
    Take(u8),
    Ack(proptest::sample::Index),
    GiveBack,
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (1u8..6).prop_map(Act::Publish),
        4 => (1u8..8).prop_map(Act::Take),
        4 => any::<proptest::sample::Index>().prop_map(Act::Ack),
        1 => Just(Act::GiveBack),
        1 => Just(Act::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    /// Against a model that is a sorted list: what is handed out is always the lowest that nobody holds, nothing is
    /// lost, nothing comes twice, and what was handed out before says so.
    #[test]
    fn a_queue_is_a_sorted_list(acts in proptest::collection::vec(act(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let (mut broker, mut store) = open(folder.path());
            let mut consumer = None;
            let (mut ready, mut seen) = (BTreeSet::new(), BTreeSet::new());
            let mut held: Vec<(u64, Delivery)> = Vec::new();
            let mut published = 0u64;
            for act in acts {
                match act {
                    Act::Publish(count) => for _ in 0..count {
                        store.publish(sized(format!("{published}"), 10), None).await.unwrap();
                        ready.insert(published);
                        published += 1;
                    },
                    Act::Take(count) => for _ in 0..count {
                        if consumer.is_none() {
                            consumer = Some(store.consume(200).await.unwrap());
                        }
                        let Some(expected) = ready.pop_first() else { break };
                        let delivery = next(consumer.as_mut().unwrap()).await;
                        assert_eq!(delivery.message.id.as_str(), expected.to_string());
                        assert_eq!(delivery.redelivered, !seen.insert(expected));
                        held.push((expected, delivery));
                    },
                    Act::Ack(which) => if !held.is_empty() {
                        let (_, delivery) = held.remove(which.index(held.len()));
                        consumer.as_mut().unwrap().ack(&[delivery.tag]).unwrap();
                    },
                    Act::GiveBack => if let Some(consumer) = consumer.take() {
                        consumer.give_back().await.unwrap();
                        ready.extend(held.drain(..).map(|(number, _)| number));
                    },
                    Act::Restart => {
                        consumer = None;
                        ready.extend(held.drain(..).map(|(number, _)| number));
                        broker.close();
                        (broker, store) = open(folder.path());
                    }
                }
                assert_eq!(store.depth().await.unwrap().ready, ready.len() as u64);
            }
        });
    }
}
