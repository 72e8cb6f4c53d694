//! What is watched, and who is told of a change.
//!
//! Inputs: the API of one namespace, or of all. Outputs: caches, and marks for the controllers of the kinds that a change
//! concerns. No object is asked for twice: every kind has one watch.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::ready;
use std::sync::Arc;

use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::{DeserializeGuard, NamespaceResourceScope, PartialObjectMeta};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_objects};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::due::Due;
use super::fingerprint;
use super::relations::{self, Change};
use super::report::{self, Ours};
use super::resources::ChildKind;
use crate::api::{ForwardingProcessor, IngressRoute, KIND_LABEL, MessageStore, NAME_LABEL, UID_LABEL};
use crate::plan::ObjectName;

/// An object of ours, or why it can't be read.
pub(super) type Guarded<K> = DeserializeGuard<K>;

/// One namespace, or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    All,
    Namespace(String),
}

impl Scope {
    pub(super) fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match self {
            Self::All => Api::all(client.clone()),
            Self::Namespace(namespace) => Api::namespaced(client.clone(), namespace),
        }
    }
}

/// Objects that must be reconciled, by kind.
#[derive(Debug, Clone, Default)]
pub(super) struct Duties {
    pub(super) stores: Due,
    pub(super) routes: Due,
    pub(super) processors: Due,
}

/// A child as it was seen last.
type Look = Box<dyn Fn(&str, &str) -> Option<ChildMeta> + Send + Sync>;
/// The children of an owner's uid.
type Listing = Box<dyn Fn(&str) -> Vec<ChildMeta> + Send + Sync>;

/// What is remembered of a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChildMeta {
    pub(super) name: String,
    /// The uids of its owners.
    pub(super) owners: Vec<String>,
    /// Changes when somebody changes what we wrote.
    pub(super) mark: String,
    pub(super) deleting: bool,
}

impl ChildMeta {
    /// A Deployment's version changes with its status all the time; its generation only with its spec.
    pub(super) fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        let version = match meta.generation {
            Some(generation) => format!("{generation} {:?} {:?}", meta.labels, meta.owner_references),
            None => meta.resource_version.clone().unwrap_or_default(),
        };
        Self {
            name: meta.name.clone().unwrap_or_default(),
            owners: meta.owner_references.iter().flatten().map(|owner| owner.uid.clone()).collect(),
            mark: version,
            deleting: meta.deletion_timestamp.is_some(),
        }
    }
}

/// Everything that is known of the cluster.
pub(super) struct Caches {
    pub(super) stores: Store<Guarded<MessageStore>>,
    pub(super) routes: Store<Guarded<IngressRoute>>,
    pub(super) processors: Store<Guarded<ForwardingProcessor>>,
    pub(super) deployments: Store<Deployment>,
    pub(super) pods: Store<Pod>,
    looks: BTreeMap<ChildKind, (Look, Listing)>,
    /// Cancelled when a kind has been listed once. (What the cache itself offers wakes one who waits, and forgets others.)
    listed: Vec<CancellationToken>,
}

impl fmt::Debug for Caches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Caches")
    }
}

impl Caches {
    /// A child, if it carries our labels.
    pub(super) fn child(&self, kind: ChildKind, namespace: &str, name: &str) -> Option<ChildMeta> {
        self.looks.get(&kind).and_then(|(look, _)| look(namespace, name))
    }

    /// The children of an object.
    pub(super) fn children(&self, kind: ChildKind, owner: &str) -> Vec<ChildMeta> {
        self.looks.get(&kind).map(|(_, list)| list(owner)).unwrap_or_default()
    }

    /// The pods of an object, also such that are ending, but not those that have ended: an evicted pod stays as an object.
    pub(super) fn pods_of(&self, object: &ObjectName) -> Vec<Arc<Pod>> {
        let is_of = |pod: &Arc<Pod>| {
            pod.labels().get(UID_LABEL) == Some(&object.uid) && pod.namespace().as_deref() == Some(&object.namespace)
        };
        let has_ended = |pod: &Arc<Pod>| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            matches!(phase, Some("Failed" | "Succeeded"))
        };
        self.pods.state().into_iter().filter(|pod| is_of(pod) && !has_ended(pod)).collect()
    }

    /// Waits until everything has been listed once: half of what there is leads to wrong conclusions.
    pub(super) async fn synced(&self) {
        for listed in &self.listed {
            listed.cancelled().await;
        }
    }

    pub(super) fn deployment(&self, namespace: &str, name: &str) -> Option<Arc<Deployment>> {
        self.deployments.get(&ObjectRef::new(name).within(namespace))
    }
}

