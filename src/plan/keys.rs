//! Secrets and `ConfigMaps`: which keys objects need, and those that stand in manifests.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::finding::Finding;
use super::world::Named;
use super::{BrokerConnection, KeyRef, KeySource, KeyValues};
use crate::api::shared::{CaKind, CaRef};
use crate::api::{ForwardingProcessor, MessageStore};

/// What an object needs of one Secret or `ConfigMap`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The field that names it.
    pub path: &'static str,
    /// What it is.
    pub source: KeySource,
    /// Its name.
    pub name: String,
    /// What must be in it.
    pub keys: NeededKeys,
}

/// The keys that must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NeededKeys {
    /// All of these.
    All(Vec<String>),
    /// At least one of these.
    AnyOf(Vec<String>),
}

/// The Secrets and `ConfigMaps` that a store needs. Those of a `clusterRef` are the RabbitMQ operator's to make.
pub fn of_store(store: &MessageStore) -> Vec<Need> {
    let broker = &store.spec.broker;
    let mut needs = Vec::new();
    if let Some(secret) = &broker.secret_ref {
        needs.push(Need {
            path: "spec.broker.secretRef.name",
            source: KeySource::Secret,
            name: secret.name.clone(),
            keys: NeededKeys::AnyOf(texts(&["uri", "connection_string", "host"])),
        });
    }
    if let Some(ca) = broker.tls.as_ref().and_then(|tls| tls.ca_ref.as_ref()) {
        needs.push(of_ca("spec.broker.tls.caRef.name", ca));
    }
    needs
}

/// The Secret that a store needs of the RabbitMQ cluster operator. In manifests nobody expects it.
pub fn of_cluster(store: &MessageStore) -> Option<Need> {
    let cluster = store.spec.broker.cluster_ref.as_ref()?;
    Some(Need {
        path: "spec.broker.clusterRef.name",
        source: KeySource::Secret,
        name: BrokerConnection::Cluster(cluster.name.clone()).secret(),
        keys: NeededKeys::AnyOf(texts(&["connection_string", "host"])),
    })
}

/// The Secrets and `ConfigMaps` that a processor needs for its target.
pub fn of_processor(processor: &ForwardingProcessor) -> Vec<Need> {
    let target = &processor.spec.target;
    let mut needs = Vec::new();
    if let Some(tls) = &target.tls {
        needs.extend(tls.ca_ref.as_ref().map(|ca| of_ca("spec.target.tls.caRef.name", ca)));
        needs.extend(tls.client_cert_secret_ref.as_ref().map(|secret| Need {
            path: "spec.target.tls.clientCertSecretRef.name",
            source: KeySource::Secret,
            name: secret.name.clone(),
            keys: NeededKeys::All(texts(&["tls.crt", "tls.key"])),
        }));
    }
    if let Some(auth) = &target.auth {
        needs.extend(auth.basic.as_ref().map(|basic| Need {
            path: "spec.target.auth.basic.secretRef.name",
            source: KeySource::Secret,
            name: basic.secret_ref.name.clone(),
            keys: NeededKeys::All(texts(&["username", "password"])),
        }));
        needs.extend(auth.bearer.as_ref().map(|bearer| Need {
            path: "spec.target.auth.bearer.secretRef.key",
            source: KeySource::Secret,
            name: bearer.secret_ref.name.clone(),
            keys: NeededKeys::All(vec![bearer.secret_ref.key.clone()]),
        }));
    }
    needs
}

fn of_ca(path: &'static str, ca: &CaRef) -> Need {
    let source = match ca.kind {
        CaKind::Secret => KeySource::Secret,
        CaKind::ConfigMap => KeySource::ConfigMap,
    };
    Need { path, source, name: ca.name.clone(), keys: NeededKeys::All(vec![ca.key.clone()]) }
}

fn texts(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

type Values = BTreeMap<(String, KeySource, String), BTreeMap<String, Vec<u8>>>;

/// The Secrets and `ConfigMaps` of manifests.
#[derive(Clone, Default)]
pub struct ManifestKeys {
    values: Arc<Values>,
}

impl std::fmt::Debug for ManifestKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Names only: values are secret.
        f.debug_set().entries(self.values.keys()).finish()
    }
}

impl ManifestKeys {
    /// Whether a Secret or `ConfigMap` is among the manifests.
    pub fn contains(&self, namespace: &str, source: KeySource, name: &str) -> bool {
        self.values.contains_key(&(namespace.to_owned(), source, name.to_owned()))
    }

    /// The keys of one namespace, as workers read them.
    pub fn of(&self, namespace: &str) -> NamespaceKeys {
        NamespaceKeys { namespace: namespace.to_owned(), values: self.values.clone() }
    }

    /// Adds one object.
    pub(super) fn insert(&mut self, namespace: &str, source: KeySource, name: &str, values: BTreeMap<String, Vec<u8>>) {
        Arc::make_mut(&mut self.values).insert((namespace.to_owned(), source, name.to_owned()), values);
    }

