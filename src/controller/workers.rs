//! What routes and processors have in common: pods, and what they say.

use std::collections::BTreeMap;

use super::context::Context;
use super::error::Error;
use super::resources::Child;
use super::{apply, message_store};
use crate::plan::{ObjectName, Plan};
use crate::status::link::Link;

/// Makes the children, and removes what is none any more. Answers what stands in the way that only a human can remove.
pub(super) async fn make(
    ctx: &Context,
    owner: &ObjectName,
    children: Vec<Child>,
) -> Result<Option<(&'static str, String)>, Error> {
    let wanted: Vec<_> = children.iter().map(|child| (child.kind, child.name.clone())).collect();
    match apply::apply(ctx, owner, children).await {
        Ok(()) => apply::prune(ctx, owner, &wanted).await.map(|()| None),
        Err(error @ Error::NameConflict { .. }) => Ok(Some(("NameConflict", error.to_string()))),
        Err(error @ Error::Rejected { .. }) => Ok(Some(("WorkloadRejected", error.to_string()))),
        Err(error) => Err(error),
    }
}

/// How the broker of each store stands: as the object's own workers say; of an object that has none and wants none, as
/// others do.
pub(super) fn links(
    ctx: &Context,
    object: &ObjectName,
    plan: Option<&Plan>,
    wants_workers: bool,
) -> BTreeMap<String, Link> {
    let together = ctx.samples.of(object);
    let stores = plan.map(Plan::stores).into_iter().flatten();
    let link = |(name, plan): (&String, _)| match together.stores.get(name) {
        Some(report) => (name.clone(), report.link.clone()),
        // It will be asked as soon as it runs.
        None if wants_workers => (name.clone(), Link::Connecting),
        None => (name.clone(), message_store::link(ctx, &object.namespace, plan)),
    };
    stores.map(link).collect()
}

/// As the scale subresource wants it.
pub(super) fn selector_text(labels: &BTreeMap<&'static str, String>) -> String {
    let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join(",")
}
