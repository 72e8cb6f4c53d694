//! From files to valid objects and their plans: what `stagepost check` and `stagepost run` read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::compile::{self, Environment};
use super::finding::{Finding, Reason, Violation};
use super::keys::{self, ManifestKeys};
use super::manifest::{self, Document, Files, Origin};
use super::object::{self, Head, Identity};
use super::rules;
use super::validate::{self, Kind};
use super::world::{Named, World};
use super::{ForwarderPlan, IngressPlan, KeySource, StorePlan};
use crate::api::{ForwardingProcessor, IngressRoute, MessageStore};

/// How files are read.
#[derive(Debug, Clone)]
pub struct Options {
    /// Of objects that name none.
    pub default_namespace: String,
    /// Whether the files may name stores that are not among them.
    pub allow_missing_refs: bool,
    /// Where the plans will run.
    pub environment: Environment,
}

impl Default for Options {
    fn default() -> Self {
        Self { default_namespace: "default".to_owned(), allow_missing_refs: false, environment: Environment::Local }
    }
}

/// One object of ours, its plan, and where it stands.
#[derive(Debug, Clone)]
pub struct Loaded<K, P> {
    /// The object, with its defaults.
    pub object: K,
    /// Present if nothing is wrong with it.
    pub plan: Option<P>,
    /// Where it stands.
    pub origin: Origin,
}

/// Everything that stands in some files.
#[derive(Debug, Default)]
pub struct Manifests {
    /// The stores, also those that nobody names, in the order of the files.
    pub stores: Vec<Loaded<MessageStore, StorePlan>>,
    /// The routes.
    pub routes: Vec<Loaded<IngressRoute, IngressPlan>>,
    /// The processors.
    pub processors: Vec<Loaded<ForwardingProcessor, ForwarderPlan>>,
    /// The Secrets and `ConfigMaps`.
    pub keys: ManifestKeys,
    /// All that is wrong, by file and line. If there is any, not every object has a plan.
    pub violations: Vec<Violation>,
    /// What is allowed but hardly meant, by file and line.
    pub warnings: Vec<Violation>,
    /// What is skipped: kinds of other objects, once each, and files of a folder that are no manifests.
    pub skipped: Vec<String>,
}

/// Reads files and folders, checks everything in them, and compiles the plans of what is valid.
pub fn load(paths: &[PathBuf], options: &Options) -> Manifests {
    judge(manifest::read(paths), options)
}

/// Reads one text as if it were a file, for tests and tools.
pub fn load_text(name: &str, text: &str, options: &Options) -> Manifests {
    let mut files = Files::default();
    let json = Path::new(name).extension().is_some_and(|end| end == "json");
    manifest::parse(&name.into(), text, json, &mut files.documents, &mut files.violations);
    judge(files, options)
}

impl Manifests {
    /// Whether nothing is wrong.
    pub fn is_valid(&self) -> bool {
        self.violations.is_empty()
    }

    /// What must not have changed since these manifests, if these here are to take over.
    pub fn immutable_changes_since(&self, old: &Manifests) -> Vec<Violation> {
        let mut violations = Vec::new();
        changes(Kind::MessageStore, &old.stores, &self.stores, &mut violations);
        changes(Kind::ForwardingProcessor, &old.processors, &self.processors, &mut violations);
        violations.sort_by(Violation::by_place);
        violations
    }
}

fn changes<K: kube::Resource + Serialize, P>(
    kind: Kind,
    old: &[Loaded<K, P>],
    new: &[Loaded<K, P>],
    violations: &mut Vec<Violation>,
) {
    let names: BTreeMap<_, _> = old.iter().map(|l| ((l.object.namespace(), Named::name(&l.object)), l)).collect();
    for loaded in new {
        if let Some(before) = names.get(&(loaded.object.namespace(), Named::name(&loaded.object))) {
            for finding in validate::immutable(kind, &before.object, &loaded.object) {
                violations.push(object::violation(&loaded.origin, kind.as_str(), Named::name(&loaded.object), finding));
            }
        }
    }
}

