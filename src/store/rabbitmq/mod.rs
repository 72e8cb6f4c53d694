//! The store on RabbitMQ, by AMQP 0-9-1 over lapin.
//!
//! Two connections a broker: one publishes, one consumes, declares and looks. An alarm blocks the first and never the
//! second, so what is delivered is acknowledged while nothing new is accepted. Who may do what with a channel, and
//! what each answer of the broker means, is written in the modules: [`session`] keeps a connection up, `keeper`
//! a store's topology (by `topology`), `publish` owns the confirms, `consume` the deliveries, `handle` is what a store's
//! users hold. `wire` is the format, `intake` what of a broker's bytes reaches the client library, over `transport`.

mod address;
mod consume;
mod deactivation;
mod handle;
mod intake;
mod keeper;
mod publish;
mod session;
mod suspects;
mod tls;
mod topology;
mod transport;
mod window;
mod wire;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub use address::{Address, AddressError, Overrides, Tls};
pub use session::AddressSource;

use self::session::Session;
use crate::core::topology::{Queue, QueueKind, Topology};
use crate::store::MessageStore;

/// A quorum queue that was just made is not yet safe on a single node: killed within a second, the broker comes back
/// with the queue empty, confirmed messages included. Measured: lost at 0.2 s, kept at 1.5 s.
const QUORUM_SETTLES: Duration = Duration::from_secs(2);

/// Which store asked for which binding keys.
type BindingsByStore = HashMap<String, BTreeSet<String>>;

/// One broker and virtual host, with its two connections. Cheap to clone.
#[derive(Clone)]
pub struct Broker(Arc<Shared>);

struct Shared {
    publishing: Session,
    consuming: Session,
    /// When this process first found or made each quorum queue; `None` for one that is known to be gone.
    settled: Mutex<HashMap<String, Option<Instant>>>,
    /// Which store of this process asked for which bindings, by queue and exchange.
    bound: Mutex<HashMap<(String, String), BindingsByStore>>,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rabbitmq::Broker")
    }
}

impl Broker {
    /// Starts to connect, and keeps connected until the last clone and the last store are dropped. `name` is shown by
    /// the broker's management.
    pub fn start(name: &str, address: AddressSource) -> Self {
        Self(Arc::new(Shared {
            publishing: Session::start(format!("stagepost {name} publish"), address.clone()),
            consuming: Session::start(format!("stagepost {name} consume"), address),
            settled: Mutex::default(),
            bound: Mutex::default(),
        }))
    }

    /// The Secret has changed: connect anew where there is no connection, without waiting.
    pub fn refresh(&self) {
        self.0.publishing.refresh();
        self.0.consuming.refresh();
    }

    /// A store on this broker. Its topology is declared at every connect. `store` names it among those of this
    /// process: bindings that it asked for before, and no other store asks for, are removed.
    pub fn store(&self, store: &str, topology: &Topology, confirm_timeout: Duration) -> Arc<dyn MessageStore> {
        Arc::new(handle::RabbitStore::start(self.clone(), store, topology, confirm_timeout))
    }

    /// How long until a quorum queue may be published to.
    fn settling(&self, queue: &str) -> Option<Duration> {
        let since = *self.0.settled.lock().unwrap_or_else(PoisonError::into_inner).get(queue)?;
        let elapsed = since.map_or(Duration::ZERO, |since| since.elapsed());
        QUORUM_SETTLES.checked_sub(elapsed).filter(|left| !left.is_zero())
    }

    fn found(&self, queue: &str) {
        let mut settled = self.0.settled.lock().unwrap_or_else(PoisonError::into_inner);
        settled.entry(queue.to_owned()).or_default().get_or_insert_with(Instant::now);
    }

    /// Remembers what `store` binds now, and returns what nobody asks for any more.
    fn rebind(&self, store: &str, topology: &Topology) -> Vec<String> {
        let (Some(queue), Some(exchange)) = (&topology.queue, &topology.exchange) else { return Vec::new() };
        let mut bound = self.0.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let stores = bound.entry((queue.name.clone(), exchange.name.clone())).or_default();
        let wanted: BTreeSet<String> = topology.bindings.iter().cloned().collect();
        let before = stores.insert(store.to_owned(), wanted).unwrap_or_default();
        before.into_iter().filter(|key| !stores.values().any(|keys| keys.contains(key))).collect()
    }

    /// A queue is gone. A quorum queue takes no publishes until it has been made again and has settled.
    fn lost(&self, queue: &Queue) {
        if queue.kind == QueueKind::Quorum {
            self.0.settled.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.name.clone(), None);
        }
    }
}
