//! Whether an object is valid among the others, and its plan if it is. Pure.

use crate::api::{ForwardingProcessor, IngressRoute, MessageStore};
use crate::plan::compile::{self, Environment};
use crate::plan::finding::{Finding, Reason};
use crate::plan::world::World;
use crate::plan::{Plan, StorePlan, validate};
use crate::status::verdict::Missing;

/// A condition's message is cut off by nobody, but read by people.
const MOST_FINDINGS: usize = 8;

/// See the module.
#[derive(Debug)]
pub(super) enum Judged<P> {
    /// It is, and this is what it means.
    Valid(P),
    /// The spec is wrong.
    Rejected { reason: &'static str, message: String },
    /// A store that it names is not there.
    Unresolved(Missing),
}

pub(super) fn store(object: &MessageStore, world: &World<'_>) -> Judged<StorePlan> {
    judged(validate::store(object, world), || compile::store(object))
}

pub(super) fn route(object: &IngressRoute, world: &World<'_>) -> Judged<Plan> {
    judged(validate::route(object, world), || compile::route(object, world).map(Plan::Ingress))
}

pub(super) fn processor(object: &ForwardingProcessor, world: &World<'_>) -> Judged<Plan> {
    let plan = || compile::processor(object, world, Environment::Cluster).map(Plan::Forwarder);
    judged(validate::processor(object, world), plan)
}

fn judged<P>(findings: Vec<Finding>, plan: impl FnOnce() -> Result<P, Finding>) -> Judged<P> {
    let findings = if findings.is_empty() {
        match plan() {
            Ok(plan) => return Judged::Valid(plan),
            Err(finding) => vec![finding],
        }
    } else {
        findings
    };
    let wrong: Vec<&Finding> = findings.iter().filter(|finding| finding.reason != Reason::NotFound).collect();
    if let Some(first) = wrong.first() {
        return Judged::Rejected { reason: first.reason.as_str(), message: lines(&wrong) };
    }
    let all: Vec<&Finding> = findings.iter().collect();
    Judged::Unresolved(Missing { reason: Reason::NotFound.as_str(), message: lines(&all) })
}

fn lines(findings: &[&Finding]) -> String {
    let mut lines: Vec<String> = findings.iter().take(MOST_FINDINGS).map(ToString::to_string).collect();
    if let Some(more) = findings.len().checked_sub(MOST_FINDINGS).filter(|more| *more > 0) {
        lines.push(format!("and {more} more; `stagepost check` names all"));
    }
    lines.join("\n")
}
