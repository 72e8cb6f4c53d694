//! A transform: steps that change a message's headers and body one after the other (a Message Translator).
//!
//! Each step sees what the ones before it changed. A transform fails as a whole: the caller still has the original.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::error::{CompileError, EvalError};
use super::scope::{Context, with_content};
use super::template::{Condition, Template};
use super::{Content, LogLevel, Scope, Step};

/// Longest log line of a step, in bytes: a whole body does not belong into a log.
const MAX_LOG_LINE: usize = 4 * 1024;
/// Headers of one connection, not of the message.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Compiled steps.
#[derive(Debug)]
pub struct Transform {
    steps: Vec<Compiled>,
}

#[derive(Debug)]
enum Compiled {
    SetHeader(HeaderName, Template),
    RemoveHeader(HeaderName),
    SetBody(Template),
    Filter(Condition),
    Log(Template, LogLevel),
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// It goes on, with this content.
    Changed(Content),
    /// A `filter` step was false: it is settled without delivery.
    Filtered,
}

/// A transform that failed on one message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("transform step {step} ({kind}): {cause}")]
pub struct TransformError {
    /// Which step, counted from 1.
    pub step: usize,
    /// The step's kind, as manifests write it.
    pub kind: &'static str,
    /// What failed.
    pub cause: StepError,
}

impl TransformError {
    /// The step as a path in a manifest, below the object or rule: `transform[0].setBody`.
    pub fn field(&self) -> String {
        format!("transform[{}].{}", self.step - 1, self.kind)
    }
}

/// What failed in a step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// Its template or expression.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The value cannot stand in a header.
    #[error(
        "the value of header `{0}` holds a line break or another control character; remove it with replace or trim"
    )]
    HeaderValue(HeaderName),
}

impl Step {
    fn kind(&self) -> &'static str {
        match self {
            Self::SetHeader { .. } => "setHeader",
            Self::RemoveHeader { .. } => "removeHeader",
            Self::SetBody { .. } => "setBody",
            Self::Filter { .. } => "filter",
            Self::Log { .. } => "log",
        }
    }
}

impl Compiled {
    fn kind(&self) -> &'static str {
        match self {
            Self::SetHeader(..) => "setHeader",
            Self::RemoveHeader(_) => "removeHeader",
            Self::SetBody(_) => "setBody",
            Self::Filter(_) => "filter",
            Self::Log(..) => "log",
        }
    }
}

fn header_name(name: &str) -> Result<HeaderName, CompileError> {
    let invalid = |_| CompileError::Header { name: name.to_owned(), reason: "this is not a header name" };
    HeaderName::from_bytes(name.as_bytes()).map_err(invalid)
}

/// The name of a header that a user may set, in a transform or on a target.
///
/// Refused are hop-by-hop headers, `Host` and `Content-Length`, which belong to the connection, and ours.
pub fn settable_header(name: &str) -> Result<HeaderName, CompileError> {
    let header = header_name(name)?;
    let refused = |reason| Err(CompileError::Header { name: name.to_owned(), reason });
    match header.as_str() {
        "host" => refused("it follows from the target's URL; change the URL"),
        "content-length" => refused("it follows from the body"),
        hop if HOP_BY_HOP.contains(&hop) => refused("it belongs to one connection (hop-by-hop) and is not stored"),
        ours if ours.starts_with("stagepost-") || ours.starts_with("x-stagepost-") => {
            refused("names that begin with Stagepost- are set by stagepost itself; choose another")
        }
        _ => Ok(header),
    }
}

