//! Everything that a processor runs with: its plan, and what the references in it lead to here.
//!
//! Inputs: a plan, the stores, the manifests' Secrets, the flags. Output: forwarders. Two launches that are the same
//! need no restart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use tokio::sync::Mutex;

use super::names::{Assignment, Which};
use crate::forwarder::{Forwarder, ForwarderHandle, ForwarderInput, HOLD_LIMIT, Options, target_for};
use crate::plan::{ForwarderPlan, KeyRef, KeySource, KeyValues, ObjectName, OrderingPlan, TargetAddress, TargetPlan};
use crate::status::verdict::Missing;
use crate::store::MessageStore;
use crate::telemetry::metrics::ProcessorMetrics;

/// Several consumers of one processor see each other's deactivation within this time.
const CHECK_RECORD_EVERY: Duration = Duration::from_secs(1);

/// Held by whoever delivers in order from a queue.
pub(super) type Turn = Arc<Mutex<()>>;

/// See the module.
#[derive(Debug)]
pub(super) struct Launch {
    plan: ForwarderPlan,
    stores: BTreeMap<String, Arc<dyn MessageStore>>,
    source: Arc<dyn MessageStore>,
    /// Of an HTTP target.
    url: Option<String>,
    values: Values,
    hold_limit: Duration,
    turn: Option<Turn>,
}

/// The keys that a plan names, with their values. Its `Debug` shows no value.
#[derive(Default, PartialEq, Eq)]
struct Values(BTreeMap<KeyRef, Vec<u8>>);

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl KeyValues for Values {
    fn get(&self, key: &KeyRef) -> Option<Vec<u8>> {
        self.0.get(key).cloned()
    }
}

/// What a launch is made of, besides its plan.
pub(super) struct Ingredients<'a> {
    /// Every store that the plan names.
    pub(super) stores: BTreeMap<String, Arc<dyn MessageStore>>,
    /// The turn of the source's queue.
    pub(super) turn: Turn,
    /// Of the plan's namespace.
    pub(super) values: &'a dyn KeyValues,
    pub(super) services: &'a Services,
    pub(super) hold_limit: Option<Duration>,
}

impl Launch {
    /// Resolves every reference, or says which leads nowhere.
    pub(super) fn new(plan: ForwarderPlan, with: Ingredients<'_>) -> Result<Self, Missing> {
        let Ingredients { stores, turn, values: manifests, services, hold_limit } = with;
        let url = match &plan.target {
            TargetPlan::Http(http) => Some(services.url(&plan.object, &http.address)?),
            TargetPlan::Store(_) => None,
        };
        let mut values = BTreeMap::new();
        for key in plan.target_keys() {
            let value = manifests.get(&key).ok_or_else(|| missing_key(&key))?;
            values.insert(key, value);
        }
        let source = stores.get(&plan.source).cloned().ok_or_else(|| Missing {
            reason: "NotFound",
            message: format!("there is no MessageStore `{}`; create it", plan.source),
        })?;
        let ordered = !matches!(plan.ordering, OrderingPlan::None);
        Ok(Self {
            source,
            url,
            values: Values(values),
            hold_limit: hold_limit.unwrap_or(HOLD_LIMIT),
            turn: ordered.then_some(turn),
            stores,
            plan,
        })
    }

    /// Whether one can stand for the other without a restart.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same_stores = self.stores.len() == other.stores.len()
            && self.stores.iter().zip(&other.stores).all(|(one, two)| one.0 == two.0 && Arc::ptr_eq(one.1, two.1));
        same_stores && self.plan == other.plan && self.url == other.url && self.values == other.values
    }

    /// The target without its query.
    pub(super) fn target(&self) -> String {
        match (&self.plan.target, &self.url) {
            (TargetPlan::Store(name), _) => format!("store {name}"),
            (_, url) => url.as_deref().unwrap_or_default().split('?').next().unwrap_or_default().to_owned(),
        }
    }

    pub(super) fn source(&self) -> &Arc<dyn MessageStore> {
        &self.source
    }

    /// Who delivers in order waits for this turn.
    pub(super) fn turn(&self) -> Option<Turn> {
        self.turn.clone()
    }

    /// How long what is under way may take to end by itself.
    pub(super) fn patience(&self) -> Duration {
        self.plan.patience()
    }

    /// Starts one forwarder for each replica.
    pub(super) fn forwarders(
        &self,
        metrics: &ProcessorMetrics,
    ) -> impl Iterator<Item = Result<Arc<ForwarderHandle>, String>> {
        let replicas = self.plan.replicas;
        let check_record_every = (replicas > 1 || self.source.is_shared()).then_some(CHECK_RECORD_EVERY);
        (0..replicas).map(move |_| {
            let target = target_for(&self.plan, self.url.as_deref(), &self.values, &self.stores);
            let input = ForwarderInput {
                plan: self.plan.clone(),
                stores: self.stores.clone(),
                target: target.map_err(|error| error.to_string())?,
                metrics: metrics.clone(),
                options: Options { hold_limit: self.hold_limit, check_record_every, ..Options::default() },
            };
            Forwarder::start(input).map(Arc::new).map_err(|error| error.to_string())
        })
    }
}

