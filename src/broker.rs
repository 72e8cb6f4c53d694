//! From a store's plan, and the Secret that it names, to a broker's address.
//!
//! Inputs: plans, values of Secrets and config maps (from manifests, from mounted files, from the API server). Output:
//! an address that is read anew before each connect, so that a changed Secret is taken up without a restart.

use std::sync::Arc;

use crate::plan::{BrokerPlan, KeyRef, KeySource, KeyValues, TlsPlan};
use crate::store::rabbitmq::{Address, AddressSource, Ca, Overrides, TlsOverrides};

/// Reads the address of a broker from its Secret whenever it is asked.
pub fn address(plan: &BrokerPlan, values: Arc<dyn KeyValues>) -> AddressSource {
    let plan = plan.clone();
    Arc::new(move || {
        let secret = plan.connection.secret();
        let get =
            |key: &str| values.get(&KeyRef { source: KeySource::Secret, name: secret.clone(), key: key.to_owned() });
        Address::read(get, &overrides(&plan, &*values))
    })
}

/// The same, for a process that is not in the namespace that the Secret is in: a host without a dot is a Service there.
pub fn address_from_afar(plan: &BrokerPlan, values: Arc<dyn KeyValues>, namespace: &str) -> AddressSource {
    let (near, namespace) = (address(plan, values), namespace.to_owned());
    Arc::new(move || near().map(|address| address.within(&namespace)))
}

/// What a store says beyond its Secret.
pub fn overrides(plan: &BrokerPlan, values: &dyn KeyValues) -> Overrides {
    let ca =
        |tls: &TlsPlan| tls.ca.as_ref().map(|ca| values.get(ca).map_or_else(|| Ca::Missing(ca.to_string()), Ca::Pem));
    let tls = plan.tls.as_ref().map(|tls| TlsOverrides { ca: ca(tls), server_name: tls.server_name.clone() });
    Overrides { virtual_host: plan.virtual_host.clone(), tls }
}
