//! Requests that are not taken, and what of them the connection survives.

use std::sync::Arc;

use http::StatusCode;

use super::problem::{Answer, answer};
use super::publication::Accounting;
use super::routes::Rule;
use crate::core::problem::Problem;

/// An answer that is not a success, and whether the connection can go on after it. Boxed: it is the rare case.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) answer: Box<Answer>,
    pub(super) close: bool,
    /// Because of us, not of the request.
    ours: bool,
    /// What the answer need not say, for a rule may have an answer of its own.
    pub(super) why: Box<Why>,
}

/// Why a request is refused, for whoever wrote the rules.
#[derive(Debug)]
pub(super) struct Why {
    pub(super) reason: String,
    pub(super) place: Option<Place>,
}

/// The part of a rule that refuses.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) rule: Arc<Rule>,
    /// In the rule, as in its manifest: `transform[0].setBody`.
    pub(super) field: String,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::answered(answer(&problem), &problem, None)
    }
}

impl Refusal {
    /// A rule refuses, and answers in its own way.
    pub(super) fn by_rule(place: Place, problem: &Problem, answer: Answer) -> Self {
        Self::answered(answer, problem, Some(place))
    }

    fn answered(answer: Answer, problem: &Problem, place: Option<Place>) -> Self {
        let why = Box::new(Why { reason: problem.detail().to_owned(), place });
        Self { answer: Box::new(answer), close: false, ours: false, why }
    }

    /// After which nothing more is read from the connection: what follows on it is not known to be a request.
    pub(super) fn closing(problem: &Problem) -> Self {
        Self { close: true, ..Self::answered(answer(problem), problem, None) }
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
        Self { ours: true, ..problem.into() }
    }

    /// Counts it: an overload is our failure, the rest is the request's.
    pub(super) fn count(&self, accounting: Accounting) {
        let status = self.answer.status();
        if self.ours { accounting.failed(status) } else { accounting.rejected(status) }
    }
}
