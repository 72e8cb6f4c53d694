//! B9: ten times as many callers as are served at once: the others are told so at once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::support::http::Connection;
use crate::support::{Recorder, Reply, Setup, manifest, millis, seconds};

/// What the callers of one round saw.
#[derive(Default)]
struct Seen {
    stored: usize,
    refused: Vec<Duration>,
    other: Vec<u16>,
}

/// `callers` send one request after the other for a while; one that is refused waits before it tries again.
fn round(to: SocketAddr, callers: usize, through: Duration) -> Seen {
    let mut seen = Seen::default();
    let end = Instant::now() + through;
    let call = || {
        let mut seen = Seen::default();
        let mut connection = Connection::open(to).unwrap();
        while Instant::now() < end {
            let begun = Instant::now();
            let answer = connection.request("POST", "/in", &[], b"0123456789").unwrap();
            match answer.status {
                202 => seen.stored += 1,
                503 => {
                    seen.refused.push(begun.elapsed());
                    assert!(answer.header("retry-after").is_some(), "a refusal says when to come again");
                    std::thread::sleep(millis(20));
                }
                other => seen.other.push(other),
            }
            if answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
                connection = Connection::open(to).unwrap();
            }
        }
        seen
    };
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..callers).map(|_| scope.spawn(call)).collect();
        for call in calls {
            let one = call.join().unwrap();
            seen.stored += one.stored;
            seen.refused.extend(one.refused);
            seen.other.extend(one.other);
        }
    });
    seen
}

#[test]
fn b9_ten_times_the_callers_get_as_much_through_and_the_rest_is_refused_at_once() {
    let rules = "rules:\n- name: post\n  path: /in\n  storeRef: {name: box}\nlimits: {maxInFlight: 8}";
    let yaml = [manifest::store("box", ""), manifest::object("IngressRoute", "in", rules)];
    let run = Setup::manifests(yaml.concat()).start();
    round(run.listen(), 8, millis(500));
    let peak = round(run.listen(), 8, seconds(3));
    let mut flood = round(run.listen(), 80, seconds(3));
    flood.refused.sort();
    // What the callers and the machine take for themselves: the same flood against something that only refuses.
    let refusing = Recorder::answering(|_| Reply::full(503, &[("Retry-After", "1")], b""));
    let mut alone = round(refusing.address(), 80, seconds(2)).refused;
    alone.sort();
    let own = alone[alone.len() / 2];
    let at = |share: usize| flood.refused.get(flood.refused.len() * share / 100).copied().unwrap_or_default();
    println!(
        "alone {}, flooded {} stored in 3 s; {} refused, half of them within {:?}, 90 % {:?}, 99 % {:?} (nothing but refusing: half within {own:?})",
        peak.stored,
        flood.stored,
        flood.refused.len(),
        at(50),
        at(90),
        at(99)
    );
    assert!(flood.other.is_empty() && peak.other.is_empty(), "{:?}", flood.other);
    assert!(flood.refused.len() > 100, "no overload");
    assert!(flood.stored * 10 >= peak.stored * 9, "{} of {}", flood.stored, peak.stored);
    assert!(at(50) < millis(10) + own, "half of the refusals took longer than {:?}", at(50));
    assert_eq!(run.metric("stagepost_ingress_in_flight", &[]), 0);
}
