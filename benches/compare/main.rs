//! Stagepost beside the limits of broker and machine, beside the least that can do the job, and beside what one writes
//! by hand, in one run on one machine: `make bench`.
//!
//! In each round everything is measured once, one after the other, so that what disturbs one disturbs the others; each
//! figure is the lowest, the median and the highest of the rounds, each ratio is of two measurements of one round. Every
//! message is accounted for, and a lost one fails the run.
//!
//! - `amqp`: a minimal client, for the broker's limit. `spike`: with it, the least that can do the job. `peer`: Node.
//! - `load`, `backend`: who sends and who is delivered to. `contenders`: who is in between, and how each is started.
//! - `measure`, `growth`: what is done with them. `table`, `aims`: what is printed.
//!
//! Settings, by environment: `ROUNDS` (3), `SECONDS` (2, of each measurement), `ONLY`
//! (`limits,perftest,ingress,forward,e2e,mixed,growth`), `STORES` (`quorum,classic,embedded`), `WHO` (`stagepost,spike,node`), `SIZES`
//! (`1024,65536,1048576`), `RATE` (2000, of the measurement end to end). `STAGEPOST_TEST_RABBITMQ` (4.0) says which broker.
//!
//! Needs what the tests with brokers need. Without wrk, Java and Maven, or Node and npm, their lines are left out.

#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub, missing_docs)]
// Counts of a measurement are far below what an f64 holds exactly.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod aims;
mod amqp;
mod backend;
mod body;
mod contenders;
mod epoll;
mod growth;
mod histogram;
mod http;
mod load;
mod measure;
mod perf_test;
mod process;
#[path = "../../tests/support/rabbitmq.rs"]
mod rabbitmq;
mod settings;
mod spike;
mod table;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use amqp::{Kind, Queue};
use contenders::{Ground, Mode, Store, Who};
use measure::Bench;
use perf_test::PerfTest;
use process::{Running, has, role, said};
use settings::{BACKEND, KEYS, Settings};
use table::{Sample, Table};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["backend", listen] => backend::run(listen),
        ["load", load] => load::run(load),
        ["hold", address, count] => growth::hold(address, count.parse().unwrap()),
        ["spike-ingress", listen, broker, queue] => spike::ingress(listen, &named(broker, queue)),
        ["spike-forward", backend, broker, queue, concurrency] => {
            spike::forward(&named(broker, queue), backend, concurrency.parse().unwrap())
        }
        _ => return run(&Settings::read()),
    }
    ExitCode::SUCCESS
}

fn named(broker: &str, name: &str) -> Queue {
    Queue { broker: broker.to_owned(), name: name.to_owned() }
}

fn run(settings: &Settings) -> ExitCode {
    let version = rabbitmq::version().unwrap_or_else(|| "4.0".to_owned());
    let work = tempfile::tempdir().unwrap();
    let node = settings.measures("node").then(peer).flatten();
    let perf_test = settings.wants("perftest").then(PerfTest::fetch).flatten();
    let has_wrk = settings.wants("limits") && has("wrk", "wrk straight to the target");
    let rabbit = rabbitmq::Rabbit::start(&version, "");
    let _backend = Running::start(&mut role(&["backend", BACKEND]));
    let ground =
        Ground { broker: format!("127.0.0.1:{}", rabbit.port), uri: rabbit.uri(), work: work.path().to_owned(), node };
    let broker = process::descendant(std::process::id(), "beam").expect("the broker runs");
    let mut bench = Bench { settings, ground, broker, table: Table::default(), round: 0, number: 0 };
    let measured = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for round in 0..settings.rounds {
            bench.round = round;
            one_round(&mut bench, has_wrk, perf_test.as_ref());
        }
    }));
    let (conditions, aims) = (conditions(settings, &version, &bench), aims::print(&bench.table, settings.rate));
    println!("{conditions}\n\n{}\n{aims}", bench.table.print());
    let lost = bench.table.lost();
    if lost > 0 {
        eprintln!("{lost} messages were lost");
    }
    // Of a run that broke off, what was measured until then was printed all the same.
    if lost > 0 || measured.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn one_round(bench: &mut Bench<'_>, has_wrk: bool, perf_test: Option<&PerfTest>) {
    let settings = bench.settings;
    if has_wrk {
        let lua = script(&bench.ground.work);
        bench.limit("to the target, 64 connections", "wrk", None, || measure::wrk(settings, &lua));
    }
    for kind in [Kind::Quorum, Kind::Classic] {
        if settings.on(Store::Broker(kind).name()) {
            limits(bench, kind, perf_test);
            on_broker(bench, kind);
        }
    }
    if settings.measures("stagepost") {
        if settings.wants("mixed") {
            bench.mixed();
        }
        // What grows with size does so in every round.
        if settings.wants("growth") && bench.round == 0 {
            bench.growth();
        }
        if settings.on("embedded") {
            embedded(bench);
        }
    }
}

