//! One request: from its head to its answer.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Request, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use jiff::Timestamp;
use serde::de::IgnoredAny;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::admission::{self, BodyError, Permit};
use super::headers::{joined, stored};
use super::problem::{Answer, Problem};
use super::routes::{Route, RouteTable, Rule, not_found};
use crate::core::matching::check_path;
use crate::core::message::{Message, MessageId, Origin};
use crate::store::PublishError;

const MESSAGE_ID: HeaderName = HeaderName::from_static("stagepost-message-id");
const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// What all requests of a listener share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) routes: Arc<ArcSwap<RouteTable>>,
    /// Set while the listener is about to close: answers then ask the client to connect anew, elsewhere.
    pub(super) draining: AtomicBool,
    /// Everything that must end before the process may.
    pub(super) tasks: TaskTracker,
}

/// An answer that is not a success, and whether the connection can go on after it.
struct Refusal {
    answer: Answer,
    close: bool,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self { answer: problem.answer(), close: false }
    }
}

impl Refusal {
    fn closing(problem: &Problem) -> Self {
        Self { answer: problem.answer(), close: true }
    }
}

/// Answers one request.
pub(super) async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let version = request.version();
    let (parts, body) = request.into_parts();
    let (mut answer, close) = match respond(&shared, parts, body).await {
        Ok(answer) => (answer, false),
        Err(refusal) => (refusal.answer, refusal.close),
    };
    // HTTP/2 has no such header; its connections are told by GOAWAY.
    if version < Version::HTTP_2 && (close || shared.draining.load(Ordering::Relaxed)) {
        answer.headers_mut().insert(header::CONNECTION, CLOSE);
    }
    Ok(answer)
}

async fn respond(shared: &Shared, parts: Parts, body: Incoming) -> Result<Answer, Refusal> {
    let table = shared.routes.load_full();
    let unattributed = |refusal: Refusal| {
        if let Some(route) = table.only_route() {
            Accounting::of(route).rejected(refusal.answer.status());
        }
        refusal
    };
    check_head(&parts).map_err(unattributed)?;
    let candidates = match table.find(&parts.method, parts.uri.path(), &parts.headers) {
        Ok(candidates) => candidates,
        Err(none) => {
            let mut answer = none.problem.answer();
            if let Some((name, value)) = none.header {
                answer.headers_mut().insert(name, value);
            }
            if let Some(route) = &none.route {
                Accounting::of(route).rejected(answer.status());
            }
            return Err(Refusal { answer, close: false });
        }
    };
    let route = candidates[0].route.clone();
    let accounting = Accounting::of(&route);
    let (body, permit) = match take_body(&table, &route, &parts, body).await {
        Ok(taken) => taken,
        Err(refusal) => {
            accounting.refused(refusal.answer.status());
            return Err(refusal);
        }
    };
    match choose(&candidates, &parts, &body) {
        Ok(rule) => Ok(publish(shared, rule.clone(), parts, body, permit, accounting).await),
        Err(refusal) => {
            accounting.rejected(refusal.answer.status());
            Err(refusal)
        }
    }
}

