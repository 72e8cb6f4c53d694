//! What the plan's expressions make of a message: its lane, its content, the headers of an attempt.

use http::HeaderMap;

use crate::core::message::Message;
use crate::core::ordering::{Lane, Sequence};
use crate::expression::Content;
use crate::plan::{ForwarderPlan, OrderingPlan, TargetPlan};

/// The compiled expressions of one plan.
#[derive(Debug)]
pub(super) struct Expressions {
    ordering: OrderingPlan,
    set_headers: Vec<(http::HeaderName, http::HeaderValue)>,
}

/// A template or expression of the plan cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ExpressionError {
    /// Where it stands in the spec.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Expressions {
    pub(super) fn compile(plan: &ForwarderPlan) -> Result<Self, ExpressionError> {
        let error =
            |field: &str, problem: &str| ExpressionError { field: field.to_owned(), problem: problem.to_owned() };
        if !plan.transform.is_empty() {
            return Err(error("spec.transform", "not built yet"));
        }
        if matches!(plan.ordering, OrderingPlan::PerKey(_)) {
            return Err(error("spec.orderingKey", "not built yet"));
        }
        let mut set_headers = Vec::new();
        if let TargetPlan::Http(http) = &plan.target {
            for (name, value) in &http.set_headers {
                let field = format!("spec.target.headers.set.{name}");
                if value.contains("{{") || value.contains("{%") {
                    return Err(error(&field, "templates are not built yet"));
                }
                let name = name.parse().map_err(|_| error(&field, "not a header name"))?;
                set_headers.push((name, value.parse().map_err(|_| error(&field, "not a header value"))?));
            }
        }
        Ok(Self { ordering: plan.ordering.clone(), set_headers })
    }

    /// The lane of a message just taken.
    pub(super) fn lane(&self, _message: &Message, delivery: Sequence) -> Result<Lane, String> {
        match &self.ordering {
            OrderingPlan::Strict => Ok(Lane::All),
            OrderingPlan::PerKey(_) => Ok(Lane::Keyless),
            OrderingPlan::None => Ok(Lane::Own(delivery)),
        }
    }

    /// The transform's result; `None`: filtered.
    pub(super) fn content(&self, message: &Message) -> Result<Option<Content>, String> {
        Ok(Some(Content::of(message)))
    }

    /// Sets the headers of `target.headers.set` for one attempt.
    pub(super) fn set_headers(
        &self,
        headers: &mut HeaderMap,
        _message: &Message,
        _content: &Content,
        _attempt: u32,
    ) -> Result<(), String> {
        for (name, value) in &self.set_headers {
            headers.insert(name.clone(), value.clone());
        }
        Ok(())
    }
}