/// What the broker allows.
fn limits(bench: &mut Bench<'_>, kind: Kind, perf_test: Option<&PerfTest>) {
    let settings = bench.settings;
    if settings.wants("limits") {
        for window in [64, 256] {
            let queue = bench.queue();
            queue.declare(kind);
            bench.limit(&format!("confirmed publishes, window {window}"), "raw client", Some(kind), || {
                let found = amqp::publish(&queue, window, 1024, settings.time());
                let messages = (found.per_second * settings.seconds as f64) as u64;
                (Sample { per_second: found.per_second, latency: Some(found.latency), ..Sample::default() }, messages)
            });
            queue.delete();
        }
        for (what, prefetch, together) in [
            ("deliveries, prefetch 64, each acknowledged", 64, false),
            ("deliveries, prefetch 256, acknowledged together", 256, true),
        ] {
            let (queue, count) = (bench.queue(), settings.filled(1024, false));
            queue.declare(kind);
            queue.fill(count, 1024);
            bench.limit(what, "raw client", Some(kind), || {
                let found = amqp::consume(&queue, count, prefetch, together);
                (Sample { per_second: found.per_second, ..Sample::default() }, count)
            });
            queue.delete();
        }
    }
    if let Some(perf_test) = perf_test {
        let uri = bench.ground.uri.clone();
        for (what, window) in [
            ("confirmed publishes, window 64", Some(64)),
            ("confirmed publishes, window 256", Some(256)),
            ("deliveries, prefetch 64, acknowledged by 16", None),
        ] {
            bench.limit(what, "PerfTest", Some(kind), || perf_test.run(&uri, kind, window, settings.seconds));
        }
        named(&bench.ground.broker, &format!("perf-{}", kind.name())).delete();
    }
}

fn on_broker(bench: &mut Bench<'_>, kind: Kind) {
    let settings = bench.settings;
    let store = Store::Broker(kind);
    let has_node = bench.ground.node.is_some();
    let who: Vec<Who> =
        Who::ALL.into_iter().filter(|who| settings.measures(who.name()) && (*who != Who::Node || has_node)).collect();
    for size in settings.sizes.iter().copied() {
        // The widest on the one that people should use, the rest where it may differ.
        let wide = kind == Kind::Quorum && size == 1024;
        if size > 1024 && kind == Kind::Classic {
            continue;
        }
        // Bodies of a mebibyte are limited by their bytes.
        let connections = if size > 500_000 { 16 } else { 64 };
        // Side by side, what is compared.
        let all: &[usize] = if wide { &[1, 16, 64, 256, 512] } else { &[connections] };
        for connections in all.iter().filter(|_| settings.wants("ingress")) {
            for who in who.iter().filter(|who| **who == Who::Stagepost || !wide || [64, 256].contains(connections)) {
                bench.ingress(*who, store, *connections, size);
            }
        }
        let all: &[Mode] = match wide {
            true => &[Mode::Strict, Mode::None(16), Mode::None(64), Mode::PerKey(64), Mode::Poll(64)],
            false if size > 1024 => &[Mode::None(64)],
            false => &[Mode::Strict, Mode::None(64)],
        };
        for mode in all.iter().filter(|_| settings.wants("forward")) {
            for who in who.iter().filter(|who| **who == Who::Stagepost || [Mode::Strict, Mode::None(64)].contains(mode))
            {
                bench.forward(*who, store, *mode, size);
            }
        }
        for who in who.iter().filter(|_| settings.wants("e2e") && size == 1024) {
            bench.end_to_end(*who, store);
        }
    }
}

