//! The names that templates see, as lazy views: nothing is parsed or copied before it is asked for.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use minijinja::value::{Enumerator, Object, ObjectRepr};
use minijinja::{Error, State, Value};

use super::limits::{ITEM, charge, charge_text, or_invalid};
use super::{MessageScope, Scope, data, json};

/// A scope ready for evaluation. Conditions over one request share one, so that its body is parsed once.
#[derive(Debug, Clone)]
pub struct Context {
    pub(super) root: Value,
}

impl Context {
    /// Whether the body is neither JSON nor text.
    pub(super) fn is_binary(&self) -> bool {
        match self.root.downcast_object_ref::<Names>() {
            Some(Names::Root(root)) => std::str::from_utf8(&root.scope.body).is_err(),
            _ => false,
        }
    }
}

impl From<Scope> for Context {
    fn from(scope: Scope) -> Self {
        Self { root: Value::from_object(Names::Root(Box::new(Root { scope, values: Default::default() }))) }
    }
}

impl From<&Scope> for Context {
    fn from(scope: &Scope) -> Self {
        Self::from(scope.clone())
    }
}

/// One of the mappings of a scope.
pub(super) enum Names {
    Root(Box<Root>),
    /// `headers` gives the first value, `headers_all` the list.
    Headers(HeaderMap, Values),
    /// `query` and `query_all`.
    Query(Form, Values),
    Segments(BTreeMap<String, String>),
    Message(MessageScope),
}

/// Which values of a name that occurs several times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Values {
    First,
    All,
}

/// The names at the top, in the order of [`Root::values`].
const NAMES: [&str; 8] = ["body", "headers", "headers_all", "method", "path", "query", "query_all", "message"];

pub(super) struct Root {
    scope: Scope,
    /// Each is made when it is first asked for.
    values: [OnceLock<Value>; NAMES.len()],
}

impl Root {
    fn get(&self, name: &str) -> Option<Value> {
        let at = NAMES.iter().position(|known| *known == name)?;
        Some(self.values.get(at)?.get_or_init(|| self.make(name)).clone())
    }

    fn make(&self, name: &str) -> Value {
        let headers = |values| Value::from_object(Names::Headers(self.scope.headers.clone(), values));
        let query = |values| {
            let form = Form::decode(self.scope.query.as_deref().unwrap_or_default());
            or_invalid(form.map(|form| Value::from_object(Names::Query(form, values))))
        };
        match name {
            "body" => self.body(),
            "headers" => headers(Values::First),
            "headers_all" => headers(Values::All),
            "method" => Value::from(self.scope.method.as_str()),
            "path" => Value::from_object(Names::Segments(self.scope.segments.clone())),
            "query" => query(Values::First),
            "query_all" => query(Values::All),
            _ => Value::from_object(Names::Message(self.scope.message.clone())),
        }
    }

    fn body(&self) -> Value {
        let bytes = &self.scope.body;
        json::parse(bytes).unwrap_or_else(|| {
            let text = std::str::from_utf8(bytes).ok();
            text.map_or(Value::UNDEFINED, |text| or_invalid(charge_text(text.len()).map(|()| Value::from(text))))
        })
    }
}

/// The pairs of a query by the rules of HTML forms: `+` is a space, bytes that are not UTF-8 become U+FFFD.
#[derive(Default)]
pub(super) struct Form {
    names: Vec<Value>,
    by_name: HashMap<String, Vec<Value>>,
}

impl Form {
    fn decode(text: &str) -> Result<Self, Error> {
        charge_text(text.len())?;
        let mut form = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            charge(ITEM)?;
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode_percent(name, true);
            if !form.by_name.contains_key(&name) {
                form.names.push(Value::from(name.as_str()));
            }
            form.by_name.entry(name).or_default().push(Value::from(decode_percent(value, true)));
        }
        Ok(form)
    }
}

/// Replaces `%41` by `A`; an incomplete escape stays as it is.
pub(super) fn decode_percent(text: &str, plus_is_space: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit));
        let hex = hex.and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        rest = after;
        match (byte, hex) {
            (b'%', Some(decoded)) => {
                bytes.push(decoded);
                rest = &after[2..];
            }
            (b'+', _) if plus_is_space => bytes.push(b' '),
            _ => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn header_text(value: &HeaderValue) -> Value {
    Value::from(String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn choose(values: Values, mut found: impl Iterator<Item = Value>) -> Option<Value> {
    match values {
        Values::First => found.next(),
        Values::All => {
            let all: Vec<Value> = found.collect();
            (!all.is_empty()).then(|| or_invalid(data::list(all)))
        }
    }
}

impl Names {
    fn get(&self, name: &str) -> Option<Value> {
        match self {
            Self::Root(root) => root.get(name),
            Self::Headers(headers, values) => {
                let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
                choose(*values, headers.get_all(name).iter().map(header_text))
            }
            Self::Query(form, values) => choose(*values, form.by_name.get(name)?.iter().cloned()),
            Self::Segments(segments) => segments.get(name).map(|segment| Value::from(segment.as_str())),
            Self::Message(message) => match name {
                "id" => Some(Value::from(message.id.as_str())),
                "timestamp" => message.timestamp.as_deref().map(Value::from),
                "attempt" => message.attempt.map(Value::from),
                "path" => message.path.as_deref().map(Value::from),
                "route" => message.route.as_deref().map(Value::from),
                _ => None,
            },
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Headers(headers, _) => headers.keys_len(),
            Self::Query(form, _) => form.names.len(),
            Self::Root(_) | Self::Segments(_) | Self::Message(_) => self.keys().len(),
        }
    }

    fn keys(&self) -> Vec<Value> {
        match self {
            // The scope as a whole is no value of the language.
            Self::Root(_) => Vec::new(),
            Self::Headers(headers, _) => headers.keys().map(|name| Value::from(name.as_str())).collect(),
            Self::Query(form, _) => form.names.clone(),
            Self::Segments(segments) => segments.keys().map(|name| Value::from(name.as_str())).collect(),
            Self::Message(_) => {
                let names = ["id", "timestamp", "attempt", "path", "route"];
                names.into_iter().filter(|name| self.get(name).is_some()).map(Value::from).collect()
            }
        }
    }
}

impl fmt::Debug for Names {
    /// Says nothing of the content: a message never gets into a log by accident.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names")
    }
}

impl Object for Names {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.get(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        match charge(self.len().saturating_mul(ITEM)) {
            Ok(()) => Enumerator::Values(self.keys()),
            Err(error) => Enumerator::Values(vec![Value::from(error)]),
        }
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.len())
    }

    fn call_method(self: &Arc<Self>, _: &mut State<'_, '_>, method: &str, arguments: &[Value]) -> Result<Value, Error> {
        data::mapping_method(&Value::from_dyn_object(self.clone()), method, arguments)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{...}")
    }
}

/// The bytes of a body, for a scope.
pub(super) fn with_content(scope: &Scope, headers: HeaderMap, body: Bytes) -> Scope {
    Scope {
        body,
        headers,
        method: scope.method.clone(),
        segments: scope.segments.clone(),
        query: scope.query.clone(),
        message: scope.message.clone(),
    }
}
