//! What only Stagepost is measured with: cost against size, and requests that no queue takes among others.

use std::net::TcpStream;

use crate::amqp::{Kind, Queue};
use crate::body::Numbers;
use crate::contenders::{Contender, Mode, Shape, Store, Task, Who};
use crate::load::Load;
use crate::measure::{Bench, send};
use crate::process::{Running, await_go, resident, role, say_ready};
use crate::settings::LISTEN;
use crate::table::{Key, Sample};

const STORE: Store = Store::Broker(Kind::Quorum);

/// The role of a process that opens connections and says nothing on them.
pub fn hold(address: &str, count: usize) {
    let connections: Vec<TcpStream> = (0..count).map(|_| TcpStream::connect(address).unwrap()).collect();
    say_ready();
    await_go();
    drop(connections);
}

impl Bench<'_> {
    /// Requests over one connection to the broker, every second one to a key that leads nowhere. Its caller must not
    /// be told that it was stored, and nobody else's caller that it was not.
    pub fn mixed(&mut self) {
        let (queue, contender) = self.shaped(Shape { routed: true, ..Shape::default() });
        let pids = contender.ids();
        let span = self.begin(&pids);
        let answered = send(&Load { mixed: true, ..self.load(64, 1024) });
        let used = self.end(&span, &pids, answered.sent, true);
        drop(contender);
        let found = queue.drain();
        queue.delete();
        let accepted = Numbers::from_text(&answered.numbers);
        assert_eq!(accepted.without(&accepted.even()), 0, "an unroutable message was answered 2xx");
        assert_eq!(found.numbers.without(&accepted), 0, "a stored message was answered 5xx");
        assert_eq!(accepted.count(), answered.sent.div_ceil(2), "every routable message was stored");
        let sample = Sample {
            per_second: answered.sent as f64 / (self.settings.seconds as f64 + 0.5),
            messages: answered.sent,
            lost: accepted.without(&found.numbers),
            twice: found.twice,
            ..used
        };
        self.table.add(key("ingress, 64 connections, every second one unroutable"), None, sample);
    }

    /// One line for each size.
    pub fn growth(&mut self) {
        for more_rules in [0, 99, 999] {
            let (queue, contender) = self.shaped(Shape { more_rules, ..Shape::default() });
            let name = |rules: usize| format!("ingress, 64 connections, the last of {rules} rules");
            self.loaded(&name(more_rules + 1), &name(1), &queue, contender);
        }
        for idle in [0, 1_000, 9_900] {
            let (queue, contender) = self.shaped(Shape::default());
            let held = Running::start_ready(&mut role(&["hold", LISTEN, &idle.to_string()]));
            self.rest(&format!("at rest, {idle} idle connections"), &contender);
            let name = |idle: usize| format!("ingress, 64 connections beside {idle} idle");
            self.loaded(&name(idle), &name(0), &queue, contender);
            drop(held);
        }
        for more_stores in [0, 9, 99] {
            let (queue, contender) = self.shaped(Shape { more_stores, ..Shape::default() });
            self.rest(&format!("at rest, {more_stores} stores with a processor, one without"), &contender);
            drop(contender);
            queue.delete();
            for number in 0..more_stores {
                Queue { name: format!("{}-{number}", queue.name), ..queue.clone() }.delete();
            }
        }
    }

    fn shaped(&mut self, shape: Shape) -> (Queue, Contender) {
        let queue = self.queue();
        let forward = None::<(Mode, bool)>;
        let task = Task { who: Who::Stagepost, store: STORE, queue: queue.clone(), ingress: true, forward, shape };
        (queue, task.start(&self.ground))
    }

    /// Memory of a process that has nothing to do.
    fn rest(&mut self, what: &str, contender: &Contender) {
        let peak = Some(contender.ids().into_iter().map(resident).sum());
        self.table.add(key(what), None, Sample { round: self.round, peak, ..Sample::default() });
    }

    fn loaded(&mut self, what: &str, to: &str, queue: &Queue, contender: Contender) {
        let pids = contender.ids();
        let span = self.begin(&pids);
        let answered = send(&self.load(64, 1024));
        let used = self.end(&span, &pids, answered.accepted, true);
        drop(contender);
        let found = queue.drain();
        queue.delete();
        let sample = Sample {
            per_second: answered.per_second,
            messages: answered.accepted,
            lost: Numbers::from_text(&answered.numbers).without(&found.numbers),
            twice: found.twice,
            ..used
        };
        self.table.add(key(what), (what != to).then(|| key(to)), sample);
    }
}

fn key(what: &str) -> Key {
    Key { what: what.to_owned(), who: Who::Stagepost.name().to_owned(), store: STORE.name().to_owned(), size: 1024 }
}
