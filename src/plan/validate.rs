//! Whether objects are valid: alone, and among the others.
//!
//! Inputs: values (from files) or typed objects (from the API server). Outputs: every [`Finding`] at once. The same
//! rules serve `stagepost check`, `stagepost run` and the controller.

use std::sync::LazyLock;

use serde::Serialize;
use serde_json::{Value, json};

use super::finding::Finding;
use super::rules::{between, cel, object};
use super::schema;
use super::world::World;
use crate::api::{self, ForwardingProcessor, IngressRoute, MessageStore};

/// The kinds of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `MessageStore`
    MessageStore,
    /// `IngressRoute`
    IngressRoute,
    /// `ForwardingProcessor`
    ForwardingProcessor,
}

static SCHEMAS: LazyLock<[Value; 3]> = LazyLock::new(|| {
    Kind::ALL.map(|kind| {
        let mut schema = api::schema(kind.as_str()).unwrap_or_default();
        if let Some(fields) = schema["properties"].as_object_mut() {
            fields.remove("status");
            // What every object has stands in no schema of a custom resource.
            for name in ["apiVersion", "kind", "metadata"] {
                fields.insert(name.to_owned(), json!({}));
            }
        }
        schema
    })
});

impl Kind {
    /// In the order in which data flows back: what is named comes first.
    pub const ALL: [Self; 3] = [Self::MessageStore, Self::IngressRoute, Self::ForwardingProcessor];

    /// The name, as in `kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MessageStore => "MessageStore",
            Self::IngressRoute => "IngressRoute",
            Self::ForwardingProcessor => "ForwardingProcessor",
        }
    }

    fn schema(self) -> &'static Value {
        &SCHEMAS[self as usize]
    }
}

/// Applies defaults and checks an object against the schema of its kind and the CEL rules in it. Unknown fields are
/// taken out. The status is not looked at: it is not the user's.
pub(super) fn shape(kind: Kind, value: &mut Value, findings: &mut Vec<Finding>) {
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    schema::apply_defaults(kind.schema(), value);
    schema::check(kind.schema(), value, "", findings);
}

/// What must not change from one version of an object to the next.
pub fn immutable<K: Serialize>(kind: Kind, old: &K, new: &K) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let (Ok(old), Ok(new)) = (serde_json::to_value(old), serde_json::to_value(new)) {
        cel::check_change(kind.schema(), &old, &new, "", &mut findings);
    }
    findings
}

/// Everything that is wrong with a store among the others.
pub fn store(store: &MessageStore, world: &World<'_>) -> Vec<Finding> {
    let mut findings = typed(Kind::MessageStore, store);
    object::check_store(store, &mut findings);
    between::check_store(store, world, &mut findings);
    findings
}

/// Everything that is wrong with a route among the others.
pub fn route(route: &IngressRoute, world: &World<'_>) -> Vec<Finding> {
    let mut findings = typed(Kind::IngressRoute, route);
    object::check_route(route, &mut findings);
    between::check_route(route, world, &mut findings);
    findings
}

/// Everything that is wrong with a processor among the others.
pub fn processor(processor: &ForwardingProcessor, world: &World<'_>) -> Vec<Finding> {
    let mut findings = typed(Kind::ForwardingProcessor, processor);
    object::check_processor(processor, &mut findings);
    between::check_processor(processor, world, &mut findings);
    findings
}

fn typed<K: Serialize>(kind: Kind, object: &K) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Ok(mut value) = serde_json::to_value(object) {
        shape(kind, &mut value, &mut findings);
    }
    findings
}