/// Where a `serviceRef` points outside a cluster.
#[derive(Debug, Clone, Default)]
pub(super) struct Services {
    pub(super) named: Vec<Assignment<Uri>>,
    pub(super) sink: Option<SocketAddr>,
}

impl Services {
    /// A bare name must not mean Services of two namespaces; one that means none is worth a warning.
    pub(super) fn check<'a>(&self, plans: &(impl Iterator<Item = &'a ForwarderPlan> + Clone)) -> Result<(), String> {
        for assignment in &self.named {
            let named = plans.clone().filter_map(|plan| match &plan.target {
                TargetPlan::Http(http) => match &http.address {
                    TargetAddress::Service { name, .. } => Some((plan.object.namespace.as_str(), name.as_str())),
                    TargetAddress::Url(_) => None,
                },
                TargetPlan::Store(_) => None,
            });
            let different: BTreeSet<_> = named.collect();
            match assignment.name.find(different) {
                Ok(_) => {}
                Err(which @ Which::Several { .. }) => return Err(format!("--service: the service {which}")),
                Err(Which::None(name)) => tracing::warn!("--service {name}: no ForwardingProcessor names this service"),
            }
        }
        Ok(())
    }

    fn url(&self, object: &ObjectName, address: &TargetAddress) -> Result<String, Missing> {
        let (name, path) = match address {
            TargetAddress::Url(url) => return Ok(url.clone()),
            TargetAddress::Service { name, path, .. } => (name, path),
        };
        let mut found = self.named.iter().filter(|assignment| assignment.name.is(&object.namespace, name));
        // The last flag counts, as with flags that can be given once.
        if let Some(assignment) = found.next_back() {
            return Ok(format!("{}{path}", assignment.value.to_string().trim_end_matches('/')));
        }
        match self.sink {
            Some(sink) => Ok(format!("http://{sink}{path}")),
            None => Err(Missing {
                reason: "NotFound",
                message: format!(
                    "service `{name}` has no address outside a cluster; give it one with --service {name}=URL, or --sink ADDR"
                ),
            }),
        }
    }
}

fn missing_key(key: &KeyRef) -> Missing {
    let kind = match key.source {
        KeySource::Secret => "Secret",
        KeySource::ConfigMap => "ConfigMap",
    };
    Missing {
        reason: "NotFound",
        message: format!("there is no {kind} `{}` with key `{}` in the manifests; add it", key.name, key.key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::names;

    fn object() -> ObjectName {
        ObjectName { namespace: "shop".into(), name: "settle".into(), uid: String::new() }
    }

    fn service(path: &str) -> TargetAddress {
        TargetAddress::Service { name: "settle".into(), port: 8080, path: path.into(), tls: false }
    }

    #[test]
    fn a_service_goes_to_its_flag_else_to_the_sink() {
        let mut services = Services::default();
        let missing = services.url(&object(), &service("/pay")).unwrap_err();
        assert!(missing.message.contains("--service settle=URL"), "{}", missing.message);
        services.sink = Some("127.0.0.1:9095".parse().unwrap());
        assert_eq!(services.url(&object(), &service("/pay?a=1")).unwrap(), "http://127.0.0.1:9095/pay?a=1");
        services.named = vec![
            names::service("settle=http://host:1").unwrap(),
            names::service("other/settle=http://host:2").unwrap(),
        ];
        assert_eq!(services.url(&object(), &service("/pay")).unwrap(), "http://host:1/pay");
        services.named.push(names::service("shop/settle=http://host:3/base/").unwrap());
        assert_eq!(services.url(&object(), &service("/pay")).unwrap(), "http://host:3/base/pay");
    }
}
