//! Secrets, config maps and Services that objects name. Got by name, never listed or watched.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use kube::{Api, Client};

use super::error::{Error, api};
use crate::plan::keys::Need;
use crate::plan::{KeyRef, KeySource, KeyValues};
use crate::status::verdict::Missing;

/// Several objects that are reconciled together name the same Secret.
const FRESH_FOR: Duration = Duration::from_secs(5);

/// What nobody has asked for since is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(900);

/// Keys and values.
type Values = Arc<BTreeMap<String, Vec<u8>>>;

/// Namespace, kind, name.
type Id = (String, KeySource, String);

/// See the module. Its `Debug` shows no value.
#[derive(Clone)]
pub(super) struct References {
    client: Client,
    known: Arc<Mutex<HashMap<Id, Known>>>,
}

struct Known {
    at: Instant,
    values: Option<Values>,
}

impl std::fmt::Debug for References {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("References")
    }
}

impl References {
    pub(super) fn new(client: Client) -> Self {
        Self { client, known: Arc::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Id, Known>> {
        // Single insertions: a panicking holder leaves nothing half done.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its values; `None` if there is no such object.
    async fn get(&self, namespace: &str, source: KeySource, name: &str) -> Result<Option<Values>, Error> {
        let id = (namespace.to_owned(), source, name.to_owned());
        if let Some(known) = self.known().get(&id)
            && known.at.elapsed() < FRESH_FOR
        {
            return Ok(known.values.clone());
        }
        let values = match source {
            KeySource::Secret => {
                let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
                let secret = api("get a Secret", secrets.get_opt(name)).await?;
                secret.map(|secret| {
                    let data = secret.data.unwrap_or_default();
                    data.into_iter().map(|(key, value)| (key, value.0)).collect::<BTreeMap<_, _>>()
                })
            }
            KeySource::ConfigMap => {
                let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
                let map = api("get a ConfigMap", maps.get_opt(name)).await?;
                map.map(|map| {
                    let texts = map.data.unwrap_or_default().into_iter().map(|(key, text)| (key, text.into_bytes()));
                    let bytes = map.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
                    texts.chain(bytes).collect::<BTreeMap<_, _>>()
                })
            }
        };
        let values = values.map(Arc::new);
        let mut known = self.known();
        known.retain(|_, known| known.at.elapsed() < FORGET_AFTER);
        known.insert(id, Known { at: Instant::now(), values: values.clone() });
        Ok(values)
    }

    /// The first need that is not met.
    pub(super) async fn missing(&self, namespace: &str, needs: &[Need]) -> Result<Option<Missing>, Error> {
        for need in needs {
            let values = self.get(namespace, need.source, &need.name).await?;
            if let Some(missing) = unmet(need, values.as_deref()) {
                return Ok(Some(missing));
            }
        }
        Ok(None)
    }

    /// Whether there is a Service with this port.
    pub(super) async fn service(&self, namespace: &str, name: &str, port: u16) -> Result<Option<Missing>, Error> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        let Some(service) = api("get a Service", services.get_opt(name)).await? else {
            let message = format!(
                "spec.target.serviceRef.name: there is no Service `{name}` in namespace `{namespace}`; create it, or correct the name"
            );
            return Ok(Some(Missing { reason: "NotFound", message }));
        };
        let ports = service.spec.and_then(|spec| spec.ports).unwrap_or_default();
        let ports: Vec<i32> = ports.into_iter().map(|port| port.port).collect();
        if ports.contains(&i32::from(port)) {
            return Ok(None);
        }
        let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
        let message = format!(
            "spec.target.serviceRef.port: Service `{name}` has no port {port}, but {}; correct the port",
            ports.join(", ")
        );
        Ok(Some(Missing { reason: "NotFound", message }))
    }

    /// The values of one namespace, as they were got last: what a broker's address is read from.
    pub(super) fn values(&self, namespace: &str) -> Arc<dyn KeyValues> {
        Arc::new(Namespaced { references: self.clone(), namespace: namespace.to_owned() })
    }
}

struct Namespaced {
    references: References,
    namespace: String,
}

impl KeyValues for Namespaced {
    fn get(&self, key: &KeyRef) -> Option<Vec<u8>> {
        let id = (self.namespace.clone(), key.source, key.name.clone());
        let known = self.references.known();
        known.get(&id)?.values.as_ref()?.get(&key.key).cloned()
    }
}

fn unmet(need: &Need, values: Option<&BTreeMap<String, Vec<u8>>>) -> Option<Missing> {
    let finding = match values {
        None => Some(need.is_missing()),
        Some(values) => need.lacks(values),
    };
    finding.map(|finding| Missing { reason: finding.reason.as_str(), message: finding.to_string() })
}