/// What is wrong with a request whatever the rules say.
fn check_head(parts: &Parts) -> Result<(), Refusal> {
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
    let codings = parts.headers.get_all(header::TRANSFER_ENCODING);
    let mut codings = codings.iter();
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

fn bad_request(detail: impl Into<String>, remedy: &'static str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-request", "Bad request", detail, remedy)
}

/// Admits the request by its head, then reads its body.
async fn take_body(
    table: &RouteTable,
    route: &Arc<Route>,
    parts: &Parts,
    body: Incoming,
) -> Result<(Bytes, Permit), Refusal> {
    let limits = &route.limits;
    if limits.max_header_size < table.listener.max_header_size as u64 && head_size(parts) > limits.max_header_size {
        return Err(Refusal::closing(&Problem::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "headers-too-large",
            "Headers too large",
            format!("the request's head is larger than {} bytes", limits.max_header_size),
            "send fewer or shorter headers, or raise limits.maxHeaderSize",
        )));
    }
    let too_large = || {
        Refusal::closing(&Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body-too-large",
            "Body too large",
            format!("the body is larger than {} bytes", limits.max_body_size),
            "send less, or raise limits.maxBodySize",
        ))
    };
    let announced = body.size_hint().exact();
    if announced.is_some_and(|length| length > limits.max_body_size) {
        return Err(too_large());
    }
    let Some(mut permit) = route.budget.admit(announced.unwrap_or(limits.max_body_size)) else {
        return Err(overloaded().into());
    };
    match admission::read(body, limits.max_body_size, limits.read_timeout).await {
        Ok(bytes) => {
            permit.shrink(bytes.len() as u64);
            Ok((bytes, permit))
        }
        Err(BodyError::TooLarge) => Err(too_large()),
        Err(BodyError::TimedOut) => Err(Refusal::closing(&Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "body-timeout",
            "Request timeout",
            format!("the body was not complete within {:?}", limits.read_timeout),
            "send faster, or raise limits.readTimeout",
        ))),
        Err(BodyError::Broken) => {
            Err(Refusal::closing(&bad_request("the body was cut off or is framed wrongly", "send the request again")))
        }
    }
}

fn overloaded() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "overloaded",
        "Overloaded",
        "too many requests are in flight on this route",
        "send the request again after the time that Retry-After names",
    )
}

/// Bytes of the head: the request line and each header line.
fn head_size(parts: &Parts) -> u64 {
    let target = parts.uri.path_and_query().map_or(1, |target| target.as_str().len());
    let lines: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    (parts.method.as_str().len() + target + lines + 14) as u64
}

/// The first candidate that takes the body.
fn choose<'r>(candidates: &[&'r Arc<Rule>], parts: &Parts, body: &Bytes) -> Result<&'r Arc<Rule>, Refusal> {
    for rule in candidates {
        if rule.json {
            check_json(rule, parts, body)?;
        }
        check_schema(rule, body)?;
        return Ok(rule);
    }
    Err(not_found("no rule of this path takes this request").into())
}

fn invalid(rule: &Rule, problem: &Problem) -> Refusal {
    Refusal { answer: rule.invalid.failure(problem), close: false }
}

/// The body must be JSON, and must not be compressed: it is never unpacked here.
fn check_json(rule: &Rule, parts: &Parts, body: &Bytes) -> Result<(), Refusal> {
    if let Some(encoding) = joined(&parts.headers, &header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-content-encoding",
            "Unsupported content encoding",
            "this rule reads the body, and reads it only without Content-Encoding",
            "send the body unpacked",
        )
        .into());
    }
    serde_json::from_slice::<IgnoredAny>(body).map(|_| ()).map_err(|error| {
        let problem = Problem::new(
            StatusCode::BAD_REQUEST,
            "malformed-json",
            "Malformed JSON",
            format!("the body is not JSON: {error}"),
            "send well-formed JSON",
        );
        invalid(rule, &problem)
    })
}

fn check_schema(rule: &Rule, body: &Bytes) -> Result<(), Refusal> {
    let Some(schema) = &rule.schema else { return Ok(()) };
    let violations = schema.check(body).unwrap_or_default();
    if violations.is_empty() {
        return Ok(());
    }
    let listed: Vec<_> =
        violations.iter().map(|violation| format!("`{}`: {}", violation.path, violation.message)).collect();
    let problem = Problem::new(
        StatusCode::BAD_REQUEST,
        "schema-violation",
        "Schema violation",
        format!("the body does not follow the rule's schema: {}", listed.join("; ")),
        "correct the listed places",
    );
    Err(invalid(rule, &problem.with_violations(violations)))
}

