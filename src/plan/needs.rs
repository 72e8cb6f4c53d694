//! What a plan needs besides itself: keys of Secrets and config maps, addresses, and time to end in order.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{
    AuthPlan, BrokerConnection, ForwarderPlan, HttpTargetPlan, IngressPlan, KeyRef, KeySource, OrderingPlan, Plan,
    StorePlan, TargetAddress, TargetPlan,
};

/// The longest deadline that a store may have.
const LONGEST_STORE_DEADLINE: Duration = Duration::from_secs(60);

/// Above the time-outs of a target, until an attempt that ends is seen to have ended.
const MARGIN: Duration = Duration::from_secs(10);

impl Plan {
    /// The Secrets and config maps that a worker of this plan reads, whole.
    pub fn sources(&self) -> BTreeSet<(KeySource, String)> {
        let (stores, target) = match self {
            Self::Ingress(plan) => (&plan.stores, Vec::new()),
            Self::Forwarder(plan) => (&plan.stores, plan.target_keys()),
        };
        let target = target.into_iter().map(|key| (key.source, key.name));
        stores.values().flat_map(StorePlan::sources).chain(target).collect()
    }

    /// The stores, by name.
    pub fn stores(&self) -> &std::collections::BTreeMap<String, StorePlan> {
        match self {
            Self::Ingress(plan) => &plan.stores,
            Self::Forwarder(plan) => &plan.stores,
        }
    }

    /// How long what is under way may take to end by itself.
    pub fn patience(&self) -> Duration {
        match self {
            Self::Ingress(plan) => plan.patience(),
            Self::Forwarder(plan) => plan.patience(),
        }
    }
}

impl StorePlan {
    /// The Secrets and config maps that lead to the broker.
    pub fn sources(&self) -> Vec<(KeySource, String)> {
        let ca = self.broker.tls.as_ref().and_then(|tls| tls.ca.as_ref());
        let secret = (KeySource::Secret, self.broker.connection.secret());
        std::iter::once(secret).chain(ca.map(|ca| (ca.source, ca.name.clone()))).collect()
    }
}

impl IngressPlan {
    /// A request may still be read when the drain begins, is then stored, and then answered.
    fn patience(&self) -> Duration {
        let slowest = self.stores.values().map(|store| store.deadline).max().unwrap_or_default();
        let reply = self.rules.iter().filter_map(|rule| rule.reply_timeout).max().unwrap_or_default();
        self.limits.read_timeout + slowest + reply + MARGIN
    }
}

impl ForwarderPlan {
    /// How long what is under way may take to end by itself.
    pub fn patience(&self) -> Duration {
        let attempt = match &self.target {
            TargetPlan::Http(http) => (http.connect_timeout + http.timeout) * 2 + http.timeout,
            TargetPlan::Store(_) => LONGEST_STORE_DEADLINE,
        };
        attempt + LONGEST_STORE_DEADLINE + MARGIN
    }

    /// Attempts that may be under way at once, in one process.
    pub fn attempts_at_once(&self) -> u16 {
        match self.ordering {
            OrderingPlan::Strict => 1,
            _ => u16::try_from(self.concurrency.max(1)).unwrap_or(u16::MAX),
        }
    }

    /// How many messages are taken ahead. At 1 each delivery would wait for the broker's answer to the last ack; and
    /// RabbitMQ keeps acknowledgements back when 32 of a channel are under way to a quorum queue, so that with less than
    /// some 200 it waits for us then (measured on 4.0: in order 11,000/s with 64, 17,000/s with 128, 20,000/s with 256).
    pub fn window(&self) -> u16 {
        let concurrency = self.attempts_at_once();
        match self.ordering {
            OrderingPlan::Strict => 256,
            OrderingPlan::PerKey(_) => concurrency.saturating_mul(16).clamp(64, 1024),
            // What one replica takes ahead the others don't have.
            OrderingPlan::None => concurrency.saturating_mul(2).max(64),
        }
    }

    /// Every key that the target needs.
    pub fn target_keys(&self) -> Vec<KeyRef> {
        let TargetPlan::Http(http) = &self.target else { return Vec::new() };
        let HttpTargetPlan { tls, auth, .. } = &**http;
        let secret =
            |name: &str, key: &str| KeyRef { source: KeySource::Secret, name: name.to_owned(), key: key.to_owned() };
        let mut keys = Vec::new();
        if let Some(tls) = tls {
            keys.extend(tls.ca.clone());
            let client = tls.client_cert_secret.iter();
            keys.extend(client.flat_map(|name| [secret(name, "tls.crt"), secret(name, "tls.key")]));
        }
        match auth {
            Some(AuthPlan::Basic(name)) => keys.extend([secret(name, "username"), secret(name, "password")]),
            Some(AuthPlan::Bearer(key)) => keys.push(key.clone()),
            None => {}
        }
        keys
    }
}

impl BrokerConnection {
    /// The Secret that holds the address: the one that is named, or that which the cluster operator makes.
    pub fn secret(&self) -> String {
        match self {
            Self::Secret(name) => name.clone(),
            Self::Cluster(name) => format!("{name}-default-user"),
        }
    }
}

impl KeySource {
    /// The kind, as in `kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
        }
    }

    /// The folder below which a worker finds those that are mounted.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::ConfigMap => "config-map",
        }
    }
}

impl TargetAddress {
    /// Where it is, seen from a pod.
    pub fn in_cluster(&self, namespace: &str) -> String {
        match self {
            Self::Url(url) => url.clone(),
            Self::Service { name, port, path, tls } => {
                let scheme = if *tls { "https" } else { "http" };
                format!("{scheme}://{name}.{namespace}.svc:{port}{path}")
            }
        }
    }
}
