//! Filters over numbers.

// The engine hands arguments over by value.
#![allow(clippy::needless_pass_by_value)]

use std::borrow::Cow;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, Value};

use super::super::data::{defined, items, kind_name, undefined};
use super::super::limits::{ITEM, charge, invalid};
use super::super::number::{self, Arithmetic, Number, calculate};
use super::lists::attributes;

pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment.add_filter("int", |value: Value, otherwise: Option<Value>| to_whole(&defined(value)?, otherwise));
    environment.add_filter("float", |value: Value, otherwise: Option<Value>| to_float(&defined(value)?, otherwise));
    environment.add_filter("abs", |value: Value| match number_of(&value)? {
        Number::Whole(whole) if whole < 0 => Number::Whole(whole).negated(),
        Number::Float(float) => Ok(Value::from(float.abs())),
        number @ Number::Whole(_) => Ok(number.to_value()),
    });
    environment.add_filter("round", round);
    environment.add_filter("bool", |value: Value| Ok::<_, Error>(defined(value)?.is_true()));
    environment.add_filter("sum", |values: Value, named: Kwargs| {
        let mut sum = Value::from(0);
        for item in attributes(items(&values)?, &named)? {
            charge(ITEM)?;
            sum = calculate(Arithmetic::Add, number_of(&sum)?, number_of(&item)?)?;
        }
        Ok::<_, Error>(sum)
    });
}

fn number_of(value: &Value) -> Result<Number, Error> {
    if value.is_undefined() {
        return Err(undefined());
    }
    number::of(value)
        .ok_or_else(|| invalid(format!("a {} is not a number; convert it with int or float", kind_name(value))))
}

fn not_convertible(value: &Value, to: &str, otherwise: Option<Value>) -> Result<Value, Error> {
    otherwise.ok_or_else(|| invalid(format!("this {} is not a {to}; give a default as the argument", kind_name(value))))
}

fn to_whole(value: &Value, otherwise: Option<Value>) -> Result<Value, Error> {
    let parsed = match value.as_str() {
        Some(text) => {
            let text = text.trim();
            let whole = text.parse::<i128>().ok().map(Number::Whole);
            whole.or_else(|| text.parse::<f64>().ok().map(Number::Float))
        }
        None if value.kind() == ValueKind::Bool => Some(Number::Whole(i128::from(value.is_true()))),
        None => number::of(value),
    };
    // Beyond this a float holds no exact whole number that i128 could.
    #[allow(clippy::cast_possible_truncation)]
    match parsed {
        Some(Number::Whole(whole)) => Ok(Number::Whole(whole).to_value()),
        Some(Number::Float(float)) if float.abs() < 1e38 => Ok(Number::Whole(float.trunc() as i128).to_value()),
        _ => not_convertible(value, "whole number", otherwise),
    }
}

fn to_float(value: &Value, otherwise: Option<Value>) -> Result<Value, Error> {
    let parsed = match value.as_str() {
        Some(text) => text.trim().parse::<f64>().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => number::of(value).map(Number::as_f64),
    };
    match parsed.filter(|float| float.is_finite()) {
        Some(float) => Ok(Value::from(float)),
        None => not_convertible(value, "number", otherwise),
    }
}

/// To so many decimals; half is rounded away from zero.
fn round(value: Value, decimals: Option<i32>, method: Option<Cow<'_, str>>) -> Result<Value, Error> {
    let number = number_of(&value)?;
    let decimals = decimals.unwrap_or(0).clamp(-300, 300);
    if let (Number::Whole(_), 0..) = (number, decimals) {
        return Ok(number.to_value());
    }
    let (float, scale) = (number.as_f64(), 10f64.powi(decimals));
    let scaled = float * scale;
    let rounded = match method.as_deref() {
        None | Some("common") => scaled.round(),
        Some("ceil") => scaled.ceil(),
        Some("floor") => scaled.floor(),
        Some(_) => return Err(invalid("round knows the methods common, ceil and floor")),
    };
    let result = rounded / scale;
    // A scale beyond the range of f64 changes nothing about the number.
    Ok(Value::from(if result.is_finite() { result } else { float }))
}
