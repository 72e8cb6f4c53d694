//! Measures the embedded store: `cargo bench --bench embedded_store [-- FOLDER]`.
//!
//! Prints, for 100 stored messages and for 1,000,000 (1 KiB each, about 1.4 GiB of file):
//! accepted messages a second from 64 publishers that each wait for the durable commit before the next, the time of
//! one publish, messages a second taken and acknowledged by one consumer with a prefetch of 64, and the time from
//! opening the folder after `kill -9` to the first message in hand. Fails if that time passes two seconds.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use stagepost::core::message::{Message, MessageId};
use stagepost::core::topology::{Consumers, Management, Queue, QueueKind, Topology};
use stagepost::store::MessageStore;
use stagepost::store::embedded::Broker;

const PUBLISHERS: usize = 64;
const MEASURED: Duration = Duration::from_secs(5);
/// What the product promises for a file of 1 GiB.
const READY_WITHIN: Duration = Duration::from_secs(2);
const CHILD: &str = "STAGEPOST_BENCH_CHILD";

fn topology() -> Topology {
    Topology {
        queue: Some(Queue {
            name: "q".to_owned(),
            kind: QueueKind::Classic,
            management: Management::Declare,
            consumers: Consumers::SingleActive,
            max_length: None,
            max_length_bytes: None,
        }),
        exchange: None,
        bindings: Vec::new(),
        routing_key: "q".to_owned(),
    }
}

fn message(number: usize) -> Arc<Message> {
    Arc::new(Message::new(MessageId::new(format!("m{number}")), vec![b'x'; 1024]))
}

#[tokio::main]
async fn main() {
    if let Some(folder) = std::env::var_os(CHILD) {
        return child(Path::new(&folder)).await;
    }
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).map(PathBuf::from);
    let temporary = tempfile::tempdir_in(folder.unwrap_or_else(std::env::temp_dir)).unwrap();
    let folder = temporary.path().join("data");
    fsync_alone(temporary.path());
    for stored in [100, 1_000_000] {
        println!("== {stored} messages stored");
        let broker = Broker::open(&folder).unwrap();
        let store = broker.store("/", "s", &topology()).unwrap();
        fill(&*store, stored).await;
        accept(&store).await;
        take(&*store).await;
        println!("file: {} MiB", broker.used_bytes() >> 20);
        drop((broker, store));
        kill_and_open(&folder).await;
    }
    drain(&folder).await;
}

/// What the disk itself does: how often it makes a small write durable.
fn fsync_alone(folder: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(folder.join("fsync")).unwrap();
    let (start, mut count) = (Instant::now(), 0u32);
    while start.elapsed() < Duration::from_secs(1) {
        file.write_all(&[1; 4096]).and_then(|()| file.sync_data()).unwrap();
        count += 1;
    }
    println!("the disk: {count} appends of 4 KiB with fdatasync a second");
}

async fn fill(store: &dyn MessageStore, wanted: usize) {
    let there = usize::try_from(store.depth().await.unwrap().ready).unwrap();
    let publishes = (there..wanted).map(|number| store.publish(message(number), None));
    stream::iter(publishes).buffer_unordered(4096).for_each(|result| async { result.unwrap() }).await;
}

async fn accept(store: &Arc<dyn MessageStore>) {
    let start = Instant::now();
    let publishers = (0..PUBLISHERS).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut times = Vec::new();
            while start.elapsed() < MEASURED {
                let one = Instant::now();
                store.publish(message(0), None).await.unwrap();
                times.push(one.elapsed());
            }
            times
        })
    });
    let mut times = Vec::new();
    for publisher in futures_util::future::join_all(publishers).await {
        times.extend(publisher.unwrap());
    }
    times.sort_unstable();
    let rate = times.len() as u128 * 1000 / start.elapsed().as_millis();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("accepted: {rate}/s at {PUBLISHERS} publishers; p50 {:?}, p99 {:?}, max {:?}", at(50), at(99), at(100));
}

async fn take(store: &dyn MessageStore) {
    let start = Instant::now();
    let mut consumer = store.consume(64).await.unwrap();
    let mut count = 0;
    while start.elapsed() < MEASURED && count < 100_000 {
        let Ok(delivery) = tokio::time::timeout(Duration::from_secs(1), consumer.next()).await else { break };
        consumer.ack(&[delivery.unwrap().tag]).unwrap();
        count += 1;
    }
    println!("taken and acknowledged: {}/s", count * 1000 / start.elapsed().as_millis());
}

/// A child publishes and takes until it is killed; then the folder is opened.
async fn kill_and_open(folder: &Path) {
    let mut child =
        Command::new(std::env::current_exe().unwrap()).env(CHILD, folder).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "busy");
    std::thread::sleep(Duration::from_secs(1));
    child.kill().unwrap();
    child.wait().unwrap();
    let start = Instant::now();
    let broker = Broker::open(folder).unwrap();
    let store = broker.store("/", "s", &topology()).unwrap();
    let opened = start.elapsed();
    let stored = store.depth().await.unwrap().ready;
    let mut consumer = store.consume(1).await.unwrap();
    consumer.next().await.unwrap();
    let ready = start.elapsed();
    println!("after kill -9 with {stored} messages: open in {opened:?}, first message in {ready:?}");
    assert!(ready < READY_WITHIN, "ready within {READY_WITHIN:?}");
}

async fn child(folder: &Path) {
    let broker = Broker::open(folder).unwrap();
    let store = broker.store("/", "s", &topology()).unwrap();
    let publishing = (0..PUBLISHERS).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            loop {
                store.publish(message(0), None).await.unwrap();
            }
        })
    });
    let publishing: Vec<_> = publishing.collect();
    let mut consumer = store.consume(64).await.unwrap();
    println!("busy");
    while let Ok(delivery) = consumer.next().await {
        consumer.ack(&[delivery.tag]).unwrap();
    }
    drop(publishing);
}

async fn drain(folder: &Path) {
    let broker = Broker::open(folder).unwrap();
    let store = broker.store("/", "s", &topology()).unwrap();
    let before = broker.used_bytes();
    let (start, mut count) = (Instant::now(), 0);
    let mut consumer = store.consume(64).await.unwrap();
    while let Ok(delivery) = tokio::time::timeout(Duration::from_secs(1), consumer.next()).await {
        consumer.ack(&[delivery.unwrap().tag]).unwrap();
        count += 1;
    }
    let took = start.elapsed().checked_sub(Duration::from_secs(1)).unwrap();
    while broker.used_bytes() > 1 << 20 && start.elapsed() < took + Duration::from_secs(15) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("drained {count} in {took:?}; file {} MiB -> {} KiB", before >> 20, broker.used_bytes() >> 10);
}