/// Stores the request and answers. Carried through even if the caller is gone.
async fn publish(
    shared: &Shared,
    rule: Arc<Rule>,
    parts: Parts,
    body: Bytes,
    permit: Permit,
    accounting: Accounting,
) -> Answer {
    let mut buffer = Uuid::encode_buffer();
    let id: &str = Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
    let mut accepted = rule.accepted.success();
    if let Ok(value) = HeaderValue::from_str(id) {
        accepted.headers_mut().insert(MESSAGE_ID, value);
    }
    let kept = stored(parts.headers, rule.forward_credentials);
    let message = Message {
        id: MessageId::new(id),
        correlation_id: None,
        timestamp: Some(Timestamp::now()),
        content_type: kept.content_type,
        content_encoding: kept.content_encoding,
        origin: Some(Origin {
            method: parts.method,
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().map(str::to_owned),
            route: rule.label.clone(),
        }),
        headers: kept.headers,
        body,
        reply_to: None,
        death: None,
    };
    let publication = Publication { rule, message: Arc::new(message), accepted, accounting, _permit: permit };
    CarriedThrough { work: Some(Box::pin(publication.carry_out())), tasks: shared.tasks.clone() }.await
}

/// A message on its way into the store, and what must be done when it is there.
struct Publication {
    rule: Arc<Rule>,
    message: Arc<Message>,
    accepted: Answer,
    accounting: Accounting,
    _permit: Permit,
}

impl Publication {
    async fn carry_out(self) -> Answer {
        let route = &self.rule.route;
        match self.rule.publisher.publish(self.message, None).await {
            Ok(()) => {
                if route.failing.load(Ordering::Relaxed) && route.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(route = route.name, "messages are stored again");
                }
                self.accounting.accepted(self.accepted.status());
                self.accepted
            }
            Err(PublishError::Invalid(reason)) => {
                let problem = bad_request(format!("the message cannot be stored: {reason}"), "send less");
                let answer = problem.answer();
                self.accounting.rejected(answer.status());
                answer
            }
            Err(error) => {
                if !route.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(route = route.name, rule = self.rule.label, %error, "a message was not stored; callers are told so, and this is said once until it works again");
                }
                let answer = self.rule.store_failed.failure(&not_stored(&error));
                self.accounting.failed(answer.status());
                answer
            }
        }
    }
}

/// What a caller may know of a publish that failed: never the broker's own words.
fn not_stored(error: &PublishError) -> Problem {
    let (detail, remedy) = match error {
        PublishError::Unknown(_) => (
            "it is not known whether the message was stored",
            "send it again with the same Idempotency-Key; the target may get it twice",
        ),
        PublishError::Unroutable(_) => {
            ("the message was not stored: no queue takes it", "have the route's store and its bindings checked")
        }
        _ => ("the message was not stored", "send it again after the time that Retry-After names"),
    };
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-failed", "Not stored", detail, remedy)
}

/// A future that goes on as a task of its own if its owner is dropped: a connection that breaks while its message is
/// being stored must neither stop the publish nor lose its accounting.
struct CarriedThrough {
    work: Option<Pin<Box<dyn Future<Output = Answer> + Send>>>,
    tasks: TaskTracker,
}

impl Future for CarriedThrough {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let Some(work) = &mut self.work else { return Poll::Pending };
        let result = work.as_mut().poll(context);
        if result.is_ready() {
            self.work = None;
        }
        result
    }
}

impl Drop for CarriedThrough {
    fn drop(&mut self) {
        if let Some(work) = self.work.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            self.tasks.spawn_on(work, &runtime);
        }
    }
}

/// Counts one request, exactly once, and as in flight until then.
struct Accounting {
    route: Arc<Route>,
}

impl Accounting {
    fn of(route: &Arc<Route>) -> Self {
        route.metrics.in_flight.inc();
        Self { route: route.clone() }
    }

    fn accepted(&self, status: StatusCode) {
        self.count(&self.route.counters.accepted, status);
    }

    fn rejected(&self, status: StatusCode) {
        self.count(&self.route.counters.rejected, status);
    }

    fn failed(&self, status: StatusCode) {
        self.count(&self.route.counters.failed, status);
    }

    /// Refused by its head or body: an overload is our failure, the rest is the request's.
    fn refused(&self, status: StatusCode) {
        if status.is_server_error() { self.failed(status) } else { self.rejected(status) }
    }

    fn count(&self, counter: &AtomicU64, status: StatusCode) {
        counter.fetch_add(1, Ordering::Relaxed);
        self.route.metrics.answered(status.as_u16());
    }
}

impl Drop for Accounting {
    fn drop(&mut self) {
        self.route.metrics.in_flight.dec();
    }
}
