//! What is valid, and will not do what it seems to.

use std::time::Duration;

use super::world::{Named as _, World};
use super::{ForwarderPlan, IngressPlan, TargetPlan, compile};
use crate::api::ForwardingProcessor;
use crate::core::duration;

/// How long one attempt of a processor may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The store that it takes from.
    pub source: String,
    /// Its name.
    pub processor: String,
    /// Connect, and the wait for the answer.
    pub most: Duration,
}

impl Attempt {
    /// Of a plan. `None`: it passes messages on to a store, and another one makes the attempt.
    pub fn of_plan(plan: &ForwarderPlan) -> Option<Self> {
        let TargetPlan::Http(http) = &plan.target else { return None };
        let most = http.connect_timeout + http.timeout;
        Some(Self { source: plan.source.clone(), processor: plan.object.name.clone(), most })
    }

    fn of_object(object: &ForwardingProcessor) -> Option<Self> {
        let (spec, target) = (&object.spec, &object.spec.target);
        if target.store_ref.is_some() {
            return None;
        }
        let read = |text| compile::read_duration(text, "").ok();
        let most = read(&target.connect_timeout)? + read(&target.timeout)?;
        Some(Self { source: spec.store_ref.name.clone(), processor: object.name().to_owned(), most })
    }

    /// Of all processors of a namespace.
    pub fn all_in(world: &World<'_>, namespace: &str) -> Vec<Self> {
        world.processors_in(namespace).filter_map(Self::of_object).collect()
    }
}

/// A rule that makes its caller wait for less than the first attempt may take: what the target answers late, nobody
/// gets.
pub fn reply_too_short(route: &IngressPlan, attempts: &[Attempt]) -> Option<String> {
    route.rules.iter().find_map(|rule| {
        let patience = rule.reply_timeout?;
        let slow = attempts.iter().find(|attempt| attempt.source == rule.store && attempt.most > patience)?;
        Some(format!(
            "rule `{}` makes its caller wait for {}, and one attempt of ForwardingProcessor `{}` may take {}; raise \
             reply.timeout, or lower target.timeout and target.connectTimeout",
            rule.name,
            duration::format(patience),
            slow.processor,
            duration::format(slow.most)
        ))
    })
}