/// What is collected while documents are sorted into kinds.
#[derive(Default)]
struct Sorting {
    manifests: Manifests,
    /// What is wrong with each object alone, in the order of `Manifests`.
    found: BTreeMap<Identity, Vec<Finding>>,
    /// Where each object stands first.
    seen: BTreeMap<Identity, Origin>,
    /// Stores that are there but cannot be read, by namespace and name.
    unreadable: Vec<(String, String)>,
}

fn judge(files: Files, options: &Options) -> Manifests {
    let mut sorting = Sorting::default();
    sorting.manifests.violations = files.violations;
    sorting.manifests.skipped = files.skipped;
    for document in files.documents {
        sorting.document(document, options);
    }
    let Sorting { mut manifests, found, unreadable, .. } = sorting;
    let stores: Vec<_> = manifests.stores.iter().map(|loaded| loaded.object.clone()).collect();
    let routes: Vec<_> = manifests.routes.iter().map(|loaded| loaded.object.clone()).collect();
    let processors: Vec<_> = manifests.processors.iter().map(|loaded| loaded.object.clone()).collect();
    let world = World::new(&stores, &routes, &processors)
        .with_unreadable_stores(unreadable.iter().map(|(namespace, name)| (namespace.as_str(), name.as_str())));
    let mut judge = Judge {
        options,
        found,
        violations: std::mem::take(&mut manifests.violations),
        warnings: std::mem::take(&mut manifests.warnings),
    };
    let keys = manifests.keys.clone();
    for loaded in &mut manifests.stores {
        judge.judge(Kind::MessageStore, loaded, compile::store, |store, findings| {
            rules::object::check_store(store, findings);
            rules::between::check_store(store, &world, findings);
            keys::check_store(store, &keys, findings);
        });
    }
    for loaded in &mut manifests.routes {
        judge.judge(
            Kind::IngressRoute,
            loaded,
            |route| compile::route(route, &world),
            |route, findings| {
                rules::object::check_route(route, findings);
                rules::between::check_route(route, &world, findings);
            },
        );
    }
    for loaded in &mut manifests.processors {
        let compile = |processor: &_| compile::processor(processor, &world, options.environment);
        judge.judge(Kind::ForwardingProcessor, loaded, compile, |processor, findings| {
            rules::object::check_processor(processor, findings);
            rules::between::check_processor(processor, &world, findings);
            keys::check_processor(processor, &keys, findings);
        });
        judge.warn(loaded);
    }
    manifests.violations = judge.violations;
    manifests.warnings = judge.warnings;
    manifests.violations.sort_by(Violation::by_place);
    manifests.violations.dedup();
    manifests.warnings.sort_by(Violation::by_place);
    manifests.skipped.sort();
    manifests.skipped.dedup();
    manifests
}

struct Judge<'o> {
    options: &'o Options,
    found: BTreeMap<Identity, Vec<Finding>>,
    violations: Vec<Violation>,
    warnings: Vec<Violation>,
}

impl Judge<'_> {
    fn judge<K: kube::Resource, P>(
        &mut self,
        kind: Kind,
        loaded: &mut Loaded<K, P>,
        compile: impl FnOnce(&K) -> Result<P, Finding>,
        check: impl FnOnce(&K, &mut Vec<Finding>),
    ) {
        let object = &loaded.object;
        let identity = (kind.as_str(), object.namespace().to_owned(), Named::name(object).to_owned());
        let mut findings = self.found.remove(&identity).unwrap_or_default();
        check(object, &mut findings);
        if findings.is_empty() {
            match compile(object) {
                Ok(plan) => loaded.plan = Some(plan),
                // What it names is wrong, and is reported there.
                Err(finding) if finding.reason == Reason::NotFound => {}
                Err(finding) => findings.push(finding),
            }
        }
        for finding in findings {
            if finding.reason != Reason::NotFound || !self.options.allow_missing_refs {
                self.violations.push(object::violation(&loaded.origin, kind.as_str(), Named::name(object), finding));
            }
        }
    }

    fn warn(&mut self, loaded: &Loaded<ForwardingProcessor, ForwarderPlan>) {
        let Some(plan) = &loaded.plan else { return };
        let backoff = &plan.policy.backoff;
        if backoff.interval > backoff.max_interval {
            let message =
                "retry.interval is longer than retry.maxInterval, so every wait is that long; raise maxInterval";
            let finding = Finding::invalid("spec.retry.interval", message);
            let name = Named::name(&loaded.object);
            self.warnings.push(object::violation(&loaded.origin, Kind::ForwardingProcessor.as_str(), name, finding));
        }
    }
}

