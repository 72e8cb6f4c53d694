//! An IngressRoute's plan.

use std::collections::BTreeMap;

use crate::api::IngressRoute;
use crate::api::ingress_route::{BodyType, CallerCredentials, IngressLimits, Rule};
use crate::plan::finding::Finding;
use crate::plan::world::{Named, World};
use crate::plan::{BodyKind, IngressPlan, Limits, ResponsePlan, RulePlan};

use super::{Stores, bounded, read_duration, read_size, read_steps};

/// The plan of one route.
pub fn route(object: &IngressRoute, world: &World<'_>) -> Result<IngressPlan, Finding> {
    let mut stores = Stores::new(world, object.namespace());
    let mut rules = Vec::with_capacity(object.spec.rules.len());
    for (at, rule) in object.spec.rules.iter().enumerate() {
        rules.push(rule_plan(rule, &format!("spec.rules[{at}]"), &mut stores)?);
    }
    bounded(IngressPlan {
        object: object.object_name(),
        rules,
        limits: limits(&object.spec.limits)?,
        stores: stores.plans,
    })
}

fn rule_plan(rule: &Rule, path: &str, stores: &mut Stores<'_, '_>) -> Result<RulePlan, Finding> {
    let answer = |status, headers: &BTreeMap<String, String>, body: Option<String>| ResponsePlan {
        status,
        headers: headers.clone(),
        body,
    };
    let response = &rule.response;
    let timeout =
        |reply: &crate::api::ingress_route::Reply| read_duration(&reply.timeout, &format!("{path}.reply.timeout"));
    Ok(RulePlan {
        name: rule.name.clone(),
        path: rule.path.clone(),
        methods: rule.methods.iter().map(|method| method.to_ascii_uppercase()).collect(),
        when: rule.when.clone(),
        consumes: rule.consumes.iter().map(|media_type| media_type.to_ascii_lowercase()).collect(),
        body: match rule.body {
            BodyType::Any => BodyKind::Any,
            BodyType::Json => BodyKind::Json,
        },
        schema: rule.schema.as_ref().map(|schema| serde_json::Value::Object(schema.0.clone())),
        forward_credentials: rule.caller_credentials == CallerCredentials::Forward,
        store: stores.add(&rule.store_ref, &format!("{path}.storeRef.name"))?,
        routing_key: rule.routing_key.clone(),
        transform: read_steps(&rule.transform, &format!("{path}.transform"))?,
        reply_timeout: rule.reply.as_ref().map(timeout).transpose()?,
        accepted: {
            let answer_body = Some(response.accepted.body.clone()).filter(|body| !body.is_empty());
            answer(response.accepted.status, &response.accepted.headers, answer_body)
        },
        invalid: answer(response.invalid.status, &response.invalid.headers, response.invalid.body.clone()),
        store_failed: answer(
            response.store_failed.status,
            &response.store_failed.headers,
            response.store_failed.body.clone(),
        ),
    })
}

fn limits(limits: &IngressLimits) -> Result<Limits, Finding> {
    Ok(Limits {
        max_body_size: read_size(&limits.max_body_size, "spec.limits.maxBodySize")?,
        max_header_size: read_size(&limits.max_header_size, "spec.limits.maxHeaderSize")?,
        read_timeout: read_duration(&limits.read_timeout, "spec.limits.readTimeout")?,
        max_in_flight: limits.max_in_flight,
        max_in_flight_bytes: read_size(&limits.max_in_flight_bytes, "spec.limits.maxInFlightBytes")?,
        max_connections: limits.max_connections,
    })
}
