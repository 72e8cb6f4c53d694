//! The filters of the language. Each charges for what it makes, and none does I/O or reads a clock.

// The engine hands arguments over by value.
#![allow(clippy::needless_pass_by_value)]

mod lists;
mod numbers;
mod text;

use bytes::Bytes;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, Value};

use super::data::{self, defined, to_json};
use super::json;
use super::limits::{charge, invalid};

/// Every filter.
pub(super) const NAMES: [&str; 51] = [
    "abs",
    "attr",
    "b64decode",
    "b64encode",
    "bool",
    "capitalize",
    "combine",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "fromjson",
    "indent",
    "int",
    "items",
    "join",
    "keys",
    "last",
    "length",
    "lines",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "select",
    "selectattr",
    "sort",
    "split",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urldecode",
    "urlencode",
    "values",
    "wordcount",
    "zfill",
];

pub(super) fn add_to(environment: &mut Environment<'_>) {
    text::add_to(environment);
    numbers::add_to(environment);
    lists::add_to(environment);
    for name in ["default", "d"] {
        environment.add_filter(name, default);
    }
    environment.add_filter("tojson", |value: Value| to_json(&defined(value)?));
    environment.add_filter("fromjson", |value: Value| {
        let text = data::text(&value)?;
        charge(text.len().saturating_mul(3))?;
        let parsed = json::parse(&Bytes::copy_from_slice(text.as_bytes()));
        parsed.ok_or_else(|| invalid("this text is not JSON, or is nested deeper than 128"))
    });
}

/// What stands in for an undefined value, or with `true` as the second argument for a false or empty one.
fn default(value: Value, otherwise: Option<Value>, also_false: Option<bool>, named: Kwargs) -> Result<Value, Error> {
    let also_false = match also_false {
        Some(also_false) => also_false,
        None => named.get::<Option<bool>>("boolean")?.unwrap_or(false),
    };
    named.assert_all_used()?;
    let absent = value.is_undefined() || (also_false && !value.is_true());
    Ok(if absent { otherwise.unwrap_or_else(|| Value::from("")) } else { value })
}
