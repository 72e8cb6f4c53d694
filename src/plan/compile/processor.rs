//! A ForwardingProcessor's plan.

use crate::api::ForwardingProcessor;
use crate::api::delivery::{
    FailureAction, OnFailure as ApiOnFailure, OutcomeEntry, Outcomes as ApiOutcomes, ResponseHandling, ResponseLog,
    Retry, WhileUnreachable as ApiWhileUnreachable, default_retry_outcomes, default_success_outcomes,
};
use crate::api::forwarding_processor::{Ordering, Poll};
use crate::api::target::{Target, TargetAuth, TargetHeaders, TargetTls};
use crate::core::breaker::BreakerPolicy;
use crate::core::decision::{OnFailure, Outcomes, Policy, WhileUnreachable};
use crate::core::outcome::OutcomeMatch;
use crate::core::rate::RateLimit;
use crate::core::retry::Backoff;
use crate::plan::finding::Finding;
use crate::plan::world::{Named, World};
use crate::plan::{
    AnswerLog, AnswerPlan, AuthPlan, ForwarderPlan, HttpTargetPlan, KeyRef, KeySource, OrderingPlan, PollPlan,
    SchedulePlan, TargetAddress, TargetPlan, TlsPlan,
};

use super::store::dead_letters_beside;
use super::{Environment, Stores, bounded, read_ca, read_duration, read_size, read_steps};

/// The plan of one processor.
pub fn processor(
    object: &ForwardingProcessor,
    world: &World<'_>,
    environment: Environment,
) -> Result<ForwarderPlan, Finding> {
    let spec = &object.spec;
    let mut stores = Stores::new(world, object.namespace());
    let source = stores.add(&spec.store_ref, "spec.storeRef.name")?;
    let target = target_plan(&spec.target, environment, &mut stores)?;
    let dead_letters = dead_letter_store(&spec.on_failure, &source, &mut stores)?;
    let response = answer_plan(&spec.response, &mut stores)?;
    bounded(ForwarderPlan {
        object: object.object_name(),
        source,
        target,
        ordering: match (spec.ordering, &spec.ordering_key) {
            (Ordering::Strict, _) => OrderingPlan::Strict,
            (Ordering::None, _) => OrderingPlan::None,
            (Ordering::PerKey, Some(key)) => OrderingPlan::PerKey(key.clone()),
            (Ordering::PerKey, None) => {
                return Err(Finding::invalid("spec.orderingKey", crate::api::cel::PER_KEY_WITHOUT_KEY.message));
            }
        },
        concurrency: spec.concurrency,
        // In a cluster pods are counted by the Deployment: a plan that changed with their number would restart them all.
        replicas: if environment == Environment::Cluster { 1 } else { spec.replicas() },
        poll: spec.poll.as_ref().map(poll_plan).transpose()?,
        rate_limit: spec.rate_limit.as_ref().map(rate_limit).transpose()?,
        transform: read_steps(&spec.transform, "spec.transform")?,
        policy: policy(&spec.retry, &spec.outcomes, &spec.on_failure)?,
        dead_letters,
        response,
        circuit_breaker: spec
            .circuit_breaker
            .as_ref()
            .map(|breaker| {
                let open_for = read_duration(&breaker.open_for, "spec.circuitBreaker.openFor")?;
                Ok(BreakerPolicy { failures: breaker.failures, open_for })
            })
            .transpose()?,
        stores: stores.plans,
    })
}

fn dead_letter_store(
    on_failure: &ApiOnFailure,
    source: &str,
    stores: &mut Stores<'_, '_>,
) -> Result<Option<String>, Finding> {
    if on_failure.action != FailureAction::DeadLetter {
        return Ok(None);
    }
    if let Some(reference) = &on_failure.dead_letter_store_ref {
        return stores.add(reference, "spec.onFailure.deadLetterStoreRef.name").map(Some);
    }
    let Some(beside) = stores.plans.get(source).and_then(dead_letters_beside) else {
        return Err(Finding::invalid(
            "spec.storeRef.name",
            format!("MessageStore `{source}` has no queue to take messages from; give it one, or name another store"),
        ));
    };
    let name = beside.name.clone();
    stores.plans.insert(name.clone(), beside);
    Ok(Some(name))
}

fn answer_plan(response: &ResponseHandling, stores: &mut Stores<'_, '_>) -> Result<AnswerPlan, Finding> {
    let store = response.store_ref.as_ref().map(|reference| stores.add(reference, "spec.response.storeRef.name"));
    Ok(AnswerPlan {
        log: match response.log {
            ResponseLog::None => AnswerLog::None,
            ResponseLog::Status => AnswerLog::Status,
            ResponseLog::Body => AnswerLog::Body,
        },
        store: store.transpose()?,
        max_body_size: read_size(&response.max_body_size, "spec.response.maxBodySize")?,
    })
}