impl Sorting {
    fn document(&mut self, document: Document, options: &Options) {
        let Document { origin, mut value } = document;
        // `kubectl get -o yaml` writes several objects so.
        if value["kind"] == "List" && value["apiVersion"] == "v1" {
            if let Some(items) = value["items"].as_array_mut() {
                for (at, item) in items.iter_mut().enumerate() {
                    self.object(origin.item(at), item.take(), options);
                }
            }
            return;
        }
        self.object(origin, value, options);
    }

    fn object(&mut self, origin: Origin, mut value: Value, options: &Options) {
        let mut findings = Vec::new();
        let Some(head) = object::head(&mut value, options, &mut findings) else {
            let kind = value["kind"].as_str().unwrap_or_default().to_owned();
            let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            return self.report(&origin, &kind, &name, findings);
        };
        if let Head::Other(kind) = head {
            self.manifests.skipped.push(kind);
            return;
        }
        object::check_text(&origin, &value, &mut findings);
        let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let namespace = value["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        let identity = (head.kind(), namespace.clone(), name.clone());
        if let Some(first) = self.seen.get(&identity).filter(|_| !name.is_empty()) {
            let message =
                format!("the same object stands at {}:{}; remove one of them, or rename it", first.file, first.line);
            findings.push(Finding::invalid("metadata.name", message));
            return self.report(&origin, head.kind(), &name, findings);
        }
        self.seen.insert(identity.clone(), origin.clone());
        match head {
            Head::Ours(kind) => self.ours(kind, origin, value, identity, findings),
            Head::Keys(source) => {
                let values = keys::read(source, &value, &mut findings);
                self.manifests.keys.insert(&namespace, source, &name, values);
                let kind = match source {
                    KeySource::Secret => "Secret",
                    KeySource::ConfigMap => "ConfigMap",
                };
                self.report(&origin, kind, &name, findings);
            }
            Head::Other(_) => {}
        }
    }

    #[allow(clippy::needless_pass_by_value)] // it goes into what is kept
    fn ours(&mut self, kind: Kind, origin: Origin, mut value: Value, identity: Identity, mut findings: Vec<Finding>) {
        validate::shape(kind, &mut value, &mut findings);
        object::check_booleans(&origin, &value, &mut findings);
        let known = match kind {
            Kind::MessageStore => add(&mut self.manifests.stores, value, &origin),
            Kind::IngressRoute => add(&mut self.manifests.routes, value, &origin),
            Kind::ForwardingProcessor => add(&mut self.manifests.processors, value, &origin),
        };
        if let Err(error) = known {
            if findings.is_empty() {
                let message = format!("cannot be read: {error}; compare it with `kubectl explain`");
                findings.push(Finding::invalid("spec", message));
            }
            let (_, namespace, name) = identity;
            self.report(&origin, kind.as_str(), &name, findings);
            if kind == Kind::MessageStore {
                self.unreadable.push((namespace, name));
            }
            return;
        }
        self.found.insert(identity, findings);
    }

    fn report(&mut self, origin: &Origin, kind: &str, name: &str, findings: Vec<Finding>) {
        let violations = findings.into_iter().map(|finding| object::violation(origin, kind, name, finding));
        self.manifests.violations.extend(violations);
    }
}

fn add<K: DeserializeOwned, P>(
    list: &mut Vec<Loaded<K, P>>,
    value: Value,
    origin: &Origin,
) -> Result<(), serde_json::Error> {
    let object = serde_json::from_value(value)?;
    list.push(Loaded { object, plan: None, origin: origin.clone() });
    Ok(())
}
