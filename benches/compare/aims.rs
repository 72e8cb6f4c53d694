//! What is aimed at, and whether it was reached: a second table, from the first.

use std::fmt::Write as _;

use crate::contenders::{Mode, Who};
use crate::table::{Key, Sample, Table, number};

type Value = fn(&Sample) -> Option<f64>;

const RATE: Value = |sample| Some(sample.per_second);
const CPU: Value = |sample| sample.cpu;
const P50: Value = |sample| sample.latency.map(|times| times.p50);
const P99: Value = |sample| sample.latency.map(|times| times.p99);
const MEMORY: Value = |sample| sample.peak;

enum Bound {
    AtLeast(f64),
    AtMost(f64),
}
use Bound::{AtLeast, AtMost};

/// Of the medians of the rounds. Lines that were not measured are not judged.
pub fn print(table: &Table, rate: f64) -> String {
    let (stagepost, spike, node) = (Who::Stagepost, Who::Spike, Who::Node);
    let ingress = |connections: usize| format!("ingress, {connections} connections");
    let forward = |mode: Mode| format!("forward, {}", mode.name());
    let (many, strict, per_key) = (forward(Mode::None(64)), forward(Mode::Strict), forward(Mode::PerKey(64)));
    let end_to_end = format!("end to end at {rate}/s");
    let of = |what: &str, to: Who, value: Value| table.ratio(&key(what, stagepost), &key(what, to), value);
    let own = |what: &str, value: Value| table.median(&key(what, stagepost), value);
    let embedded = || {
        let on = |store: &str| Key { store: store.to_owned(), ..key(&ingress(64), stagepost) };
        table.ratio(&on("embedded"), &on("classic"), RATE)
    };
    let aims = [
        ("ingress at 64 connections, of the spike's rate", AtLeast(0.9), of(&ingress(64), spike, RATE)),
        ("ingress at 256 connections, of the spike's rate", AtLeast(0.8), of(&ingress(256), spike, RATE)),
        ("ingress at 64 connections, CPU µs a message", AtMost(20.0), own(&ingress(64), CPU)),
        ("ingress at 64 connections and half its rate, of the spike's p99", AtMost(1.5), of(&ingress(64), spike, P99)),
        ("forwarder with concurrency 64, of the spike's rate", AtLeast(0.8), of(&many, spike, RATE)),
        ("forwarder with concurrency 64, CPU µs a message", AtMost(20.0), own(&many, CPU)),
        ("forwarder with `Strict`, of the spike's rate", AtLeast(0.85), of(&strict, spike, RATE)),
        (
            "forwarder with `PerKey`, of the rate with concurrency 64",
            AtLeast(0.8),
            table.ratio(&key(&per_key, stagepost), &key(&many, stagepost), RATE),
        ),
        ("end to end, of the spike's p50", AtMost(1.3), of(&end_to_end, spike, P50)),
        ("end to end, of the spike's p99", AtMost(1.7), of(&end_to_end, spike, P99)),
        ("ingress at 64 connections, of the peer's rate", AtLeast(1.5), of(&ingress(64), node, RATE)),
        ("ingress at 64 connections, of the peer's CPU a message", AtMost(1.0 / 3.0), of(&ingress(64), node, CPU)),
        ("forwarder with concurrency 64, of the peer's rate", AtLeast(4.0), of(&many, node, RATE)),
        ("forwarder with concurrency 64, of the peer's CPU a message", AtMost(1.0 / 3.0), of(&many, node, CPU)),
        ("embedded store, ingress at 64 connections, of the rate on a classic queue", AtLeast(0.5), embedded()),
        ("MiB at rest", AtMost(30.0), own("at rest, 0 idle connections", MEMORY)),
        ("MiB with 512 connections, bodies of 1 KiB", AtMost(64.0), own(&ingress(512), MEMORY)),
    ];
    let mut text = "| aim | bound | median | |\n|---|---|---|---|\n".to_owned();
    for (what, bound, seen) in aims {
        let Some(seen) = seen else { continue };
        let (word, bound, reached) = match bound {
            AtLeast(bound) => ("at least", bound, seen >= bound),
            AtMost(bound) => ("at most", bound, seen <= bound),
        };
        let reached = if reached { "reached" } else { "**missed**" };
        let _ = writeln!(text, "| {what} | {word} {} | {} | {reached} |", number(bound, 2), number(seen, 2));
    }
    text
}

/// On a quorum queue, with bodies of 1 KiB.
fn key(what: &str, who: Who) -> Key {
    Key { what: what.to_owned(), who: who.name().to_owned(), store: "quorum".to_owned(), size: 1024 }
}