fn target_plan(target: &Target, environment: Environment, stores: &mut Stores<'_, '_>) -> Result<TargetPlan, Finding> {
    let address = match (&target.url, &target.service_ref, &target.store_ref) {
        (Some(url), None, None) => TargetAddress::Url(url.clone()),
        (None, Some(service), None) => TargetAddress::Service {
            name: service.name.clone(),
            port: service.port,
            path: service.path.clone(),
            tls: target.tls.is_some(),
        },
        (None, None, Some(reference)) => {
            return stores.add(reference, "spec.target.storeRef.name").map(TargetPlan::Store);
        }
        _ => return Err(Finding::invalid("spec.target", crate::api::cel::TARGET_ONE.message)),
    };
    let TargetHeaders { set, remove } = target.headers.clone().unwrap_or_default();
    Ok(TargetPlan::Http(Box::new(HttpTargetPlan {
        address,
        method: Some(target.method.clone()).filter(|method| method != "Preserve"),
        append_path: target.append_path,
        connect_timeout: read_duration(&target.connect_timeout, "spec.target.connectTimeout")?,
        timeout: read_duration(&target.timeout, "spec.target.timeout")?,
        set_headers: set,
        remove_headers: remove,
        tls: target.tls.as_ref().map(tls_plan),
        auth: target.auth.as_ref().map(auth_plan).transpose()?,
        refuse_loopback: environment == Environment::Cluster,
    })))
}

fn tls_plan(tls: &TargetTls) -> TlsPlan {
    TlsPlan {
        ca: tls.ca_ref.as_ref().map(read_ca),
        client_cert_secret: tls.client_cert_secret_ref.as_ref().map(|secret| secret.name.clone()),
        server_name: tls.server_name.clone(),
    }
}

fn auth_plan(auth: &TargetAuth) -> Result<AuthPlan, Finding> {
    match (&auth.basic, &auth.bearer) {
        (Some(basic), None) => Ok(AuthPlan::Basic(basic.secret_ref.name.clone())),
        (None, Some(bearer)) => {
            let key = &bearer.secret_ref;
            Ok(AuthPlan::Bearer(KeyRef { source: KeySource::Secret, name: key.name.clone(), key: key.key.clone() }))
        }
        _ => Err(Finding::invalid("spec.target.auth", crate::api::cel::AUTH_ONE.message)),
    }
}

fn poll_plan(poll: &Poll) -> Result<PollPlan, Finding> {
    let schedule = match (&poll.interval, &poll.cron) {
        (Some(interval), None) => SchedulePlan::Interval(read_duration(interval, "spec.poll.interval")?),
        (None, Some(expression)) => {
            SchedulePlan::Cron { expression: expression.clone(), time_zone: poll.time_zone.clone() }
        }
        _ => return Err(Finding::invalid("spec.poll", crate::api::cel::POLL_ONE.message)),
    };
    Ok(PollPlan {
        schedule,
        // Only -1 is negative in a valid object: everything that is there.
        batch_size: u32::try_from(poll.batch_size).ok(),
        message_interval: read_duration(&poll.message_interval, "spec.poll.messageInterval")?,
    })
}

fn rate_limit(limit: &crate::api::delivery::RateLimit) -> Result<RateLimit, Finding> {
    let per = read_duration(&limit.per, "spec.rateLimit.per")?;
    Ok(RateLimit { requests: limit.requests, per, burst: limit.burst })
}

fn policy(retry: &Retry, lists: &ApiOutcomes, on_failure: &ApiOnFailure) -> Result<Policy, Finding> {
    Ok(Policy {
        outcomes: outcomes(lists)?,
        backoff: Backoff {
            interval: read_duration(&retry.interval, "spec.retry.interval")?,
            factor: retry.backoff_factor,
            max_interval: read_duration(&retry.max_interval, "spec.retry.maxInterval")?,
            jitter: retry.jitter,
        },
        // Only -1 is negative in a valid object: for ever.
        max_redeliveries: u32::try_from(retry.max_redeliveries).ok(),
        max_retry_after: read_duration(&retry.max_retry_after, "spec.retry.maxRetryAfter")?,
        while_unreachable: match retry.while_unreachable {
            ApiWhileUnreachable::Wait => WhileUnreachable::Wait,
            ApiWhileUnreachable::Count => WhileUnreachable::Count,
        },
        on_failure: match on_failure.action {
            FailureAction::DeadLetter => OnFailure::DeadLetter,
            FailureAction::Deactivate => OnFailure::Deactivate,
            FailureAction::Drop => OnFailure::Drop,
        },
    })
}

/// Reads the lists. An entry that the user put into another list leaves a list that has its default.
///
/// A list counts as written by the user if it differs from its default: the API server fills defaults in, so the
/// two cannot be told apart otherwise.
fn outcomes(lists: &ApiOutcomes) -> Result<Outcomes, Finding> {
    let read = |name: &str, list: &[OutcomeEntry]| -> Result<Vec<OutcomeMatch>, Finding> {
        let entry = |(at, entry): (usize, &OutcomeEntry)| {
            let path = format!("spec.outcomes.{name}[{at}]");
            entry.to_string().parse().map_err(|error| Finding::invalid(path, format!("{error}")))
        };
        list.iter().enumerate().map(entry).collect()
    };
    let mut success = read("success", &lists.success)?;
    let mut retry = read("retry", &lists.retry)?;
    let fail = read("fail", &lists.fail)?;
    let deactivate = read("deactivate", &lists.deactivate)?;
    let retry_is_default = lists.retry == default_retry_outcomes();
    if lists.success == default_success_outcomes() {
        let written = if retry_is_default { Vec::new() } else { retry.clone() };
        success.retain(|entry| ![&written, &fail, &deactivate].iter().any(|list| list.contains(entry)));
    }
    if retry_is_default {
        retry.retain(|entry| ![&success, &fail, &deactivate].iter().any(|list| list.contains(entry)));
    }
    Ok(Outcomes { success, retry, fail, deactivate })
}
