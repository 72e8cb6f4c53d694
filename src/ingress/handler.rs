//! One request: from its head to its answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Request, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use tokio_util::task::TaskTracker;

use super::admission::{self, BodyError, Permit};
use super::headers::joined;
use super::no_rule::not_found;
use super::problem::{Answer, answer, bad_request};
use super::publication::{Accounting, Publication, name_message};
use super::received::{Received, Untransformed};
use super::refusal::{Place, Refusal};
use super::routes::{Route, RouteTable, Rule};
use crate::core::matching::check_path;
use crate::core::message::{MAX_BODY_BYTES, Message};
use crate::core::problem::Problem;
use crate::expression::Context;

const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// Longest routing key, in bytes: what AMQP can carry.
const MAX_ROUTING_KEY: usize = 255;

/// Most header lines of an HTTP/1 request. On HTTP/2, where a cookie may be many fields, the size alone counts.
const MAX_HEADERS: usize = 100;

/// The longest body of a refused request for whose sake a connection is not closed, in bytes: hyper throws away what
/// has arrived of it, and closes by itself if that was not all.
const THROWN_AWAY: u64 = 16 * 1024;

/// What all requests of a listener share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) routes: Arc<ArcSwap<RouteTable>>,
    /// Set while the listener is about to close: answers then ask the client to connect anew, elsewhere.
    pub(super) draining: AtomicBool,
    /// Everything that must end before the process may.
    pub(super) tasks: TaskTracker,
}

/// Answers one request.
pub(super) async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let version = request.version();
    let (parts, body) = request.into_parts();
    let (mut answer, close) = match respond(&shared, parts, body).await {
        Ok(answer) => (answer, false),
        Err(refusal) => (*refusal.answer, refusal.close),
    };
    // HTTP/2 has no such header; its connections are told by GOAWAY.
    if version < Version::HTTP_2 && (close || shared.draining.load(Ordering::Relaxed)) {
        answer.headers_mut().insert(header::CONNECTION, CLOSE);
    }
    Ok(answer)
}

async fn respond(shared: &Shared, parts: Parts, body: Incoming) -> Result<Answer, Refusal> {
    let table = shared.routes.load_full();
    // Refused by its head, a request with a long body ends its connection; a short one mostly came with the head.
    let is_long = body.size_hint().exact().is_none_or(|length| length > THROWN_AWAY);
    if let Err(refusal) = check_head(&parts).map_err(|refusal| refusal.closing_if(is_long)) {
        if let Some(route) = table.only_route() {
            refusal.count(Accounting::of(route));
        }
        return Err(refusal);
    }
    let candidates = match table.find(&parts.method, parts.uri.path(), &parts.headers) {
        Ok(candidates) => candidates,
        Err(none) => {
            let (refusal, route) = none.refusal();
            let refusal = refusal.closing_if(is_long);
            if let Some(route) = &route {
                refusal.count(Accounting::of(route));
            }
            return Err(refusal);
        }
    };
    let route = candidates[0].route.clone();
    let accounting = Accounting::of(&route);
    let taken = match take_body(&route, &parts, body).await {
        Ok((body, permit)) => {
            let mut received = Received::new(parts, body);
            choose(&candidates, &mut received).and_then(|rule| prepare(rule, received)).map(|it| (it, permit))
        }
        Err(refusal) => Err(refusal),
    };
    match taken {
        Ok((prepared, permit)) => {
            drop(candidates);
            Ok(prepared.publication(accounting, permit).carry_out(&shared.tasks).await)
        }
        Err(refusal) => {
            refusal.count(accounting);
            Err(refusal)
        }
    }
}

/// What is wrong with a request whatever the rules say.
pub(super) fn check_head(parts: &Parts) -> Result<(), Refusal> {
    if parts.version < Version::HTTP_2 {
        check_framing(parts)?;
    }
    let path = parts.uri.path();
    if path == "*" {
        return Err(not_found("`*` is not a resource here").into());
    }
    check_path(path).map_err(|reason| {
        Refusal::closing(&bad_request(
            format!("the path is refused: {reason}"),
            "send the path in its plain form, as the target should see it",
        ))
    })
}

/// What another program on the way could have read differently than hyper did.
fn check_framing(parts: &Parts) -> Result<(), Refusal> {
    let mut codings = parts.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"))
    {
        let detail = "Transfer-Encoding may only be `chunked`";
        return Err(Refusal::closing(&bad_request(detail, "send the body with Content-Length, or chunked")));
    }
    let hosts = parts.headers.get_all(header::HOST).iter().count();
    if hosts > 1 || (hosts == 0 && parts.version == Version::HTTP_11) {
        return Err(Refusal::closing(&bad_request("exactly one Host header is needed", "send one Host header")));
    }
    Ok(())
}

