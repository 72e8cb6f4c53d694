//! What the rules make of a request, for whoever wants to see it: without a listener, without a store.
//!
//! Every step is the handler's own; only the admission by what else is in flight is missing, and the publish.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as Wake, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use hyper::body::Body as _;

use super::handler::{Prepared, check_head, check_size, choose, prepare};
use super::problem::Answer;
use super::received::Received;
use super::refusal::{Place, Refusal, Why};
use super::routes::{RouteError, RouteTable, Rule, media_type};
use crate::core::message::Message;
use crate::plan::IngressPlan;

/// Routes that are only looked at.
#[derive(Debug)]
pub struct Preview(RouteTable);

/// A rule, by the names of its route and its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleName {
    /// `<namespace>/<name>` of the IngressRoute.
    pub route: String,
    /// The rule's name.
    pub rule: String,
}

/// What became of a request.
#[derive(Debug)]
pub struct Previewed {
    /// The rules that were looked at before, in order.
    pub passed_over: Vec<PassedOver>,
    /// What the rule that took it makes of it, or why there is none.
    pub outcome: Result<Taken, Refused>,
}

/// A rule that does not take the request.
#[derive(Debug)]
pub struct PassedOver {
    /// The rule.
    pub rule: RuleName,
    /// What of it does not match.
    pub field: &'static str,
    /// Why.
    pub why: String,
}

/// A request that would be stored.
#[derive(Debug)]
pub struct Taken {
    /// By which rule.
    pub rule: RuleName,
    /// The name of the store.
    pub store: String,
    /// The rule's routing key, if it has one.
    pub routing_key: Option<String>,
    /// What would be stored.
    pub message: Message,
    /// The answer to the caller, once it is; not with `reply`.
    pub answer: Response<Bytes>,
    /// The caller waits so long for the target's answer, and gets that.
    pub reply: Option<Duration>,
}

/// A request that would not be stored.
#[derive(Debug)]
pub struct Refused {
    /// The rule that refuses it, and which of its fields; absent if no rule takes it.
    pub by: Option<(RuleName, String)>,
    /// Why, with the place in the template.
    pub reason: String,
    /// The answer to the caller.
    pub answer: Response<Bytes>,
}

impl Preview {
    /// Compiles routes as if they shared a listener.
    pub fn of(plans: Vec<IngressPlan>) -> Result<Self, RouteError> {
        RouteTable::without_stores(plans).map(Self)
    }

    /// What becomes of a request.
    pub fn request(&self, request: Request<Bytes>) -> Previewed {
        let (parts, body) = request.into_parts();
        let found = check_head(&parts).and_then(|()| {
            self.0.find(&parts.method, parts.uri.path(), &parts.headers).map_err(|none| none.refusal().0)
        });
        // An earlier rule may have a word in it, so all are looked at with the request as it is.
        let mut received = Received::new(parts, body);
        let chosen = found.and_then(|candidates| {
            check_size(&candidates[0].route, &received.parts, Some(received.body.len() as u64))?;
            choose(&candidates, &mut received)
        });
        let (passed_over, outcome) = match chosen {
            Ok(rule) => (self.before(Some(&rule), &mut received), prepare(rule, received)),
            Err(refusal) => {
                let by = refusal.why.place.as_ref().map(|place| place.rule.clone());
                (self.before(by.as_ref(), &mut received), Err(refusal))
            }
        };
        Previewed { passed_over, outcome: outcome.map(Taken::from).map_err(Refused::from) }
    }

    /// The rules before `end`, and why each does not take the request.
    fn before(&self, end: Option<&Arc<Rule>>, received: &mut Received) -> Vec<PassedOver> {
        let before = self.0.rules.iter().take_while(|rule| end.is_none_or(|end| !Arc::ptr_eq(end, rule)));
        before
            .filter_map(|rule| {
                let (field, why) = objection(rule, received)?;
                Some(PassedOver { rule: RuleName::of(rule), field, why })
            })
            .collect()
    }
}

/// The first thing of a rule that does not match.
fn objection(rule: &Arc<Rule>, received: &mut Received) -> Option<(&'static str, String)> {
    let Parts { method, uri, headers, .. } = &received.parts;
    if rule.pattern.matches(uri.path()).is_none() {
        return Some(("path", format!("`{}` does not match", rule.pattern)));
    }
    if !rule.methods.contains(method) {
        let methods: Vec<&str> = rule.methods.iter().map(http::Method::as_str).collect();
        return Some(("methods", format!("{} is not {method}", methods.join(", "))));
    }
    let sent = media_type(headers);
    if !rule.takes(sent) {
        let sent = sent.unwrap_or("a request without Content-Type");
        return Some(("consumes", format!("{} does not take {sent}", rule.consumes.join(", "))));
    }
    let view = rule.when.is_some().then(|| received.view(rule))?;
    rule.when.as_ref()?.objection(&view).map(|why| ("when", why))
}

impl RuleName {
    fn of(rule: &Rule) -> Self {
        let route = rule.route.name.clone();
        // The label is the route's name, a slash, and the rule's.
        let own = rule.label.strip_prefix(&route).and_then(|rest| rest.strip_prefix('/'));
        Self { rule: own.unwrap_or(&rule.label).to_owned(), route }
    }
}

impl From<Prepared> for Taken {
    fn from(prepared: Prepared) -> Self {
        let Prepared { rule, message, routing_key, accepted, .. } = prepared;
        Self {
            rule: RuleName::of(&rule),
            store: rule.store.clone(),
            routing_key,
            message,
            answer: with_bytes(accepted),
            reply: rule.reply,
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let Why { reason, place } = *refusal.why;
        let by = place.map(|Place { rule, field }| (RuleName::of(&rule), field));
        Self { by, reason, answer: with_bytes(*refusal.answer) }
    }
}

/// The answer with its body as it is: complete, and in one piece.
fn with_bytes(answer: Answer) -> Response<Bytes> {
    answer.map(|body| match pin!(body).poll_frame(&mut Wake::from_waker(Waker::noop())) {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        _ => Bytes::new(),
    })
}
