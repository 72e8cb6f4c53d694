//! Problems as answers to callers.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;

use crate::core::problem::{MEDIA_TYPE, Problem};

/// An answer, complete.
pub(super) type Answer = Response<Full<Bytes>>;

/// When to come again after a 503 that ends by itself, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// The answer with the problem's own status.
pub(super) fn answer(problem: &Problem) -> Answer {
    answer_with(problem, problem.status())
}

/// The answer with a status that the user chose.
pub(super) fn answer_with(problem: &Problem, status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(problem.body(status))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    with_retry_after(&mut answer);
    answer
}

/// Makes sure that a 503 says when to come again.
pub(super) fn with_retry_after(answer: &mut Answer) {
    if answer.status() == StatusCode::SERVICE_UNAVAILABLE && !answer.headers().contains_key(header::RETRY_AFTER) {
        answer.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    }
}

/// The 400 of a request that is wrong whatever the rules say.
pub(super) fn bad_request(detail: impl Into<String>, remedy: &'static str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-request", "Bad request", detail, remedy)
}