    /// What is said if an object is here but lacks what is needed. One that is not here may exist in the cluster.
    pub(super) fn check(&self, namespace: &str, needs: &[Need], findings: &mut Vec<Finding>) {
        for need in needs {
            let Some(values) = self.values.get(&(namespace.to_owned(), need.source, need.name.clone())) else {
                continue;
            };
            findings.extend(need.lacks(values));
        }
    }
}

impl Need {
    /// What is said if the object lacks what is needed.
    pub fn lacks(&self, values: &BTreeMap<String, Vec<u8>>) -> Option<Finding> {
        let lacks = |key: &&String| !values.contains_key(*key);
        let what = match &self.keys {
            NeededKeys::All(keys) => keys.iter().filter(lacks).cloned().collect::<Vec<_>>().join(" and "),
            NeededKeys::AnyOf(keys) if keys.iter().all(|key| lacks(&key)) => keys.join(" or "),
            NeededKeys::AnyOf(_) => String::new(),
        };
        let message = format!("{} `{}` has no key {what}; add it there", self.source.as_str(), self.name);
        (!what.is_empty()).then(|| Finding::not_found(self.path, message))
    }

    /// What is said if there is no such object.
    pub fn is_missing(&self) -> Finding {
        let message = format!("there is no {} `{}`; create it, or correct the name", self.source.as_str(), self.name);
        Finding::not_found(self.path, message)
    }
}

/// The Secrets and `ConfigMaps` of one namespace.
#[derive(Clone)]
pub struct NamespaceKeys {
    namespace: String,
    values: Arc<Values>,
}

impl KeyValues for NamespaceKeys {
    fn get(&self, key: &KeyRef) -> Option<Vec<u8>> {
        self.values.get(&(self.namespace.clone(), key.source, key.name.clone()))?.get(&key.key).cloned()
    }
}

/// Reads `data`, `stringData` and `binaryData` of a Secret or `ConfigMap`, as the API server would.
pub(super) fn read(source: KeySource, value: &Value, findings: &mut Vec<Finding>) -> BTreeMap<String, Vec<u8>> {
    let mut values = BTreeMap::new();
    let fields: [(&str, bool); 2] = match source {
        // stringData wins over data, as in a cluster.
        KeySource::Secret => [("data", true), ("stringData", false)],
        KeySource::ConfigMap => [("binaryData", true), ("data", false)],
    };
    for (field, encoded) in fields {
        match &value[field] {
            Value::Null => {}
            Value::Object(entries) => {
                for (key, entry) in entries {
                    let path = super::schema::child(field, key);
                    match (entry.as_str(), encoded) {
                        (Some(text), false) => {
                            values.insert(key.clone(), text.as_bytes().to_vec());
                        }
                        (Some(text), true) => {
                            if let Ok(bytes) = STANDARD.decode(text.split_whitespace().collect::<String>()) {
                                values.insert(key.clone(), bytes);
                            } else {
                                let plain = if source == KeySource::Secret { "stringData" } else { "data" };
                                let message = format!("not base64; encode it, or write it under {plain} as it is");
                                findings.push(Finding::invalid(path, message));
                            }
                        }
                        (None, _) => {
                            // The value itself is not repeated: it may be a password.
                            let found = if encoded { "must be base64 text" } else { "must be text" };
                            let found = format!("{found}; put quotes around it");
                            findings.push(Finding::invalid(path, found));
                        }
                    }
                }
            }
            _ => findings
                .push(Finding::invalid(field, "must be a mapping of keys to text; write it as `key: \"value\"`")),
        }
    }
    values
}

/// What a store and a processor need, found wanting.
pub(super) fn check_store(store: &MessageStore, keys: &ManifestKeys, findings: &mut Vec<Finding>) {
    keys.check(store.namespace(), &of_store(store), findings);
}

/// See [`check_store`].
pub(super) fn check_processor(processor: &ForwardingProcessor, keys: &ManifestKeys, findings: &mut Vec<Finding>) {
    keys.check(processor.namespace(), &of_processor(processor), findings);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_need_that_is_not_met_names_the_object_and_the_keys() {
        let of = |keys| Need { path: "spec.x", source: KeySource::Secret, name: "account".to_owned(), keys };
        let values = BTreeMap::from([("username".to_owned(), b"me".to_vec())]);
        let all = of(NeededKeys::All(texts(&["username", "password"])));
        assert_eq!(
            all.lacks(&values).unwrap().to_string(),
            "spec.x: Secret `account` has no key password; add it there"
        );
        assert!(all.is_missing().to_string().contains("there is no Secret `account`; create it"));
        assert_eq!(of(NeededKeys::AnyOf(texts(&["user", "username"]))).lacks(&values), None);
        let none = of(NeededKeys::AnyOf(texts(&["uri", "host"]))).lacks(&values).unwrap();
        assert!(none.to_string().contains("has no key uri or host"), "{none}");
    }
}
