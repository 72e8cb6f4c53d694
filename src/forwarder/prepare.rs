//! What the plan's expressions make of a message: its lane, its content, the headers of an attempt.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::core::message::Message;
use crate::core::ordering::{Lane, Sequence};
use crate::expression::{
    Applied, CompileError, Content, Key, MessageScope, Scope, Template, Transform, settable_header,
};
use crate::plan::{ForwarderPlan, OrderingPlan, TargetPlan};

/// The compiled expressions of one plan.
#[derive(Debug)]
pub(super) struct Expressions {
    lanes: Lanes,
    transform: Transform,
    set_headers: Vec<SetHeader>,
}

#[derive(Debug)]
struct SetHeader {
    /// In the spec, where the name is as the user wrote it.
    field: String,
    name: HeaderName,
    value: Value,
}

#[derive(Debug)]
enum Lanes {
    One,
    ByKey(Key),
    None,
}

/// Most values are plain text: they are checked once, not rendered for each attempt.
#[derive(Debug)]
enum Value {
    Fixed(HeaderValue),
    Template(Box<Template>),
}

/// An expression that failed on a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Failure {
    /// Where it stands in the spec.
    pub field: String,
    /// What is wrong, with the place in the template.
    pub problem: String,
}

/// A template or expression of the plan cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ExpressionError {
    /// Where it stands in the spec.
    pub field: String,
    /// What is wrong with it.
    pub problem: CompileError,
}

impl Expressions {
    pub(super) fn compile(plan: &ForwarderPlan) -> Result<Self, ExpressionError> {
        let at = |field: &str| {
            let field = field.to_owned();
            |problem| ExpressionError { field, problem }
        };
        let lanes = match &plan.ordering {
            OrderingPlan::Strict => Lanes::One,
            OrderingPlan::PerKey(key) => Lanes::ByKey(Key::compile(key).map_err(at("spec.orderingKey"))?),
            OrderingPlan::None => Lanes::None,
        };
        let transform = Transform::compile(&plan.transform).map_err(at("spec.transform"))?;
        let mut set_headers = Vec::new();
        if let TargetPlan::Http(http) = &plan.target {
            for (name, value) in &http.set_headers {
                let field = format!("spec.target.headers.set.{name}");
                let value = Value::compile(value).map_err(at(&field))?;
                set_headers.push(SetHeader { name: settable_header(name).map_err(at(&field))?, value, field });
            }
        }
        Ok(Self { lanes, transform, set_headers })
    }

    /// The lane of a message just taken. Fails when the key's expression does.
    pub(super) fn lane(&self, message: &Message, delivery: Sequence) -> Result<Lane, Failure> {
        match &self.lanes {
            Lanes::One => Ok(Lane::All),
            Lanes::None => Ok(Lane::Own(delivery)),
            Lanes::ByKey(key) => {
                let key = key.evaluate(&scope(message, Content::of(message), FIRST));
                let failed =
                    |error| Failure { field: "spec.orderingKey".to_owned(), problem: format!("orderingKey: {error}") };
                let key = key.map_err(failed)?;
                Ok(key.map_or(Lane::Keyless, |key| Lane::Key(key.into())))
            }
        }
    }

    /// The transform's result; `None`: filtered. Fails when a step does.
    pub(super) fn content(&self, message: &Message) -> Result<Option<Content>, Failure> {
        let content = Content::of(message);
        if self.transform.is_empty() {
            return Ok(Some(content));
        }
        match self.transform.apply(&scope(message, content.clone(), FIRST), content) {
            Ok(Applied::Changed(content)) => Ok(Some(content)),
            Ok(Applied::Filtered) => Ok(None),
            Err(error) => Err(Failure { field: format!("spec.{}", error.field()), problem: error.to_string() }),
        }
    }

    /// Sets the headers of `target.headers.set` for one attempt. Fails when a template does.
    pub(super) fn set_headers(
        &self,
        headers: &mut HeaderMap,
        message: &Message,
        content: &Content,
        attempt: u32,
    ) -> Result<(), Failure> {
        // Made for the first template only: it copies all headers.
        let mut seen: Option<Scope> = None;
        for SetHeader { field, name, value } in &self.set_headers {
            let value = match value {
                Value::Fixed(value) => value.clone(),
                Value::Template(template) => {
                    let scope = seen.get_or_insert_with(|| scope(message, content.clone(), attempt));
                    let failed = |problem: &str| Failure {
                        field: field.clone(),
                        problem: format!("target.headers.set.{name}: {problem}"),
                    };
                    let text = template.render(scope).map_err(|error| failed(&error.to_string()))?;
                    HeaderValue::from_maybe_shared(bytes::Bytes::from(text))
                        .map_err(|_| failed("the value holds a line break or another control character"))?
                }
            };
            headers.insert(name.clone(), value);
        }
        Ok(())
    }
}

impl Value {
    fn compile(text: &str) -> Result<Self, CompileError> {
        match HeaderValue::from_bytes(text.as_bytes()) {
            Ok(value) if !text.contains('{') => Ok(Self::Fixed(value)),
            // A text that can't stand in a header fails as a template on every message, and says why.
            _ => Template::compile(text).map(|template| Self::Template(Box::new(template))),
        }
    }
}

/// A transform and a key see the attempt that they are made for: the first.
const FIRST: u32 = 1;

fn scope(message: &Message, content: Content, attempt: u32) -> Scope {
    let origin = message.origin.as_ref();
    Scope {
        body: content.body,
        headers: content.headers,
        method: origin.map_or_else(|| "POST".to_owned(), |origin| origin.method.to_string()),
        segments: std::collections::BTreeMap::new(),
        query: origin.and_then(|origin| origin.query.clone()),
        message: MessageScope {
            id: message.id.to_string(),
            timestamp: message.timestamp.map(|timestamp| timestamp.to_string()),
            attempt: Some(attempt),
            path: origin.map(|origin| origin.path.clone()),
            route: origin.map(|origin| origin.route.clone()),
        },
    }
}
