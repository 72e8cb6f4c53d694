//! What each measurement does, and what it must find at its end.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::amqp::{Kind, Queue};
use crate::backend::Seen;
use crate::body::Numbers;
use crate::contenders::{Ground, Mode, Shape, Store, Task, Who};
use crate::load::{Answered, Load};
use crate::process::{self, cpu, get, role, wait};
use crate::settings::{BACKEND, LISTEN, Settings};
use crate::table::{Key, Sample, Table};

/// Everything that a measurement needs.
pub struct Bench<'a> {
    pub settings: &'a Settings,
    pub ground: Ground,
    /// Of the Erlang machine.
    pub broker: u32,
    pub table: Table,
    pub round: u64,
    pub number: u32,
}

/// The CPU of a time and of some processes in it.
pub struct Span {
    start: Instant,
    own: f64,
    broker: f64,
    ours: f64,
    busy: f64,
}

impl Bench<'_> {
    /// A queue that nobody has used.
    pub fn queue(&mut self) -> Queue {
        self.number += 1;
        Queue { broker: self.ground.broker.clone(), name: format!("bench-{}", self.number) }
    }

    pub fn begin(&self, own: &[u32]) -> Span {
        Span {
            start: Instant::now(),
            own: own.iter().map(|pid| cpu(*pid)).sum(),
            broker: cpu(self.broker),
            ours: ours(),
            busy: process::busy(),
        }
    }

    /// A sample with the CPU that was used since then, for so many messages.
    pub fn end(&self, span: &Span, own: &[u32], messages: u64, has_broker: bool) -> Sample {
        let each = |now: f64, then: f64| Some((now - then) / messages as f64);
        let elsewhere = (process::busy() - span.busy) - (ours() - span.ours);
        Sample {
            round: self.round,
            cpu: each(own.iter().map(|pid| cpu(*pid)).sum(), span.own).filter(|_| !own.is_empty()),
            broker: each(cpu(self.broker), span.broker).filter(|_| has_broker),
            elsewhere: (elsewhere / span.start.elapsed().as_micros() as f64).max(0.0),
            peak: own.iter().map(|pid| process::peak(*pid)).reduce(|one, other| one + other),
            ..Sample::default()
        }
    }

    /// Runs a measurement with CPU of nobody in particular.
    pub fn limit(&mut self, what: &str, who: &str, store: Option<Kind>, work: impl FnOnce() -> (Sample, u64)) {
        let span = self.begin(&[]);
        let (found, messages) = work();
        let used = self.end(&span, &[], messages, store.is_some());
        let store = store.map_or("", |kind| Store::Broker(kind).name()).to_owned();
        let key = Key { what: what.to_owned(), who: who.to_owned(), store, size: 1024 };
        let sample = Sample { per_second: found.per_second, latency: found.latency, ..used };
        self.table.add(key, None, sample);
    }

    /// Requests into a queue: as many as it takes, then half as many, for the latency.
    pub fn ingress(&mut self, who: Who, store: Store, connections: usize, size: usize) {
        let queue = self.queue();
        let forward = (store == Store::Embedded).then_some((Mode::None(64), false));
        let task = Task { who, store, queue: queue.clone(), ingress: true, forward, shape: Shape::default() };
        let mut contender = task.start(&self.ground);
        let pids = contender.ids();
        let load = self.load(connections, size);
        let span = self.begin(&pids);
        let answered = send(&load);
        let used = self.end(&span, &pids, answered.accepted, store != Store::Embedded);
        // Of larger bodies the rate says enough.
        let half = (size == 1024).then(|| {
            let rate = Some(answered.per_second / 2.0);
            send(&Load { rate, first: answered.sent, ..load })
        });
        let latency = half.as_ref().map(|half| half.latency);
        let half = half.unwrap_or_default();
        let accepted = answered.accepted + half.accepted;
        let mut numbers = Numbers::from_text(&answered.numbers);
        numbers.merge(&Numbers::from_text(&half.numbers));
        let (there, twice) = if store == Store::Embedded {
            let _ = seen();
            contender.go();
            wait("all are delivered", || (arrived() >= accepted).then_some(()));
            let seen = seen();
            (Numbers::from_text(&seen.numbers), seen.hits - seen.distinct)
        } else {
            drop(contender);
            let found = queue.drain();
            queue.delete();
            (found.numbers, found.twice)
        };
        let lost = numbers.without(&there);
        let sample = Sample { per_second: answered.per_second, latency, messages: accepted, lost, twice, ..used };
        if answered.others + answered.broken + half.others + half.broken > 0 {
            let shown = |one: &Answered| format!("{} refused, {} broken", one.others, one.broken);
            eprintln!("{}: {}; at half load {}", who.name(), shown(&answered), shown(&half));
        }
        let what = format!("ingress, {connections} connections");
        let key = |who: Who, store: Store| Key {
            what: what.clone(),
            who: who.name().to_owned(),
            store: store.name().to_owned(),
            size,
        };
        let to = match (who, store) {
            (Who::Spike, _) => None,
            (_, Store::Embedded) => Some(key(Who::Stagepost, Store::Broker(Kind::Classic))),
            _ => Some(key(Who::Spike, store)),
        };
        self.table.add(key(who, store), to, sample);
    }

    /// Messages out of a queue that holds them all at the start.
    pub fn forward(&mut self, who: Who, store: Store, mode: Mode, size: usize) {
        let queue = self.queue();
        let forward = Some((mode, false));
        let ingress = store == Store::Embedded;
        let mut contender =
            Task { who, store, queue: queue.clone(), ingress, forward, shape: Shape::default() }.start(&self.ground);
        let count = if ingress {
            send(&self.load(64, size)).accepted
        } else {
            let count = self.settings.filled(size, mode == Mode::Strict);
            queue.fill(count, size);
            count
        };
        let _ = seen();
        let pids = contender.ids();
        let span = self.begin(&pids);
        contender.go();
        wait("all are delivered", || (arrived() >= count).then_some(()));
        let used = self.end(&span, &pids, count, !ingress);
        // Time for the last acknowledgements, and for what comes once more.
        std::thread::sleep(Duration::from_millis(300));
        let seen = seen();
        drop(contender);
        if !ingress {
            // A broker that is behind still counts what it was told of.
            let what = format!("{}: all that was delivered is acknowledged", who.name());
            wait(&what, || (queue.ready() == 0).then_some(()));
            queue.delete();
        }
        // Many callers have filled the embedded store, in an order of their own.
        assert!(ingress || mode != Mode::Strict || seen.out_of_order == 0, "{}: in order", who.name());
        let sample = Sample {
            per_second: (count - 1) as f64 / seen.span,
            messages: count,
            lost: count.saturating_sub(seen.distinct),
            twice: seen.hits - seen.distinct,
            ..used
        };
        let key = |who: Who, store: Store, mode: Mode| Key {
            what: format!("forward, {}", mode.name()),
            who: who.name().to_owned(),
            store: store.name().to_owned(),
            size,
        };
        let to = match (who, store, mode) {
            (Who::Spike, ..) => None,
            (_, Store::Embedded, _) => Some(key(who, Store::Broker(Kind::Classic), mode)),
            (Who::Stagepost, _, Mode::PerKey(_) | Mode::Poll(_)) => Some(key(who, store, Mode::None(64))),
            _ => Some(key(Who::Spike, store, mode)),
        };
        self.table.add(key(who, store, mode), to, sample);
    }

    /// Requests at a fixed rate, timed from when they were due to when they reach the target.
    pub fn end_to_end(&mut self, who: Who, store: Store) {
        let queue = self.queue();
        let forward = Some((Mode::None(64), true));
        let contender = Task { who, store, queue: queue.clone(), ingress: true, forward, shape: Shape::default() }
            .start(&self.ground);
        let rate = Some(self.settings.rate);
        let load = Load { rate, warmup: 0.0, ..self.load(64, 1024) };
        let before = send(&Load { seconds: 1.5, first: 10_000_000, ..load.clone() });
        wait("the warm-up is delivered", || (arrived() >= before.accepted).then_some(()));
        let _ = seen();
        let pids = contender.ids();
        let span = self.begin(&pids);
        let answered = send(&load);
        wait("all are delivered", || (arrived() >= answered.accepted).then_some(()));
        let used = self.end(&span, &pids, answered.accepted, store != Store::Embedded);
        std::thread::sleep(Duration::from_millis(300));
        let seen = seen();
        drop(contender);
        if store != Store::Embedded {
            queue.delete();
        }
        let what = format!("end to end at {}/s", self.settings.rate);
        let key = |who: Who| Key {
            what: what.clone(),
            who: who.name().to_owned(),
            store: store.name().to_owned(),
            size: 1024,
        };
        let lost = Numbers::from_text(&answered.numbers).without(&Numbers::from_text(&seen.numbers));
        let sample = Sample {
            per_second: answered.per_second,
            latency: Some(seen.latency),
            messages: answered.accepted,
            lost,
            twice: seen.hits - seen.distinct,
            ..used
        };
        self.table.add(key(who), (who != Who::Spike).then(|| key(Who::Spike)), sample);
    }

    pub fn load(&self, connections: usize, size: usize) -> Load {
        let seconds = self.settings.seconds as f64;
        Load { address: LISTEN.to_owned(), connections, size, rate: None, seconds, warmup: 0.5, first: 0, mixed: false }
    }
}

