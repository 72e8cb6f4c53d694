//! Stagepost on RabbitMQ beside the limits of the broker and of the machine: `cargo bench --bench rabbitmq`.
//!
//! In each round, one after the other: RabbitMQ's own `PerfTest` publishing with confirms and consuming with acks, `wrk`
//! straight to the target, the ingress into a queue, the forwarder out of it. Prints the median of the rounds, the
//! ratios, and CPU per message. Trust the ratios of one run, not figures of two.
//!
//! Needs what the tests with brokers need, and `wrk`, Java and Maven (`PerfTest` is fetched once, into the cache). `ROUNDS`
//! (default 3) and `SECONDS` (default 5) say how long; `STAGEPOST_TEST_RABBITMQ` (default 4.0) which broker.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/support/rabbitmq.rs"]
mod rabbitmq;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rabbitmq::Rabbit;

const BINARY: &str = env!("CARGO_BIN_EXE_stagepost");
const PERF_TEST: &str = "2.22.1";
const SINK: &str = "127.0.0.1:19095";
const LISTEN: &str = "127.0.0.1:18080";
const ADMIN: &str = "127.0.0.1:19901";
const BODY: usize = 1024;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn main() {
    let (rounds, seconds) = (setting("ROUNDS", 3), setting("SECONDS", 5));
    let version = rabbitmq::version().unwrap_or_else(|| "4.0".to_owned());
    let classpath = perf_test();
    let work = tempfile::tempdir().unwrap();
    std::fs::write(work.path().join("post.lua"), lua()).unwrap();
    let sink = start(&["--log-level", "warn", "sink", "--listen", SINK, "--quiet"]);
    let rabbit = Rabbit::start(&version, "");
    let bench = Bench { work: work.path().to_owned(), classpath, rabbit, seconds };
    println!("RabbitMQ {version}, PerfTest {PERF_TEST}, body {BODY} bytes, {rounds} rounds of {seconds} s; medians");
    for kind in ["Quorum", "Classic"] {
        let mut table = Table::default();
        for round in 0..rounds {
            bench.round(kind, round, &mut table);
        }
        println!("\n{kind} queue\n{}", table.print());
    }
    drop(sink);
}

struct Bench {
    work: PathBuf,
    classpath: String,
    rabbit: Rabbit,
    seconds: u64,
}

impl Bench {
    fn round(&self, kind: &str, round: u64, table: &mut Table) {
        let direct = self.wrk(64, &format!("http://{SINK}/"));
        table.add("wrk to the target, 64 connections", direct, None, 0.0);
        for window in [64, 256] {
            let published = self.perf_test(kind, &["-x", "1", "-y", "0", "-c", &window.to_string(), "-p"]);
            table.add(&format!("PerfTest, confirmed publishes, window {window}"), published, None, 0.0);
            let queue = format!("{kind}-{round}-{window}");
            let run = self.run(kind, &queue, true, "Strict", 1, false);
            let before = cpu(run.id());
            let answered = self.wrk(window, &format!("http://{LISTEN}/bench"));
            let accepted = metric("stagepost_stored_total", "ok");
            let (after, per_second) = (cpu(run.id()), answered.min(accepted / seconds_f(self.seconds)));
            table.add(
                &format!("ingress, {window} connections"),
                per_second,
                Some(published),
                (after - before) / accepted,
            );
            table.note(&format!("ingress, {window} connections"), &format!("{} MiB", resident(run.id())));
            drop(run);
        }
        let consumed = self.perf_test(kind, &["-x", "0", "-y", "1", "-q", "64", "-A", "16"]);
        table.add("PerfTest, consumed with acks, prefetch 64", consumed, None, 0.0);
        for (ordering, concurrency) in [("Strict", 1), ("None", 16), ("None", 64)] {
            let queue = format!("{kind}-{round}-{ordering}-{concurrency}");
            let run = self.run(kind, &queue, true, ordering, concurrency, true);
            let _ = self.wrk(128, &format!("http://{LISTEN}/bench"));
            let stored = metric("stagepost_stored_total", "ok");
            let before = cpu(run.id());
            self.manifest(kind, &queue, false, ordering, concurrency, true);
            let delivered = || metric("stagepost_settled_total", "delivered");
            wait(|| delivered() > 0.0);
            let (begun, from) = (Instant::now(), delivered());
            wait(|| delivered() >= stored);
            let per_second = (stored - from) / begun.elapsed().as_secs_f64();
            let name = format!("forwarder, {ordering}, concurrency {concurrency}");
            table.add(&name, per_second, Some(direct), (cpu(run.id()) - before) / stored);
            table.note(
                &name,
                &format!("{:.2} of PerfTest's consuming, {} MiB", per_second / consumed, resident(run.id())),
            );
            drop(run);
        }
    }