/// The changes of one kind.
pub(super) type Changes<K> = BoxStream<'static, Result<Guarded<K>, watcher::Error>>;

/// What the controllers run on.
pub(super) struct Streams {
    pub(super) stores: Changes<MessageStore>,
    pub(super) routes: Changes<IngressRoute>,
    pub(super) processors: Changes<ForwardingProcessor>,
}

/// Starts to watch. The streams must be run; the rest runs in `tasks`.
pub(super) fn start(
    client: &Client,
    scope: &Scope,
    duties: &Duties,
    with_policies: bool,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> (Caches, Streams) {
    let listed: Vec<CancellationToken> = (0..3).map(|_| CancellationToken::new()).collect();
    let (stores, store_writer) = reflector::store();
    let (routes, route_writer) = reflector::store();
    let (processors, processor_writer) = reflector::store();
    let everything = watcher::Config::default();
    let touch = Touch {
        routes: routes.clone(),
        processors: processors.clone(),
        stores: stores.clone(),
        duties: duties.clone(),
    };
    let touched = touch.clone();
    let store_stream = watch(
        scope.api(client),
        everything.clone(),
        store_writer,
        listed[0].clone(),
        News::of_ours(),
        move |object: &Guarded<MessageStore>| {
            touched.by(&Change::Store(&object.namespace().unwrap_or_default(), &object.name_any()));
        },
    );
    let route_stream = watch(
        scope.api(client),
        everything.clone(),
        route_writer,
        listed[1].clone(),
        News::of_ours(),
        |_: &Guarded<IngressRoute>| {},
    );
    let processor_stream = watch(
        scope.api(client),
        everything,
        processor_writer,
        listed[2].clone(),
        News::of_ours(),
        move |object: &Guarded<ForwardingProcessor>| {
            if let Ok(processor) = &object.0 {
                touch.by(&Change::Processor(processor));
            }
        },
    );
    let ours = watcher::Config::default().labels("app.kubernetes.io/managed-by=stagepost");
    let mut children = Children { client, scope, ours: &ours, duties, stop, tasks, looks: BTreeMap::new(), listed };
    let deployments = children.follow::<Deployment>(ChildKind::Deployment);
    let pods = children.pods();
    children.follow::<PartialObjectMeta<ServiceAccount>>(ChildKind::ServiceAccount);
    children.follow::<PartialObjectMeta<ConfigMap>>(ChildKind::ConfigMap);
    children.follow::<PartialObjectMeta<Service>>(ChildKind::Service);
    children.follow::<PartialObjectMeta<PodDisruptionBudget>>(ChildKind::PodDisruptionBudget);
    if with_policies {
        children.follow::<PartialObjectMeta<NetworkPolicy>>(ChildKind::NetworkPolicy);
    }
    let (looks, listed) = (children.looks, children.listed);
    let caches = Caches { stores, routes, processors, deployments, pods, looks, listed };
    (
        caches,
        Streams { stores: store_stream.boxed(), routes: route_stream.boxed(), processors: processor_stream.boxed() },
    )
}

/// Who is concerned by a change of a store or a processor.
#[derive(Clone)]
struct Touch {
    stores: Store<Guarded<MessageStore>>,
    routes: Store<Guarded<IngressRoute>>,
    processors: Store<Guarded<ForwardingProcessor>>,
    duties: Duties,
}

impl Touch {
    fn by(&self, change: &Change<'_>) {
        let (stores, routes, processors) = (self.stores.state(), self.routes.state(), self.processors.state());
        let all: Vec<&MessageStore> = stores.iter().filter_map(|object| object.0.as_ref().ok()).collect();
        for store in all.iter().filter(|store| relations::store_is_concerned(store, change)) {
            self.duties.stores.mark(&store.namespace().unwrap_or_default(), &store.name_any());
        }
        let concerns = relations::Concerns::of(change, &all);
        for route in routes.iter().filter_map(|object| object.0.as_ref().ok()).filter(|route| concerns.route(route)) {
            self.duties.routes.mark(&route.namespace().unwrap_or_default(), &route.name_any());
        }
        let processors = processors.iter().filter_map(|object| object.0.as_ref().ok());
        for processor in processors.filter(|processor| concerns.processor(processor)) {
            self.duties.processors.mark(&processor.namespace().unwrap_or_default(), &processor.name_any());
        }
    }
}

/// What was seen last of each object that a reconcile looks at: the numbers in a status wake nobody.
struct News<K> {
    look: Option<fn(&K) -> Value>,
    seen: HashMap<String, u64>,
}

impl<K: Resource> News<K> {
    /// Everything is news.
    fn all() -> Self {
        Self { look: None, seen: HashMap::new() }
    }

    fn is_in(&mut self, event: &Event<K>) -> bool {
        let Some(look) = self.look else { return true };
        match event {
            Event::Apply(object) | Event::InitApply(object) => {
                let hash = fingerprint::of(&look(object));
                self.seen.insert(object.meta().uid.clone().unwrap_or_default(), hash) != Some(hash)
            }
            Event::Delete(object) => {
                self.seen.remove(object.meta().uid.as_deref().unwrap_or_default());
                true
            }
            Event::Init | Event::InitDone => true,
        }
    }
}

impl<K: Ours> News<Guarded<K>> {
    /// What the user wrote, and what reconciles wrote.
    fn of_ours() -> Self {
        fn look<K: Ours>(object: &Guarded<K>) -> Value {
            let Ok(object) = &object.0 else { return json!(object.meta().resource_version) };
            let meta = object.meta();
            let whole = json!(object);
            json!({
                "generation": meta.generation,
                "annotations": meta.annotations,
                "finalizers": meta.finalizers,
                "deletion": meta.deletion_timestamp,
                "status": report::owned(&whole["status"]),
            })
        }
        Self { look: Some(look::<K>), seen: HashMap::new() }
    }
}

/// Watches a kind into a cache, and tells of every change that is news, deletions included.
fn watch<K, N>(
    api: Api<K>,
    config: watcher::Config,
    writer: reflector::store::Writer<K>,
    listed: CancellationToken,
    mut news: News<K>,
    note: N,
) -> impl Stream<Item = Result<K, watcher::Error>> + Send + use<K, N>
where
    N: Fn(&K) + Send + 'static,
    K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    watch_objects(api, config)
        .default_backoff()
        .reflect(writer)
        .try_filter(move |event| ready(news.is_in(event)))
        .inspect_ok(move |event| match event {
            Event::Apply(object) | Event::InitApply(object) | Event::Delete(object) => note(object),
            Event::InitDone => listed.cancel(),
            Event::Init => {}
        })
        .applied_objects()
}

