//! Which broker a store of a local run gets, and the connections to those brokers.
//!
//! Its Secret, if that stands in the manifests; else what `--amqp` names; else the embedded store. `--embedded` wins over
//! both. One RabbitMQ connection pair serves all stores that name the same broker.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::broker;
use crate::plan::keys::ManifestKeys;
use crate::plan::{BrokerConnection, BrokerPlan, KeyRef, KeySource, KeyValues, StorePlan, TlsPlan};
use crate::store::rabbitmq::{Address, AddressError, AddressSource};
use crate::store::{MessageStore, StoreError, embedded, rabbitmq};

/// Where a store is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// In this process's data folder.
    Embedded,
    /// On the RabbitMQ of a Secret among the manifests.
    Secret(String),
    /// On the RabbitMQ of `--amqp`.
    Amqp,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Brokers {
    embedded: embedded::Broker,
    amqp: Option<Address>,
    only_embedded: bool,
    /// Read before each connect, so that an edited Secret is taken up.
    keys: Arc<ArcSwap<ManifestKeys>>,
    connected: Mutex<Vec<Connected>>,
}

/// One pair of connections, for all stores that name the same broker in the same way.
#[derive(Debug)]
struct Connected {
    place: Place,
    shared: String,
    tls: Option<TlsPlan>,
    /// Kept up by the stores; none of them left, none is needed.
    broker: rabbitmq::WeakBroker,
}

impl Brokers {
    pub(super) fn new(embedded: embedded::Broker, amqp: Option<Address>, only_embedded: bool) -> Self {
        Self { embedded, amqp, only_embedded, keys: Arc::default(), connected: Mutex::default() }
    }

    /// Takes the Secrets of (edited) manifests. Who is connected stays so; who is not tries again at once.
    pub(super) fn take_keys(&self, keys: &ManifestKeys) {
        self.keys.store(Arc::new(keys.clone()));
        let connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        connected.iter().filter_map(|connected| connected.broker.upgrade()).for_each(|broker| broker.refresh());
    }

    /// Which broker a store gets.
    pub(super) fn place(&self, namespace: &str, broker: &BrokerPlan) -> Place {
        if self.only_embedded {
            return Place::Embedded;
        }
        match &broker.connection {
            BrokerConnection::Secret(secret) if self.keys.load().contains(namespace, KeySource::Secret, secret) => {
                Place::Secret(secret.clone())
            }
            _ if self.amqp.is_some() => Place::Amqp,
            _ => Place::Embedded,
        }
    }

    /// Declares a store: on the embedded store at once, on RabbitMQ whenever there is a connection.
    pub(super) fn store(
        &self,
        namespace: &str,
        place: &Place,
        plan: &StorePlan,
    ) -> Result<Arc<dyn MessageStore>, StoreError> {
        let shared = virtual_host(namespace, &plan.broker);
        if *place == Place::Embedded {
            return self.embedded.store_within(&shared, &plan.name, &plan.topology, plan.confirm_timeout);
        }
        let mut connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        connected.retain(|connected| connected.broker.upgrade().is_some());
        let same = |connected: &&Connected| {
            connected.place == *place && connected.shared == shared && connected.tls == plan.broker.tls
        };
        let broker = connected.iter().find(same).and_then(|connected| connected.broker.upgrade());
        let broker = broker.unwrap_or_else(|| {
            let broker = rabbitmq::Broker::start("run", self.address(namespace, place, &plan.broker));
            let (place, tls) = (place.clone(), plan.broker.tls.clone());
            connected.push(Connected { place, shared, tls, broker: broker.downgrade() });
            broker
        });
        Ok(broker.store(&format!("{namespace}/{}", plan.name), &plan.topology, plan.confirm_timeout))
    }

    fn address(&self, namespace: &str, place: &Place, plan: &BrokerPlan) -> AddressSource {
        let values = Arc::new(Manifested { keys: self.keys.clone(), namespace: namespace.to_owned() });
        if matches!(place, Place::Secret(_)) {
            return broker::address(plan, values);
        }
        let (plan, amqp) = (plan.clone(), self.amqp.clone());
        Arc::new(move || {
            let address = amqp.clone().ok_or(AddressError::Missing("uri"))?;
            address.with(&broker::overrides(&plan, &*values))
        })
    }

    /// Finishes what waits and closes the file.
    pub(super) fn close(&self) {
        self.embedded.close();
    }
}

/// The Secrets and config maps of one namespace, as the manifests say now.
struct Manifested {
    keys: Arc<ArcSwap<ManifestKeys>>,
    namespace: String,
}

impl KeyValues for Manifested {
    fn get(&self, key: &KeyRef) -> Option<Vec<u8>> {
        self.keys.load().of(&self.namespace).get(key)
    }
}

/// Stores share queues and exchanges when namespace, connection and virtual host are the same.
pub(super) fn virtual_host(namespace: &str, broker: &BrokerPlan) -> String {
    let connection = match &broker.connection {
        BrokerConnection::Secret(name) => format!("secret/{name}"),
        BrokerConnection::Cluster(name) => format!("cluster/{name}"),
    };
    format!("{namespace}/{connection}/{}", broker.virtual_host.as_deref().unwrap_or("/"))
}