    /// Messages a second, as `PerfTest` says at its end.
    fn perf_test(&self, kind: &str, arguments: &[&str]) -> f64 {
        let queue = format!("perf-{kind}");
        let consuming = arguments.contains(&"-q");
        let arguments: Vec<&str> = arguments.iter().copied().filter(|argument| *argument != "-p").collect();
        let mut command = Command::new("java");
        let uri = self.rabbit.uri();
        command.args([
            "-cp",
            &self.classpath,
            "com.rabbitmq.perf.PerfTest",
            "-h",
            &uri,
            "-u",
            &queue,
            "-f",
            "persistent",
        ]);
        command.args(["-ad", "false", "-s", &BODY.to_string()]);
        command.args(if kind == "Quorum" { &["-qq"][..] } else { &["-qa", "x-queue-type=classic"] });
        command.args(["-z", &self.seconds.to_string()]);
        let output = command.args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let wanted = if consuming { "receiving rate avg:" } else { "sending rate avg:" };
        let line = text.lines().rev().find(|line| line.contains(wanted));
        let rate = line.and_then(|line| line.split(wanted).nth(1)?.split_whitespace().next()?.parse().ok());
        rate.unwrap_or_else(|| panic!("PerfTest printed no rate:\n{text}{}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Answers a second.
    fn wrk(&self, connections: u32, url: &str) -> f64 {
        let script = self.work.join("post.lua");
        let output = Command::new("wrk")
            .args(["-t1", &format!("-c{connections}"), &format!("-d{}s", self.seconds), "-s"])
            .arg(script)
            .arg(url)
            .output()
            .expect("wrk is installed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let rate = text.lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok());
        rate.unwrap_or_else(|| panic!("wrk printed no rate: {text}"))
    }

    fn manifest(&self, kind: &str, queue: &str, suspend: bool, ordering: &str, concurrency: u32, competing: bool) {
        let consumers = if competing && ordering == "None" { "Competing" } else { "SingleActive" };
        let yaml = format!(
            "apiVersion: stagepost.dev/v1alpha1\nkind: MessageStore\nmetadata: {{name: bench}}\nspec:\n  \
             broker: {{secretRef: {{name: none}}}}\n  queue: {{name: {queue}, type: {kind}, consumers: {consumers}}}\n---\n\
             apiVersion: stagepost.dev/v1alpha1\nkind: IngressRoute\nmetadata: {{name: bench}}\n\
             spec: {{rules: [{{name: all, path: /bench, storeRef: {{name: bench}}}}]}}\n---\n\
             apiVersion: stagepost.dev/v1alpha1\nkind: ForwardingProcessor\nmetadata: {{name: bench}}\nspec:\n  \
             storeRef: {{name: bench}}\n  suspend: {suspend}\n  ordering: {ordering}\n  concurrency: {concurrency}\n  \
             target: {{url: \"http://{SINK}/\"}}\n  response: {{log: None}}\n"
        );
        let new = self.work.join("new");
        std::fs::write(&new, yaml).unwrap();
        std::fs::rename(new, self.work.join("manifest.yaml")).unwrap();
    }

    /// Stagepost on a queue of its own, ready to store.
    fn run(
        &self,
        kind: &str,
        queue: &str,
        suspend: bool,
        ordering: &str,
        concurrency: u32,
        competing: bool,
    ) -> Running {
        self.manifest(kind, queue, suspend, ordering, concurrency, competing);
        let (manifest, data, uri) = (self.work.join("manifest.yaml"), self.work.join("data"), self.rabbit.uri());
        let (manifest, data) = (manifest.to_str().unwrap(), data.to_str().unwrap());
        let flags = ["--listen", LISTEN, "--admin", ADMIN, "--data", data, "--amqp", &uri];
        let run = start(&[&["--log-level", "warn", "run", manifest][..], &flags].concat());
        wait(|| get("/metrics").is_some_and(|text| value(&text, "stagepost_broker_connected", "publish") > 0.5));
        // A queue that was just made takes nothing for two seconds.
        wait(|| get("/status").is_some_and(|text| !text.contains("NotConnected") && !text.contains("Connecting")));
        run
    }
}

/// A process that ends with this.
struct Running(Child);

impl Running {
    fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

fn start(arguments: &[&str]) -> Running {
    let child = Command::new(BINARY).args(arguments).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
    Running(child)
}

fn lua() -> String {
    let pad = "x".repeat(BODY - 20);
    format!(
        "wrk.method = 'POST'\nwrk.headers['Content-Type'] = 'application/json'\nwrk.body = '{{\"n\":1,\"pad\":\"{pad}\"}}'\n"
    )
}

fn get(path: &str) -> Option<String> {
    let output = Command::new("curl").args(["-sf", &format!("http://{ADMIN}{path}")]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn metric(name: &str, label: &str) -> f64 {
    get("/metrics").map_or(0.0, |text| value(&text, name, label))
}

fn value(metrics: &str, name: &str, label: &str) -> f64 {
    let label = format!("=\"{label}\"");
    let lines = metrics.lines().filter(|line| line.starts_with(name) && line.contains(&label));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn wait(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(180);
    while !condition() {
        assert!(Instant::now() < deadline, "this never came true");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Microseconds of a process so far.
fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    // USER_HZ is 100 wherever Linux runs.
    ticks * 10_000.0
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[allow(clippy::cast_precision_loss, reason = "seconds of a measurement")]
fn seconds_f(seconds: u64) -> f64 {
    seconds as f64
}

/// Lines in the order in which they came first.
#[derive(Default)]
struct Table(Vec<Line>);

struct Line {
    name: String,
    rates: Vec<f64>,
    ratios: Vec<f64>,
    cpu: Vec<f64>,
    note: String,
}

impl Table {
    fn line(&mut self, name: &str) -> &mut Line {
        let at = self.0.iter().position(|line| line.name == name).unwrap_or_else(|| {
            let (rates, ratios, cpu) = (Vec::new(), Vec::new(), Vec::new());
            self.0.push(Line { name: name.to_owned(), rates, ratios, cpu, note: String::new() });
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    fn add(&mut self, name: &str, rate: f64, limit: Option<f64>, cpu: f64) {
        let line = self.line(name);
        line.rates.push(rate);
        line.ratios.extend(limit.map(|limit| rate / limit));
        if limit.is_some() {
            line.cpu.push(cpu);
        }
    }

    fn note(&mut self, name: &str, note: &str) {
        note.clone_into(&mut self.line(name).note);
    }

    fn print(mut self) -> String {
        let mut text = format!("{:<48} {:>10} {:>7} {:>8}  {}\n", "", "messages/s", "ratio", "CPU µs", "last round");
        for line in &mut self.0 {
            let shown = |values: &mut Vec<f64>, digits: usize| match values.len() {
                0 => "-".to_owned(),
                count => {
                    values.sort_by(f64::total_cmp);
                    format!("{:.digits$}", values[count / 2])
                }
            };
            let (rate, ratio, cpu) = (shown(&mut line.rates, 0), shown(&mut line.ratios, 2), shown(&mut line.cpu, 1));
            let _ = writeln!(text, "{:<48} {rate:>10} {ratio:>7} {cpu:>8}  {}", line.name, line.note);
        }
        text + "ratio: the ingress to PerfTest with the same window, the forwarder to wrk straight to the target\n"
    }
}

/// The class path of RabbitMQ's `PerfTest`, fetched by Maven once.
fn perf_test() -> String {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let caches = || variable("XDG_CACHE_HOME").unwrap_or_else(|| variable("HOME").unwrap().join(".cache"));
    let cache = variable("STAGEPOST_CACHE").unwrap_or_else(|| caches().join("stagepost"));
    let folder = cache.join(format!("perf-test-{PERF_TEST}"));
    if !folder.join("lib").exists() {
        std::fs::create_dir_all(&folder).unwrap();
        let pom = format!(
            "<project><modelVersion>4.0.0</modelVersion><groupId>b</groupId><artifactId>b</artifactId>\
             <version>1</version><dependencies><dependency><groupId>com.rabbitmq</groupId>\
             <artifactId>perf-test</artifactId><version>{PERF_TEST}</version></dependency></dependencies></project>"
        );
        std::fs::write(folder.join("pom.xml"), pom).unwrap();
        let copied = Command::new("mvn")
            .args(["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=unfinished"])
            .current_dir(&folder)
            .status()
            .expect("Maven is installed");
        assert!(copied.success(), "PerfTest could not be fetched");
        std::fs::rename(folder.join("unfinished"), folder.join("lib")).unwrap();
    }
    format!("{}/*", folder.join("lib").display())
}
