//! What the manifests ask for, by namespace and name: plans and what goes with them.
//!
//! Inputs: manifests that were read, the flags. Output: everything that shall run, or every reason why not, one line
//! each. Pure: nothing is started here.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::stores::Key;
use crate::api::{ForwardingProcessor, REACTIVATE_ANNOTATION};
use crate::plan::keys::ManifestKeys;
use crate::plan::load::{Loaded, Manifests};
use crate::plan::overlap::overlapping_routes;
use crate::plan::world::Named;
use crate::plan::{ForwarderPlan, IngressPlan, StorePlan};

/// See the module.
#[derive(Debug)]
pub(super) struct Desired {
    pub(super) stores: BTreeMap<Key, Wanted<StorePlan>>,
    pub(super) routes: BTreeMap<Key, Wanted<IngressPlan>>,
    pub(super) processors: BTreeMap<Key, Processor>,
    pub(super) keys: ManifestKeys,
}

/// An object's plan, and its spec for telling whether it changed.
#[derive(Debug, Clone)]
pub(super) struct Wanted<P> {
    pub(super) plan: P,
    pub(super) spec: Value,
}

/// What goes with a processor's plan.
#[derive(Debug, Clone)]
pub(super) struct Processor {
    pub(super) plan: ForwarderPlan,
    pub(super) spec: Value,
    pub(super) suspend: bool,
    /// The value of the annotation.
    pub(super) reactivate: Option<String>,
}

impl Desired {
    /// `apart` are the routes that have a listener of their own: they overlap with nobody.
    pub(super) fn of(manifests: &Manifests, apart: &[Key]) -> Result<Self, Vec<String>> {
        if !manifests.is_valid() {
            return Err(manifests.violations.iter().map(ToString::to_string).collect());
        }
        let desired = Self {
            stores: plans(&manifests.stores).collect(),
            routes: plans(&manifests.routes).collect(),
            processors: manifests.processors.iter().filter_map(processor).collect(),
            keys: manifests.keys.clone(),
        };
        let together = desired.routes.iter().filter(|(key, _)| !apart.contains(key));
        let overlaps = overlapping_routes(together.map(|(_, wanted)| &wanted.plan));
        let wrong: Vec<String> = overlaps.iter().map(ToString::to_string).collect();
        if wrong.is_empty() { Ok(desired) } else { Err(wrong) }
    }
}

fn plans<K: kube::Resource + Serialize, P: Clone>(loaded: &[Loaded<K, P>]) -> impl Iterator<Item = (Key, Wanted<P>)> {
    loaded.iter().filter_map(|loaded| {
        let spec = spec_of(&loaded.object);
        Some((key_of(&loaded.object), Wanted { plan: loaded.plan.clone()?, spec }))
    })
}

fn processor(loaded: &Loaded<ForwardingProcessor, ForwarderPlan>) -> Option<(Key, Processor)> {
    let object = &loaded.object;
    let annotations = object.metadata.annotations.as_ref();
    let processor = Processor {
        plan: loaded.plan.clone()?,
        spec: spec_of(object),
        suspend: object.spec.suspend,
        reactivate: annotations.and_then(|all| all.get(REACTIVATE_ANNOTATION)).cloned(),
    };
    Some((key_of(object), processor))
}

fn key_of(object: &impl Named) -> Key {
    (object.namespace().to_owned(), object.name().to_owned())
}

fn spec_of(object: &impl Serialize) -> Value {
    serde_json::to_value(object).map(|mut value| value["spec"].take()).unwrap_or_default()
}
