//! B9: ten times as many callers as are served at once: the others are told so at once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::support::http::Connection;
use crate::support::{Recorder, Reply, Setup, alone, manifest, millis, seconds};

/// What the callers of one round saw.
#[derive(Default)]
struct Seen {
    stored: usize,
    refused: Vec<Duration>,
    other: Vec<u16>,
}

impl Seen {
    fn add(&mut self, more: Self) {
        self.stored += more.stored;
        self.refused.extend(more.refused);
        self.other.extend(more.other);
    }
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
                    std::thread::sleep(millis(50));
                }
                other => seen.other.push(other),
            }
            if answer.closes() {
                connection = Connection::open(to).unwrap();
            }
        }
        seen
    };
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..callers).map(|_| scope.spawn(call)).collect();
        for call in calls {
            seen.add(call.join().unwrap());
        }
    });
    seen
}

#[test]
fn b9_ten_times_the_callers_get_as_much_through_and_the_rest_is_refused_at_once() {
    let _machine = alone();
    let rules = "rules:\n- name: post\n  path: /in\n  storeRef: {name: box}\nlimits: {maxInFlight: 8}";
    let yaml = [manifest::store("box", ""), manifest::object("IngressRoute", "in", rules)];
    let run = Setup::manifests(yaml.concat()).start();
    let refusing = Recorder::answering(|_| Reply::full(503, &[("Retry-After", "1")], b""));
    // In turns, so that what else goes on on the machine meets both. The callers share the processors with the server:
    // as many are there at the peak, but go to something that only refuses.
    let (mut peak, mut flood) = (Seen::default(), Seen::default());
    round(run.listen(), 8, millis(500));
    for _ in 0..8 {
        std::thread::scope(|scope| {
            scope.spawn(|| round(refusing.address(), 72, millis(500)));
            peak.add(round(run.listen(), 8, millis(500)));
        });
        flood.add(round(run.listen(), 80, millis(500)));
    }
    flood.refused.sort();
    // What the callers and the machine take for themselves: the same flood, all of it refused there.
    let mut alone = round(refusing.address(), 80, seconds(2)).refused;
    alone.sort();
    let own = alone[alone.len() / 2];
    let at = |share: usize| flood.refused.get(flood.refused.len() * share / 100).copied().unwrap_or_default();
    println!(
        "alone {}, flooded {} stored in 4 s; {} refused, half of them within {:?}, 90 % {:?}, 99 % {:?} (nothing but refusing: half within {own:?})",
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