/// Admits the request by its head, then reads its body.
async fn take_body(route: &Arc<Route>, parts: &Parts, body: Incoming) -> Result<(Bytes, Permit), Refusal> {
    let limits = &route.limits;
    let announced = body.size_hint().exact();
    check_size(route, parts, announced)?;
    let reserved = announced.unwrap_or(limits.max_body_size);
    let overloaded = || Refusal::overloaded().closing_if(reserved > THROWN_AWAY);
    let mut permit = route.budget.admit(reserved).ok_or_else(overloaded)?;
    let body = admission::read(body, limits.max_body_size, limits.read_timeout).await;
    let body = body.map_err(|error| body_refused(error, route))?;
    permit.shrink(body.len() as u64);
    Ok((body, permit))
}

/// What is too large is refused before its body is read.
pub(super) fn check_size(route: &Route, parts: &Parts, announced: Option<u64>) -> Result<(), Refusal> {
    check_head_size(parts, route.limits.max_header_size)?;
    if announced.is_some_and(|length| length > route.limits.max_body_size) {
        return Err(body_refused(BodyError::TooLarge, route));
    }
    Ok(())
}

/// The listener has let through a little more than its largest limit allows.
fn check_head_size(parts: &Parts, most: u64) -> Result<(), Refusal> {
    let refused = |detail, remedy| {
        let (kind, title) = ("headers-too-large", "Headers too large");
        let problem = Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, kind, title, detail, remedy);
        Err(Refusal::closing(&problem))
    };
    if head_size(parts) > most {
        let detail = format!("the head of the request is larger than {most} bytes");
        return refused(detail, "send fewer or shorter headers, or raise limits.maxHeaderSize");
    }
    if parts.version < Version::HTTP_2 && parts.headers.len() > MAX_HEADERS {
        return refused(format!("the request has more than {MAX_HEADERS} header lines"), "send fewer headers");
    }
    Ok(())
}

/// In each case the rest of the body is not read, so the connection cannot go on.
fn body_refused(error: BodyError, route: &Route) -> Refusal {
    Refusal::closing(&match error {
        BodyError::TooLarge => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body-too-large",
            "Body too large",
            format!("the body is larger than {} bytes", route.limits.max_body_size),
            "send less, or raise limits.maxBodySize",
        ),
        BodyError::TimedOut => Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "body-timeout",
            "Request timeout",
            format!("the body was not complete within {:?}", route.limits.read_timeout),
            "send faster, or raise limits.readTimeout",
        ),
        BodyError::Broken => bad_request("the body was cut off or is framed wrongly", "send the request again"),
    })
}

/// Bytes of the head: the request line and each header line.
fn head_size(parts: &Parts) -> u64 {
    let target = parts.uri.path_and_query().map_or(1, |target| target.as_str().len());
    let lines: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    (parts.method.as_str().len() + target + lines + 14) as u64
}

/// The first candidate that takes the request. A body that its rule cannot read is refused before `when` is asked;
/// the schema is that of the rule which takes it, so rules told apart by `when` can each have their own.
pub(super) fn choose(candidates: &[&Arc<Rule>], received: &mut Received) -> Result<Arc<Rule>, Refusal> {
    for rule in candidates {
        if rule.json {
            check_json(rule, received)?;
        }
        if let Some(when) = &rule.when {
            let holds = when.evaluate_in(&received.view(rule));
            let failed = |error| failure(rule, received, "when", &format!("the rule's condition failed: {error}"));
            if !holds.map_err(failed)? {
                continue;
            }
        }
        check_schema(rule, received)?;
        return Ok((*rule).clone());
    }
    Err(not_found("no rule of this path takes this request").into())
}

/// The body must be JSON, and must not be compressed: it is never unpacked here.
fn check_json(rule: &Arc<Rule>, received: &mut Received) -> Result<(), Refusal> {
    if let Some(encoding) = joined(&received.parts.headers, &header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        let problem = Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-content-encoding",
            "Unsupported content encoding",
            "this rule reads the body, and reads it only without Content-Encoding",
            "send the body unpacked",
        );
        return Err(Refusal::by_rule(place(rule, "body"), &problem, answer(&problem)));
    }
    received.is_json().map_err(|error| {
        let problem = Problem::new(
            StatusCode::BAD_REQUEST,
            "malformed-json",
            "Malformed JSON",
            format!("the body is not JSON: {error}"),
            "send well-formed JSON",
        );
        invalid(rule, received, "body", &problem)
    })
}