fn embedded(bench: &mut Bench<'_>) {
    let settings = bench.settings;
    for size in settings.sizes.iter().copied() {
        let connections = if size > 500_000 { 16 } else { 64 };
        if settings.wants("ingress") {
            bench.ingress(Who::Stagepost, Store::Embedded, connections, size);
        }
        if settings.wants("forward") && size == 1024 {
            bench.forward(Who::Stagepost, Store::Embedded, Mode::Strict, size);
            bench.forward(Who::Stagepost, Store::Embedded, Mode::None(64), size);
        }
        if settings.wants("e2e") && size == 1024 {
            bench.end_to_end(Who::Stagepost, Store::Embedded);
        }
    }
}

/// The peer, with its packages, where it can be started from.
fn peer() -> Option<PathBuf> {
    let what = "the peer for Node";
    if !has("node", what) || !has("npm", what) {
        return None;
    }
    let folder = perf_test::cache().join("compare-peer");
    std::fs::create_dir_all(&folder).unwrap();
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/compare/peer");
    let changed =
        |file: &str| std::fs::read(ours.join(file)).unwrap() != std::fs::read(folder.join(file)).unwrap_or_default();
    let install = changed("package-lock.json") || !folder.join("node_modules").exists();
    for file in ["ingress.js", "forward.js", "package.json", "package-lock.json"] {
        std::fs::copy(ours.join(file), folder.join(file)).unwrap();
    }
    if install {
        let arguments = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"];
        if !Command::new("npm").args(arguments).current_dir(&folder).status().unwrap().success() {
            eprintln!("LEFT OUT: {what}; npm could not fetch its packages");
            return None;
        }
    }
    Some(folder)
}

/// What `wrk` sends.
fn script(work: &Path) -> PathBuf {
    let body = String::from_utf8(body::body(1024)).unwrap();
    let path = work.join("post.lua");
    let text = format!("wrk.method = 'POST'\nwrk.headers['Content-Type'] = 'application/json'\nwrk.body = '{body}'\n");
    std::fs::write(&path, text).unwrap();
    path
}

/// What a table is worth nothing without.
fn conditions(settings: &Settings, rabbitmq: &str, bench: &Bench<'_>) -> String {
    let model = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        model.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory: u64 = memory.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0);
    let stagepost = said(env!("CARGO_BIN_EXE_stagepost"), &["--version"]);
    let node = if bench.ground.node.is_some() {
        let packages = include_str!("peer/package.json");
        let packages: serde_json::Value = serde_json::from_str(packages).unwrap();
        let version = |name: &str| packages["dependencies"][name].as_str().unwrap_or("?").to_owned();
        format!(
            ", Node {} with amqplib {} and undici {}",
            said("node", &["--version"]),
            version("amqplib"),
            version("undici")
        )
    } else {
        String::new()
    };
    format!(
        "{stagepost}, RabbitMQ {rabbitmq}, PerfTest {}{node}; {cores} cores of {model}, {} GiB, {}. {} rounds of {} s a \
         measurement; lowest / median / highest. Ratios are of messages a second in the same round. p50 to p99.9 are of \
         publishes for the raw client, of requests at half the rate for an ingress, from due to the target end to end. \
         `PerKey` has {KEYS} keys.",
        perf_test::VERSION,
        memory >> 20,
        said("uname", &["-sr"]),
        settings.rounds,
        settings.seconds,
    )
}
