//! B8, N6: many connections, large bodies: others are served, and memory stays bounded.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::support::http::{self, Connection};
use crate::support::{Recorder, Reply, Setup, alone, beside_others, eventually, manifest, millis, seconds};

/// As many connections as the default limit allows, if this process may open so many files.
fn connections_to_try() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    let soft: usize = line.split_whitespace().nth(3).and_then(|limit| limit.parse().ok()).unwrap_or(1024);
    9_900.min(soft.saturating_sub(200))
}

#[test]
fn b8_ten_thousand_open_connections_are_served_and_the_process_stays_small() {
    let _machine = alone();
    let target = Recorder::start();
    let run = Setup::manifests(manifest::line(&target.url(), "ordering: None\nconcurrency: 8")).start();
    let before = run.memory("VmRSS");
    let wanted = connections_to_try();
    let begun = Instant::now();
    let mut open: Vec<Connection> = Vec::with_capacity(wanted);
    for number in 0..wanted {
        match Connection::open(run.listen()) {
            Ok(connection) => open.push(connection),
            Err(error) => panic!("connection {number} of {wanted}: {error}"),
        }
    }
    println!("{} connections in {:?}", open.len(), begun.elapsed());
    // Some of them talk, first and last ones, and the admin port answers.
    for index in (0..open.len()).step_by(101) {
        let answer = open[index].request("POST", "/in", &[], index.to_string().as_bytes()).unwrap();
        assert_eq!(answer.status, 202, "connection {index}");
    }
    assert_eq!(run.get("/livez").status, 200);
    let grown = run.memory("VmRSS").saturating_sub(before) / open.len().max(1) as u64;
    println!("{grown} KiB for each connection, {} KiB at most", run.memory("VmHWM"));
    assert!(grown < 40, "{grown} KiB for each connection");
    drop(open);
    let asked = (0..wanted).step_by(101).count();
    run.await_status("ForwardingProcessor", "out", seconds(20), |status| status["delivered"] == asked);
    assert_eq!(run.post("/in", &[], "afterwards").status, 202);
}

#[test]
fn b8_connections_beyond_the_limit_do_not_keep_the_others_from_being_served() {
    let _machine = beside_others();
    let target = Recorder::start();
    let rules =
        "rules:\n- name: post\n  path: /in\n  storeRef: {name: box}\nlimits: {maxConnections: 50, readTimeout: 2s}";
    let yaml = [
        manifest::store("box", ""),
        manifest::object("IngressRoute", "in", rules),
        manifest::processor("out", "box", &target.url(), ""),
    ];
    let run = Setup::manifests(yaml.concat()).start();
    let mut first = Connection::open(run.listen()).unwrap();
    assert_eq!(first.request("POST", "/in", &[], b"one").unwrap().status, 202);
    let idle: Vec<Connection> = (0..200).filter_map(|_| Connection::open(run.listen()).ok()).collect();
    assert_eq!(first.request("POST", "/in", &[], b"two").unwrap().status, 202, "an open connection goes on");
    assert_eq!(run.get("/livez").status, 200);
    // The idle ones are closed by their time-out, and give their places back.
    eventually("a new connection is served", seconds(15), || {
        let answer = http::once(run.listen(), "POST", "/in", &[], b"three").ok()?;
        (answer.status == 202).then_some(())
    });
    drop(idle);
}

#[test]
fn memory_stays_bounded_while_large_bodies_come_faster_than_they_go() {
    let _machine = alone();
    // The target is slow and the store bounded, so the rest must be refused, not kept.
    let target = Recorder::answering(|_| Reply::status(200).after(millis(200)));
    let rules = "rules:\n- name: post\n  path: /in\n  storeRef: {name: box}\nlimits: {maxBodySize: 1Mi, maxInFlightBytes: 16Mi}";
    let yaml = [
        manifest::store("box", "queue: {maxLengthBytes: 64Mi}"),
        manifest::object("IngressRoute", "in", rules),
        manifest::processor("out", "box", &target.url(), "ordering: None\nconcurrency: 4"),
    ];
    let run = Setup::manifests(yaml.concat()).start();
    let body = vec![b'x'; 1024 * 1024];
    // A debug build takes a quarter of a second for each.
    let each = if cfg!(debug_assertions) { 12 } else { 64 };
    let (stored, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                for _ in 0..each {
                    match http::once(run.listen(), "POST", "/in", &[], &body) {
                        Ok(answer) if answer.status == 202 => stored.fetch_add(1, Ordering::Relaxed),
                        // A refusal closes the connection, maybe before the body was read.
                        Ok(_) | Err(_) => refused.fetch_add(1, Ordering::Relaxed),
                    };
                }
            });
        }
    });
    let (stored, refused, peak) = (stored.into_inner(), refused.into_inner(), run.memory("VmHWM"));
    println!("{stored} stored, {refused} refused, at most {} MiB resident", peak / 1024);
    assert!(stored > 16 && refused > 0);
    // In flight 16 MiB, held by the processor at most 64 MiB, what the store caches, and the program itself.
    assert!(peak < 192 * 1024, "{} MiB resident", peak / 1024);
    assert_eq!(run.get("/readyz").status, 200);
}