/// A kind of Kubernetes in a namespace.
trait Watched:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + fmt::Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + fmt::Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// What belongs to objects of ours.
struct Children<'a> {
    client: &'a Client,
    scope: &'a Scope,
    ours: &'a watcher::Config,
    duties: &'a Duties,
    stop: &'a CancellationToken,
    tasks: &'a mut JoinSet<()>,
    looks: BTreeMap<ChildKind, (Look, Listing)>,
    listed: Vec<CancellationToken>,
}

impl Children<'_> {
    fn follow<K: Watched>(&mut self, kind: ChildKind) -> Store<K> {
        let cache = self.cache::<K>(kind.as_str());
        let (one, all) = (cache.clone(), cache.clone());
        let look: Look = Box::new(move |namespace, name| {
            one.get(&ObjectRef::new(name).within(namespace)).map(|object| ChildMeta::of(&*object))
        });
        let list: Listing = Box::new(move |uid| {
            let children = all.state().into_iter().map(|object| ChildMeta::of(&*object));
            children.filter(|child| child.owners.iter().any(|owner| owner == uid)).collect()
        });
        self.looks.insert(kind, (look, list));
        cache
    }

    fn pods(&mut self) -> Store<Pod> {
        self.cache::<Pod>("Pod")
    }

    fn cache<K: Watched>(&mut self, what: &'static str) -> Store<K> {
        let (cache, writer) = reflector::store();
        let listed = CancellationToken::new();
        self.listed.push(listed.clone());
        let duties = self.duties.clone();
        let stream = watch(
            self.scope.api::<K>(self.client),
            self.ours.clone(),
            writer,
            listed,
            News::all(),
            move |child: &K| {
                mark_owner(&duties, child);
            },
        );
        let stream = stream.take_until(self.stop.clone().cancelled_owned());
        self.tasks.spawn(stream.for_each(move |seen| {
            if let Err(error) = seen {
                tracing::warn!(%error, "the watch of {what} was interrupted; it begins again");
            }
            ready(())
        }));
        cache
    }
}

/// The owner, by the labels that every child carries.
fn mark_owner<K: Resource>(duties: &Duties, child: &K) {
    let labels = child.labels();
    let (Some(kind), Some(name)) = (labels.get(KIND_LABEL), labels.get(NAME_LABEL)) else { return };
    let namespace = child.namespace().unwrap_or_default();
    match kind.as_str() {
        "ingressroute" => duties.routes.mark(&namespace, name),
        "forwardingprocessor" => duties.processors.mark(&namespace, name),
        _ => {}
    }
}
