//! From valid objects to plans. Every reference is resolved here; what cannot be is a [`Finding`].
//!
//! Inputs: objects that [`validate`](super::validate) has passed. Compiling one that it has not is refused where it
//! matters, but says less.

mod processor;
mod route;
mod store;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::api::shared::{CaKind, CaRef, DurationText, Size, StoreRef};
use crate::api::transform::{LogLevel as ApiLogLevel, TransformStep};
use crate::core::{duration, quantity};
use crate::expression::{LogLevel, Step};
use crate::plan::finding::{Finding, Reason};
use crate::plan::world::{Named, World};
use crate::plan::{KeyRef, KeySource, MAX_PLAN_BYTES, StorePlan};

pub use processor::processor;
pub use route::route;
pub use store::{dead_letter_store_name, store};

/// Where plans will run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// In pods: loopback addresses are refused as targets.
    Cluster,
    /// In one process on somebody's machine.
    Local,
}

pub(super) fn read_duration(text: &DurationText, path: &str) -> Result<Duration, Finding> {
    duration::parse(&text.0).map_err(|error| Finding::invalid(path, error.to_string()))
}

fn read_size(size: &Size, path: &str) -> Result<u64, Finding> {
    quantity::parse(&size.to_string()).map_err(|error| Finding::invalid(path, error.to_string()))
}

fn read_ca(ca: &CaRef) -> KeyRef {
    let source = match ca.kind {
        CaKind::Secret => KeySource::Secret,
        CaKind::ConfigMap => KeySource::ConfigMap,
    };
    KeyRef { source, name: ca.name.clone(), key: ca.key.clone() }
}

fn read_steps(steps: &[TransformStep], path: &str) -> Result<Vec<Step>, Finding> {
    let read = |(at, step): (usize, &TransformStep)| {
        Ok(match step {
            TransformStep { set_header: Some(set), .. } => {
                Step::SetHeader { name: set.name.clone(), value: set.value.clone() }
            }
            TransformStep { remove_header: Some(remove), .. } => Step::RemoveHeader { name: remove.name.clone() },
            TransformStep { set_body: Some(set), .. } => Step::SetBody { template: set.template.clone() },
            TransformStep { filter: Some(filter), .. } => Step::Filter { when: filter.when.clone() },
            TransformStep { log: Some(log), .. } => {
                let level = match log.level {
                    ApiLogLevel::Debug => LogLevel::Debug,
                    ApiLogLevel::Info => LogLevel::Info,
                    ApiLogLevel::Warn => LogLevel::Warn,
                    ApiLogLevel::Error => LogLevel::Error,
                };
                Step::Log { template: log.template.clone(), level }
            }
            _ => return Err(Finding::invalid(format!("{path}[{at}]"), crate::api::cel::STEP_ONE.message)),
        })
    };
    steps.iter().enumerate().map(read).collect()
}

/// The stores of one plan, collected as they are named.
struct Stores<'w, 'a> {
    world: &'w World<'a>,
    namespace: &'w str,
    plans: BTreeMap<String, StorePlan>,
}

impl<'w, 'a> Stores<'w, 'a> {
    fn new(world: &'w World<'a>, namespace: &'w str) -> Self {
        Self { world, namespace, plans: BTreeMap::new() }
    }

    /// Adds a store and, for publishing, its chain of failover stores; returns its name.
    fn add(&mut self, reference: &StoreRef, path: &str) -> Result<String, Finding> {
        let mut next = Some((reference.name.clone(), path.to_owned()));
        while let Some((name, path)) = next.take() {
            if self.plans.contains_key(&name) {
                break;
            }
            let found = self.world.store(self.namespace, &name);
            let found = found.ok_or_else(|| store_not_found(self.world, self.namespace, &name, &path))?;
            let plan = store(found).map_err(|finding| {
                Finding::not_found(&path, format!("MessageStore `{name}` is not valid ({finding}); repair it"))
            })?;
            next = plan.failover.clone().map(|failover| (failover, path));
            self.plans.insert(name, plan);
        }
        Ok(reference.name.clone())
    }
}

/// What is said of a store that is not there.
pub(super) fn store_not_found(world: &World<'_>, namespace: &str, name: &str, path: &str) -> Finding {
    let names: Vec<&str> = world.stores_in(namespace).map(Named::name).collect();
    let hint = match super::suggest::nearest(name, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if names.is_empty() => "create it".to_owned(),
        None => "create it, or correct the name".to_owned(),
    };
    Finding::not_found(path, format!("there is no MessageStore `{name}` in namespace `{namespace}`; {hint}"))
}

/// Refuses what does not fit into a `ConfigMap`.
fn bounded<P: Serialize>(plan: P) -> Result<P, Finding> {
    let size = serde_json::to_vec(&plan).map_or(usize::MAX, |json| json.len());
    if size <= MAX_PLAN_BYTES {
        return Ok(plan);
    }
    Err(Finding {
        path: "spec".to_owned(),
        message: format!(
            "the plan has {} KiB and must fit into a ConfigMap with {} KiB; split the object, or shorten its templates and schemas",
            size / 1024,
            MAX_PLAN_BYTES / 1024
        ),
        reason: Reason::PlanTooLarge,
    })
}
