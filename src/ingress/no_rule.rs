//! Why no rule takes a request, and what the caller is told.

use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::{Method, StatusCode};

use super::refusal::Refusal;
use super::routes::Route;
use crate::core::problem::Problem;

/// Why no rule takes a request.
#[derive(Debug)]
pub(super) struct NoRule {
    problem: Problem,
    /// A header that belongs to the answer.
    header: Option<(header::HeaderName, HeaderValue)>,
    /// The route to count it for, if one can be named.
    route: Option<Arc<Route>>,
}

impl NoRule {
    /// No rule has the path. What cannot be told from its rule is counted for the route if there is only one.
    pub(super) fn path(only_route: Option<Arc<Route>>) -> Box<Self> {
        Box::new(Self { problem: not_found("no rule has this path"), header: None, route: only_route })
    }

    /// None of those with the path has the method.
    pub(super) fn method(method: &Method, mut allowed: Vec<&Method>, route: Arc<Route>) -> Box<Self> {
        allowed.sort_by_key(|method| method.as_str());
        allowed.dedup();
        let list = allowed.iter().map(|method| method.as_str()).collect::<Vec<_>>().join(", ");
        let problem = Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            "Method not allowed",
            format!("the rules of this path do not take {method}"),
            "use a method that the header Allow names",
        );
        let header = HeaderValue::from_str(&list).ok().map(|value| (header::ALLOW, value));
        Box::new(Self { problem, header, route: Some(route) })
    }

    /// None of those with path and method takes the content type.
    pub(super) fn media_type(mut consumed: Vec<&str>, route: Arc<Route>) -> Box<Self> {
        consumed.sort_unstable();
        consumed.dedup();
        let problem = Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            "Unsupported media type",
            "the rules of this path do not take this content type",
            "send a Content-Type that the header Accept of this answer names",
        );
        let header = HeaderValue::from_str(&consumed.join(", ")).ok().map(|value| (header::ACCEPT, value));
        Box::new(Self { problem, header, route: Some(route) })
    }

    /// The answer, and the route to count it for.
    pub(super) fn refusal(self) -> (Refusal, Option<Arc<Route>>) {
        let mut refusal = Refusal::from(self.problem);
        if let Some((name, value)) = self.header {
            refusal.answer.headers_mut().insert(name, value);
        }
        (refusal, self.route)
    }
}

/// The 404 of a request that no rule takes.
pub(super) fn not_found(detail: &'static str) -> Problem {
    let remedy = "check path and content against the rules of the IngressRoute";
    Problem::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail, remedy)
}
