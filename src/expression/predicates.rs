//! What can be asked by `is`.

// The engine hands arguments over by value.
#![allow(clippy::needless_pass_by_value)]

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, Value};

use super::data::{self, undefined};
use super::limits::{charge, invalid};
use super::number::{self, Number};
use super::operators::compare;

/// Every test.
pub(super) const NAMES: [&str; 34] = [
    "defined",
    "undefined",
    "none",
    "boolean",
    "true",
    "false",
    "number",
    "integer",
    "float",
    "string",
    "sequence",
    "iterable",
    "mapping",
    "odd",
    "even",
    "divisibleby",
    "startingwith",
    "endingwith",
    "lower",
    "upper",
    "eq",
    "equalto",
    "sameas",
    "ne",
    "lt",
    "lessthan",
    "le",
    "gt",
    "greaterthan",
    "ge",
    "in",
    "containing",
    "empty",
    "null",
];

pub(super) fn add_to(environment: &mut Environment<'_>) {
    for name in NAMES {
        environment.add_test(name, move |value: Value, arguments: Rest<Value>| decide(name, &value, &arguments));
    }
    // Under these names `select` takes them.
    for name in ["==", "!=", "<", "<=", ">", ">="] {
        environment.add_test(name, move |a: Value, b: Value| compare(name, &a, &b));
    }
}

fn decide(name: &str, value: &Value, arguments: &[Value]) -> Result<bool, Error> {
    match name {
        "defined" => return Ok(!value.is_undefined()),
        "undefined" => return Ok(value.is_undefined()),
        _ if value.is_undefined() => return Err(undefined()),
        _ => {}
    }
    let number = number::of(value);
    let whole = match number {
        Some(Number::Whole(whole)) => Some(whole),
        _ => None,
    };
    if let Some(decided) = plain(name, value, number, whole)? {
        return if arguments.is_empty() { Ok(decided) } else { Err(invalid(format!("`is {name}` takes no argument"))) };
    }
    let [argument] = arguments else { return Err(invalid(format!("`is {name}` takes one argument"))) };
    let operator = match name {
        "eq" | "equalto" | "sameas" => "==",
        "ne" => "!=",
        "lt" | "lessthan" => "<",
        "le" => "<=",
        "gt" | "greaterthan" => ">",
        "ge" => ">=",
        "in" => "in",
        "containing" => return compare("in", argument, value),
        "divisibleby" => {
            let (Some(a), Some(Number::Whole(b))) = (whole, number::of(argument)) else {
                return Err(invalid("`is divisibleby` needs whole numbers"));
            };
            return if b == 0 {
                Err(invalid("division by zero; test the divisor first"))
            } else {
                Ok(a.checked_rem(b) == Some(0))
            };
        }
        _ => {
            let (Some(text), Some(part)) = (value.as_str(), argument.as_str()) else {
                return Err(invalid(format!("`is {name}` needs texts")));
            };
            return Ok(if name == "startingwith" { text.starts_with(part) } else { text.ends_with(part) });
        }
    };
    compare(operator, value, argument)
}

/// The tests without an argument; `None` for the others.
fn plain(name: &str, value: &Value, number: Option<Number>, whole: Option<i128>) -> Result<Option<bool>, Error> {
    let kind = value.kind();
    Ok(Some(match name {
        "none" | "null" => kind == ValueKind::None,
        "boolean" => kind == ValueKind::Bool,
        "true" => kind == ValueKind::Bool && value.is_true(),
        "false" => kind == ValueKind::Bool && !value.is_true(),
        "number" => number.is_some(),
        "integer" => whole.is_some(),
        "float" => number.is_some() && whole.is_none(),
        "string" => kind == ValueKind::String,
        "sequence" => matches!(kind, ValueKind::Seq | ValueKind::Iterable),
        "iterable" => matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::String),
        "mapping" => kind == ValueKind::Map,
        "odd" | "even" => {
            let Some(whole) = whole else { return Err(invalid(format!("`is {name}` needs a whole number"))) };
            (whole % 2 != 0) == (name == "odd")
        }
        "lower" | "upper" => {
            let Some(text) = value.as_str() else { return Err(invalid(format!("`is {name}` needs a text"))) };
            charge(text.len().saturating_mul(2))?;
            let wrong = |c: char| if name == "lower" { c.is_uppercase() } else { c.is_lowercase() };
            !text.contains(wrong)
        }
        "empty" => data::length(value)? == 0,
        _ => return Ok(None),
    }))
}