impl Transform {
    /// Reads the steps.
    pub fn compile(steps: &[Step]) -> Result<Self, CompileError> {
        let compile = |step: &Step| {
            Ok(match step {
                Step::SetHeader { name, value } => {
                    Compiled::SetHeader(settable_header(name)?, Template::compile(value)?)
                }
                Step::RemoveHeader { name } => Compiled::RemoveHeader(header_name(name)?),
                Step::SetBody { template } => Compiled::SetBody(Template::compile(template)?),
                Step::Filter { when } => Compiled::Filter(Condition::compile(when)?),
                Step::Log { template, level } => Compiled::Log(Template::compile(template)?, *level),
            })
        };
        let numbered = steps.iter().enumerate().map(|(at, step)| {
            let located = |source| CompileError::Step { step: at + 1, kind: step.kind(), source: Box::new(source) };
            compile(step).map_err(located)
        });
        Ok(Self { steps: numbered.collect::<Result<_, _>>()? })
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Applies the steps to a content. Of `scope` everything but headers and body is used; those are the content's.
    pub fn apply(&self, scope: &Scope, content: Content) -> Result<Applied, TransformError> {
        let Content { mut headers, mut body } = content;
        // Made anew only after a change, so that the body is parsed once for several steps.
        let mut seen: Option<Context> = None;
        for (at, step) in self.steps.iter().enumerate() {
            let view = seen.get_or_insert_with(|| with_content(scope, headers.clone(), body.clone()).into());
            let failed = |cause: StepError| TransformError { step: at + 1, kind: step.kind(), cause };
            match step.run(view, &mut headers, &mut body).map_err(failed)? {
                Ran::Unchanged => {}
                Ran::Changed => seen = None,
                Ran::Filtered => return Ok(Applied::Filtered),
            }
        }
        Ok(Applied::Changed(Content { headers, body }))
    }
}

enum Ran {
    Unchanged,
    Changed,
    Filtered,
}

impl Compiled {
    fn run(&self, context: &Context, headers: &mut HeaderMap, body: &mut Bytes) -> Result<Ran, StepError> {
        Ok(match self {
            Self::SetHeader(name, template) => {
                let text = template.render_in(context)?;
                let value = HeaderValue::from_str(&text).or_else(|_| HeaderValue::from_bytes(text.as_bytes()));
                headers.insert(name.clone(), value.map_err(|_| StepError::HeaderValue(name.clone()))?);
                Ran::Changed
            }
            Self::RemoveHeader(name) => {
                if headers.remove(name).is_none() {
                    return Ok(Ran::Unchanged);
                }
                Ran::Changed
            }
            Self::SetBody(template) => {
                *body = Bytes::from(template.render_in(context)?);
                Ran::Changed
            }
            Self::Filter(condition) if condition.evaluate_in(context)? => Ran::Unchanged,
            Self::Filter(_) => Ran::Filtered,
            Self::Log(template, level) => {
                log(*level, &log_line(&template.render_in(context)?));
                Ran::Unchanged
            }
        })
    }
}

fn log(level: LogLevel, line: &str) {
    const TARGET: &str = "stagepost::transform";
    match level {
        LogLevel::Debug => tracing::debug!(target: TARGET, "{line}"),
        LogLevel::Info => tracing::info!(target: TARGET, "{line}"),
        LogLevel::Warn => tracing::warn!(target: TARGET, "{line}"),
        LogLevel::Error => tracing::error!(target: TARGET, "{line}"),
    }
}

/// One line of bounded length: a message must not be able to forge lines of the log.
fn log_line(text: &str) -> String {
    let mut line = String::new();
    for character in text.trim_end().chars() {
        if line.len() > MAX_LOG_LINE {
            line.push('…');
            break;
        }
        if character.is_control() { line.extend(character.escape_default()) } else { line.push(character) }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::super::examples::scope;
    use super::*;

    fn content(scope: &Scope) -> Content {
        Content { headers: scope.headers.clone(), body: scope.body.clone() }
    }

    fn apply(steps: &[Step], body: &str) -> Result<Applied, String> {
        let scope = scope(body);
        let transform = Transform::compile(steps).map_err(|error| error.to_string())?;
        transform.apply(&scope, content(&scope)).map_err(|error| error.to_string())
    }

    fn set_header(name: &str, value: &str) -> Step {
        Step::SetHeader { name: name.to_owned(), value: value.to_owned() }
    }

    fn set_body(template: &str) -> Step {
        Step::SetBody { template: template.to_owned() }
    }

    fn filter(when: &str) -> Step {
        Step::Filter { when: when.to_owned() }
    }

    #[test]
    fn each_step_sees_what_the_ones_before_it_changed() {
        let steps = [
            set_header("X-Amount", "{{ body.amount }}"),
            set_body(r#"{"card":{{ body.cardNo | tojson }},"fee":{{ headers['x-amount'] }}}"#),
            Step::RemoveHeader { name: "x-a".to_owned() },
            set_header("X-Last", "{{ body.fee }} {{ headers['x-a'] | default('gone') }}"),
            filter("body.fee == 1.1"),
        ];
        let Ok(Applied::Changed(changed)) = apply(&steps, r#"{"amount":1.10,"cardNo":"47"}"#) else { panic!() };
        assert_eq!(changed.body, r#"{"card":"47","fee":1.10}"#);
        assert_eq!(changed.headers["x-amount"], "1.10");
        assert_eq!(changed.headers["x-last"], "1.10 gone");
        assert!(!changed.headers.contains_key("x-a"));
        assert_eq!(changed.headers["content-type"], "application/json");
    }

    #[test]
    fn setting_a_header_replaces_all_its_values() {
        let Ok(Applied::Changed(changed)) = apply(&[set_header("X-A", "é {{ 1 }}")], "") else { panic!() };
        assert_eq!(changed.headers.get_all("x-a").iter().count(), 1);
        assert_eq!(changed.headers["x-a"].as_bytes(), "é 1".as_bytes());
    }

    #[test]
    fn a_false_filter_ends_it_and_an_undefined_name_is_false() {
        assert_eq!(apply(&[filter("body.amount > 0")], r#"{"amount":0}"#), Ok(Applied::Filtered));
        assert_eq!(apply(&[filter("body.other != 0"), set_body("{{ nothing }}")], "{}"), Ok(Applied::Filtered));
    }

    #[test]
    fn a_header_value_with_a_line_break_fails() {
        for value in [r"a\r\nb", r"a\nb", r"a\u0000b"] {
            let error = apply(&[set_header("X-B", "{{ body.v }}")], &format!(r#"{{"v":"{value}"}}"#)).unwrap_err();
            assert!(
                error.starts_with("transform step 1 (setHeader): the value of header `x-b` holds a line break"),
                "{error}"
            );
        }
    }

    #[test]
    fn headers_that_are_not_the_users_are_refused_with_the_reason() {
        for (name, reason) in [
            ("Host", "target's URL"),
            ("content-length", "follows from the body"),
            ("Transfer-Encoding", "hop-by-hop"),
            ("connection", "hop-by-hop"),
            ("Stagepost-Message-Id", "stagepost itself"),
            ("X-Stagepost-Route", "stagepost itself"),
            ("a b", "not a header name"),
            ("", "not a header name"),
        ] {
            let error = apply(&[set_body("x"), set_header(name, "x")], "").unwrap_err();
            assert!(error.starts_with(&format!("transform step 2 (setHeader): header `{name}`: ")), "{error}");
            assert!(error.contains(reason), "{error}");
        }
        assert!(settable_header("Authorization").is_ok());
    }

    #[test]
    fn errors_name_step_line_and_column() {
        let error = apply(&[filter("true"), set_body("a\n{{ body.x }}")], "{}").unwrap_err();
        assert!(error.starts_with("transform step 2 (setBody): line 2, column 4: `body.x` is undefined; "), "{error}");
        let error = apply(&[filter("body.")], "{}").unwrap_err();
        assert!(error.starts_with("transform step 1 (filter): line 1, column "), "{error}");
    }

    #[test]
    fn a_log_line_is_one_line_of_bounded_length() {
        assert_eq!(log_line("a\nb\u{1b}[0m\n"), "a\\nb\\u{1b}[0m");
        let long = log_line(&"é".repeat(10_000));
        assert!(long.len() < MAX_LOG_LINE + 8 && long.ends_with('…'));
        let step = Step::Log { template: "{{ body }}".to_owned(), level: LogLevel::Info };
        assert!(matches!(apply(&[step], "x"), Ok(Applied::Changed(_))));
    }
}