fn check_schema(rule: &Arc<Rule>, received: &mut Received) -> Result<(), Refusal> {
    let Some(schema) = &rule.schema else { return Ok(()) };
    let checked = schema.check(&received.body);
    let violations = checked.map_err(|error| {
        failure(rule, received, "schema", &format!("the body cannot be held against the schema: {error}"))
    })?;
    if violations.is_empty() {
        return Ok(());
    }
    let listed: Vec<_> =
        violations.iter().map(|violation| format!("`{}`: {}", violation.path, violation.message)).collect();
    let problem = Problem::new(
        StatusCode::BAD_REQUEST,
        "schema-violation",
        "Schema violation",
        format!("the body does not follow the schema of its rule: {}", listed.join("; ")),
        "correct the listed places",
    );
    Err(invalid(rule, received, "schema", &problem.with_violations(violations)))
}

fn place(rule: &Arc<Rule>, field: impl Into<String>) -> Place {
    Place { rule: rule.clone(), field: field.into() }
}

/// The answer that the rule gives to what it cannot take.
fn invalid(rule: &Arc<Rule>, received: &mut Received, field: &str, problem: &Problem) -> Refusal {
    let view = rule.invalid.is_dynamic().then(|| received.view(rule));
    Refusal::by_rule(place(rule, field), problem, rule.invalid.failure(problem, view.as_ref()))
}

/// An expression of the rule has failed on this request.
fn failure(rule: &Arc<Rule>, received: &mut Received, field: &str, detail: &str) -> Refusal {
    let problem = Problem::new(
        StatusCode::BAD_REQUEST,
        "not-processable",
        "Not processable",
        detail,
        "send what the rule's expressions need, or have them handle its absence with `default()`",
    );
    invalid(rule, received, field, &problem)
}

/// A request of which everything was checked and rendered, and nothing is stored yet.
pub(super) struct Prepared {
    pub(super) rule: Arc<Rule>,
    pub(super) message: Message,
    pub(super) routing_key: Option<String>,
    pub(super) accepted: Answer,
    view: Option<Context>,
}

impl Prepared {
    fn publication(self, accounting: Accounting, permit: Permit) -> Publication {
        let Self { rule, message, routing_key, accepted, view } = self;
        Publication { rule, message: Arc::new(message), routing_key, accepted, view, accounting, permit }
    }
}

/// Renders what depends on the request and makes its message.
pub(super) fn prepare(rule: Arc<Rule>, mut received: Received) -> Result<Prepared, Refusal> {
    const KEY: &str = "routingKey";
    let view = rule.has_expressions().then(|| received.view(&rule));
    let routing_key = match &rule.routing_key {
        None => None,
        Some(template) => {
            let rendered = template.render(view.as_ref());
            let failed = |error| failure(&rule, &mut received, KEY, &format!("the routing key failed: {error}"));
            let key = rendered.map_err(failed)?.into_owned();
            if key.len() > MAX_ROUTING_KEY {
                let detail = format!("the routing key has {} bytes; at most {MAX_ROUTING_KEY} are allowed", key.len());
                return Err(failure(&rule, &mut received, KEY, &detail));
            }
            Some(key)
        }
    };
    let failed =
        |error| failure(&rule, &mut received, "response.accepted", &format!("the answer's template failed: {error}"));
    let mut accepted = rule.accepted.success(view.as_ref()).map_err(failed)?;
    name_message(&mut accepted, &received.id);
    let invalid_view = (rule.transform.is_some() && rule.invalid.is_dynamic()).then(|| received.view(&rule));
    let message = received.into_message(&rule).map_err(|Untransformed { field, error }| {
        let problem = Problem::new(
            StatusCode::BAD_REQUEST,
            "not-processable",
            "Not processable",
            error,
            "send what the rule's transform needs, or have it handle its absence with `default()`",
        );
        Refusal::by_rule(place(&rule, field), &problem, rule.invalid.failure(&problem, invalid_view.as_ref()))
    })?;
    if message.body.len() > MAX_BODY_BYTES {
        let detail =
            format!("transformed, the body has {} bytes; at most {MAX_BODY_BYTES} can be stored", message.body.len());
        let problem = bad_request(detail, "send less");
        return Err(Refusal::by_rule(place(&rule, "transform"), &problem, answer(&problem)));
    }
    // Kept only where it is still needed: it holds the parsed body.
    let view = view.filter(|_| rule.store_failed.is_dynamic());
    Ok(Prepared { rule, message, routing_key, accepted, view })
}
