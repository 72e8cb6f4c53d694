//! Requests that are not taken, and what of them the connection survives.

use http::StatusCode;

use super::problem::{Answer, answer};
use super::publication::Accounting;
use crate::core::problem::Problem;

/// An answer that is not a success, and whether the connection can go on after it. Boxed: it is the rare case.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) answer: Box<Answer>,
    pub(super) close: bool,
    /// Because of us, not of the request.
    ours: bool,
}

impl From<Answer> for Refusal {
    fn from(answer: Answer) -> Self {
        Self { answer: Box::new(answer), close: false, ours: false }
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        answer(&problem).into()
    }
}

impl Refusal {
    /// After which nothing more is read from the connection: what follows on it is not known to be a request.
    pub(super) fn closing(problem: &Problem) -> Self {
        Self { close: true, ..answer(problem).into() }
    }

    /// As it is, and closing if so.
    pub(super) fn closing_if(self, close: bool) -> Self {
        Self { close: self.close || close, ..self }
    }

    /// More is in flight than the route allows.
    pub(super) fn overloaded() -> Self {
        let problem = Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "overloaded",
            "Overloaded",
            "too many requests are in flight on this route",
            "send the request again after the time that Retry-After names",
        );
        Self { ours: true, ..answer(&problem).into() }
    }

    /// Counts it: an overload is our failure, the rest is the request's.
    pub(super) fn count(&self, accounting: Accounting) {
        let status = self.answer.status();
        if self.ours { accounting.failed(status) } else { accounting.rejected(status) }
    }
}