/// The CPU of this process, of all it has started, and of all of them that have ended.
fn ours() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ended: f64 = fields[13].parse::<f64>().unwrap() + fields[14].parse::<f64>().unwrap();
    cpu(std::process::id()) + ended * 10_000.0
}

/// In a process of its own, so that its CPU is nobody else's.
pub fn send(load: &Load) -> Answered {
    let load = serde_json::to_string(load).unwrap();
    let output = role(&["load", &load]).stderr(Stdio::inherit()).output().unwrap();
    serde_json::from_slice(&output.stdout).expect("the load generator says what came of it")
}

/// How many have reached the target, once or more.
fn arrived() -> u64 {
    get(BACKEND, "/distinct").and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The same in full; it is forgotten there.
fn seen() -> Seen {
    serde_json::from_str(&get(BACKEND, "/seen").expect("the backend answers")).unwrap()
}

/// `wrk` straight to the target.
pub fn wrk(settings: &Settings, lua: &std::path::Path) -> (Sample, u64) {
    let output = Command::new("wrk")
        .args(["-t1", "-c64", &format!("-d{}s", settings.seconds), "-s"])
        .arg(lua)
        .arg(format!("http://{BACKEND}/"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rate = text.lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok());
    let per_second: f64 = rate.unwrap_or_else(|| panic!("wrk printed no rate: {text}"));
    (Sample { per_second, ..Sample::default() }, (per_second * settings.seconds as f64) as u64)
}
