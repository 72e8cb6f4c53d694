//! What the reconciles of all kinds have in common: objects that are left alone or not valid, and when to look again.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::{Map, Value, json};

use super::context::Context;
use super::error::Error;
use super::report::{self, Ours};
use crate::api::PAUSED_ANNOTATION;
use crate::api::condition::{self, BROKER_CONNECTED, Condition, RESOLVED_REFS};
use crate::status::link::Link;
use crate::status::verdict::Verdict;

/// Secrets and Services are not watched: what is missing is looked for this often,
const UNRESOLVED: Duration = Duration::from_secs(20);

/// and what is there this often.
const RESOLVED: Duration = Duration::from_secs(300);

/// When to look again. Spread, so that objects that were applied together are not looked at together.
pub(super) fn again(unresolved: bool) -> Duration {
    let pause = if unresolved { UNRESOLVED } else { RESOLVED };
    pause.mul_f64(0.9 + fastrand::f64() / 5.0)
}

pub(super) fn is_paused<K: Ours>(object: &K) -> bool {
    object.annotations().get(PAUSED_ANNOTATION).is_some_and(|value| value == "true")
}

/// Nothing of the object is changed, whatever its spec says.
pub(super) async fn paused<K: Ours>(ctx: &Context, object: &K) -> Result<Duration, Error> {
    let mut verdict = Verdict::silent(object.meta().generation.unwrap_or(0), Timestamp::now());
    verdict.paused(true);
    let conditions = verdict.so_far();
    let kept = report::rejected(object.conditions(), &conditions);
    // What was observed is what was observed before the pause.
    keep(ctx, object, report::merged(object.conditions(), kept), None, &Map::new()).await?;
    Ok(again(false))
}

/// The last valid plan goes on. `also` of the status is known all the same.
pub(super) async fn rejected<K: Ours>(
    ctx: &Context,
    object: &K,
    reason: &'static str,
    message: &str,
    also: &Map<String, Value>,
) -> Result<Duration, Error> {
    let generation = object.meta().generation.unwrap_or(0);
    let conditions = Verdict::rejected(generation, Timestamp::now(), reason, message).finish(None, "Ready");
    let kept = report::rejected(object.conditions(), &conditions);
    keep(ctx, object, report::merged(object.conditions(), kept), Some(generation), also).await?;
    Ok(again(false))
}

/// Writes conditions, and everything else as it is.
async fn keep<K: Ours>(
    ctx: &Context,
    object: &K,
    conditions: Vec<Condition>,
    generation: Option<i64>,
    also: &Map<String, Value>,
) -> Result<(), Error> {
    let present = serde_json::to_value(object).map(|mut value| value["status"].take()).unwrap_or_default();
    let mut status = report::owned(&present);
    status.extend(also.clone());
    status.insert("conditions".to_owned(), json!(conditions));
    if let Some(generation) = generation {
        status.insert("observedGeneration".to_owned(), json!(generation));
    }
    report::write(ctx, object, &status, &conditions).await
}

/// What is said of the brokers. One that is about to connect is no news: what was known before is known still.
pub(super) fn brokers<K: Ours>(verdict: &mut Verdict, object: &K, links: &BTreeMap<String, Link>, unresolved: bool) {
    if unresolved {
        return verdict.brokers_unresolved();
    }
    let is_down = links.values().any(|link| matches!(link, Link::Down { .. } | Link::Mismatch(_)));
    let is_new = links.values().any(|link| *link == Link::Connecting);
    let before = condition::find(object.conditions(), BROKER_CONNECTED).filter(|before| before.reason != "Unresolved");
    match before {
        Some(before) if is_new && !is_down => verdict.as_before(before),
        _ => verdict.brokers(links.iter().map(|(store, link)| (store.as_str(), link.clone()))),
    }
}

/// Whether a reference was missing when the object was looked at last.
pub(super) fn was_unresolved<K: Ours>(object: &K) -> bool {
    condition::find(object.conditions(), RESOLVED_REFS).is_some_and(|condition| condition.status == "False")
}
