//! From a plan to the target it names, with what its references lead to.
//!
//! Inputs: a plan, the URL that its address was resolved to, the values of Secrets and config maps, the stores. Output:
//! a target. Nothing is dialled here.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::plan::{
    AnswerLog, AuthPlan, ForwarderPlan, HttpTargetPlan, KeyRef, KeySource, KeyValues, TargetPlan, TlsPlan,
};
use crate::store::MessageStore;
use crate::target::Target;
use crate::target::http::{ClientIdentity, Credentials, HttpTarget, HttpTargetConfig, TargetConfigError, TlsMaterial};
use crate::target::store::StoreTarget;

/// Why there is no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// A key that the plan names is not there.
    #[error("{:?} `{}` has no key `{}`; add it", .0.source, .0.name, .0.key)]
    MissingKey(KeyRef),
    /// A key holds what is no text.
    #[error("{:?} `{}`, key `{}`: not utf-8; store it as text", .0.source, .0.name, .0.key)]
    NotText(KeyRef),
    /// A service that nothing resolved.
    #[error("spec.target.serviceRef: no address is known for it")]
    NoAddress,
    /// The target store was not given.
    #[error("spec.target.storeRef: store `{0}` is missing")]
    MissingStore(String),
    /// The parts do not make a target.
    #[error("spec.target: {0}")]
    Config(#[from] TargetConfigError),
}

/// The target of a plan. `url` is where its address was resolved to; a store needs none.
pub fn target_for(
    plan: &ForwarderPlan,
    url: Option<&str>,
    values: &dyn KeyValues,
    stores: &BTreeMap<String, Arc<dyn MessageStore>>,
) -> Result<Arc<dyn Target>, TargetError> {
    let http = match &plan.target {
        TargetPlan::Store(name) => {
            let store = stores.get(name).ok_or_else(|| TargetError::MissingStore(name.clone()))?;
            return Ok(Arc::new(StoreTarget::new(store.clone(), None)));
        }
        TargetPlan::Http(http) => http,
    };
    let config = HttpTargetConfig {
        url: url.ok_or(TargetError::NoAddress)?.to_owned(),
        connect_timeout: http.connect_timeout,
        timeout: http.timeout,
        reads_bodies: plan.response.log == AnswerLog::Body || plan.response.store.is_some(),
        max_body: usize::try_from(plan.response.max_body_size).unwrap_or(usize::MAX),
        max_idle: usize::try_from(plan.concurrency.max(1)).unwrap_or(1),
        refuse_loopback: http.refuse_loopback,
        tls: http.tls.as_ref().map(|tls| tls_material(tls, values)).transpose()?.unwrap_or_default(),
        credentials: credentials(http, values)?,
    };
    Ok(Arc::new(HttpTarget::new(&config)?))
}

fn tls_material(tls: &TlsPlan, values: &dyn KeyValues) -> Result<TlsMaterial, TargetError> {
    let client = |name: &String| {
        Ok::<_, TargetError>(ClientIdentity {
            certificate: bytes(secret(name, "tls.crt"), values)?,
            key: bytes(secret(name, "tls.key"), values)?,
        })
    };
    Ok(TlsMaterial {
        ca: tls.ca.as_ref().map(|key| bytes(key.clone(), values)).transpose()?,
        client: tls.client_cert_secret.as_ref().map(client).transpose()?,
        server_name: tls.server_name.clone(),
    })
}

fn credentials(http: &HttpTargetPlan, values: &dyn KeyValues) -> Result<Option<Credentials>, TargetError> {
    Ok(match &http.auth {
        None => None,
        Some(AuthPlan::Basic(name)) => Some(Credentials::Basic {
            username: text(secret(name, "username"), values)?,
            password: text(secret(name, "password"), values)?,
        }),
        Some(AuthPlan::Bearer(key)) => Some(Credentials::Bearer(text(key.clone(), values)?)),
    })
}

fn secret(name: &str, key: &str) -> KeyRef {
    KeyRef { source: KeySource::Secret, name: name.to_owned(), key: key.to_owned() }
}

fn bytes(key: KeyRef, values: &dyn KeyValues) -> Result<Vec<u8>, TargetError> {
    values.get(&key).ok_or(TargetError::MissingKey(key))
}

fn text(key: KeyRef, values: &dyn KeyValues) -> Result<String, TargetError> {
    String::from_utf8(bytes(key.clone(), values)?).map_err(|_| TargetError::NotText(key))
}
