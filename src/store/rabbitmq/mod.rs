//! The store on RabbitMQ, by AMQP 0-9-1.
//!
//! Two connections a broker: one publishes, one consumes, declares and looks. An alarm blocks the first and never the
//! second, so what is delivered is acknowledged while nothing new is accepted. Who may do what with a channel, and
//! what each answer of the broker means, is written in the modules: [`session`] keeps a connection up, `keeper`
//! a store's topology (by `topology`), `publish` owns the confirms, `consume` the deliveries (alone, with a `claim`),
//! `replies` the answers to callers, `handle` is what a store's users hold. `lasting` runs their tasks. `wire` is the
//! format, and `line` the socket, where what there is a lot of passes the client library by.

mod address;
mod bindings;
mod claim;
mod consume;
mod deactivation;
mod fault;
mod handle;
mod keeper;
mod lasting;
mod line;
mod publish;
mod removal;
mod replies;
mod session;
mod suspects;
mod tls;
mod topology;
mod window;
mod wire;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

pub use address::{Address, AddressError, Ca, Overrides, Tls, TlsOverrides};
pub use removal::Removed;
pub use session::AddressSource;

use self::bindings::Bindings;
use self::keeper::Keepers;
use self::session::Session;
use crate::core::topology::{QueueKind, Topology};
use crate::store::MessageStore;
use crate::store::mailbox::Mailbox;

/// A quorum queue that was just made is not yet safe on a single node: killed within a second, the broker comes back
/// with the queue empty, confirmed messages included. Measured: lost at 0.2 s, kept at 1.5 s.
const QUORUM_SETTLES: Duration = Duration::from_secs(2);

/// One broker and virtual host, with its two connections. Cheap to clone.
#[derive(Clone)]
pub struct Broker(Arc<Shared>);

struct Shared {
    publishing: Session,
    consuming: Session,
    /// When this process first found or made each quorum queue; `None` for one that is known to be gone.
    settled: Mutex<HashMap<String, Option<Instant>>>,
    bindings: Mutex<Bindings>,
    keepers: Keepers,
    /// Started by the first who wants it.
    mailbox: OnceLock<Arc<Mailbox>>,
}

/// A [`Broker`] for as long as somebody else uses it.
#[derive(Debug, Clone)]
pub struct WeakBroker(Weak<Shared>);

impl WeakBroker {
    /// The broker, if its connections are still kept up.
    pub fn upgrade(&self) -> Option<Broker> {
        self.0.upgrade().map(Broker)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rabbitmq::Shared")
    }
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
            bindings: Mutex::default(),
            keepers: Keepers::default(),
            mailbox: OnceLock::new(),
        }))
    }

    /// A handle that does not keep the connections up.
    pub fn downgrade(&self) -> WeakBroker {
        WeakBroker(Arc::downgrade(&self.0))
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

    /// A queue of this process that what is published through a store may go to, and that has not settled.
    fn settling_behind(&self, topology: &Topology) -> Option<String> {
        let own = topology.queue.as_ref().map(|queue| queue.name.clone());
        if let Some(own) = own.filter(|queue| self.settling(queue).is_some()) {
            return Some(own);
        }
        let others = topology.exchange.as_ref().map(|exchange| self.bindings().queues(&exchange.name));
        // A queue of another store that is not there is not bound: nothing is lost in it.
        let is_there = |queue: &String| {
            let settled = self.0.settled.lock().unwrap_or_else(PoisonError::into_inner);
            settled.get(queue).is_some_and(Option::is_some)
        };
        others.into_iter().flatten().find(|queue| is_there(queue) && self.settling(queue).is_some())
    }

    /// A queue is there.
    fn found(&self, queue: &str, kind: QueueKind) {
        if kind == QueueKind::Quorum {
            let mut settled = self.0.settled.lock().unwrap_or_else(PoisonError::into_inner);
            settled.entry(queue.to_owned()).or_default().get_or_insert_with(Instant::now);
        }
    }

    /// A queue is gone. A quorum queue takes no publishes until it has been made again and has settled.
    fn lost(&self, queue: &str, kind: QueueKind) {
        if kind == QueueKind::Quorum {
            self.0.settled.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.to_owned(), None);
        }
    }

    /// Where callers of this process wait for answers over this broker.
    fn mailbox(&self) -> Arc<Mailbox> {
        self.0.mailbox.get_or_init(|| replies::start(self.0.consuming.state())).clone()
    }

    fn bindings(&self) -> MutexGuard<'_, Bindings> {
        self.0.bindings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
