//! Numbers: arithmetic for operators and filters, and the texts of numbers that no `i64` or `f64` prints back.
//!
//! `1.10`, `1e400` and `12345678901234567890123` pass through a template as they came. Arithmetic is in `i128` where
//! both sides are whole, else in `f64`.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use minijinja::value::{DynObject, Object, ObjectRepr, ValueKind};
use minijinja::{Error, Value};

use super::limits::invalid;

/// The value of a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Number {
    /// A whole number.
    Whole(i128),
    /// Any other.
    Float(f64),
}

/// A number of a message whose text differs from what its value would print.
#[derive(Debug)]
pub(super) struct NumberText {
    text: Box<str>,
    number: Number,
}

impl Object for NumberText {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        !self.number.is_zero()
    }

    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<Ordering> {
        other.downcast_ref::<Self>().map(|other| self.number.compare(other.number))
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The value of a JSON number. Its text is kept where it would be lost.
pub(super) fn from_json(text: &str) -> Value {
    // JSON has no leading zeros or plus signs, so a whole number that fits prints as it came, but for -0.
    if let Ok(whole) = text.parse::<i64>()
        && text != "-0"
    {
        return Value::from(whole);
    }
    let number = match text.parse::<i128>() {
        Ok(whole) => Number::Whole(whole),
        Err(_) => Number::Float(text.parse().unwrap_or(f64::NAN)),
    };
    // The text of -0 is worth keeping, whatever its value.
    let plain = number.to_value();
    if plain.to_string() == text {
        return plain;
    }
    Value::from_object(NumberText { text: text.into(), number })
}

/// The value of a number, or `None` for anything else.
pub(super) fn of(value: &Value) -> Option<Number> {
    if let Some(text) = value.downcast_object_ref::<NumberText>() {
        return Some(text.number);
    }
    if value.kind() != ValueKind::Number {
        return None;
    }
    if value.is_integer()
        && let Ok(whole) = i128::try_from(value.clone())
    {
        return Some(Number::Whole(whole));
    }
    f64::try_from(value.clone()).ok().map(Number::Float)
}

/// The same value without a text of its own, for code that knows plain numbers only.
pub(super) fn plain(value: &Value) -> Value {
    value.downcast_object_ref::<NumberText>().map_or_else(|| value.clone(), |text| text.number.to_value())
}

/// The text of a number that keeps it.
pub(super) fn kept_text(value: &Value) -> Option<&str> {
    value.downcast_object_ref::<NumberText>().map(|number| &*number.text)
}

impl Number {
    #[allow(clippy::cast_precision_loss)] // That is what arithmetic in f64 means.
    pub(super) fn as_f64(self) -> f64 {
        match self {
            Self::Whole(whole) => whole as f64,
            Self::Float(float) => float,
        }
    }

    pub(super) fn is_zero(self) -> bool {
        match self {
            Self::Whole(whole) => whole == 0,
            Self::Float(float) => float == 0.0,
        }
    }

    pub(super) fn to_value(self) -> Value {
        match self {
            Self::Whole(whole) => i64::try_from(whole).map_or_else(|_| Value::from(whole), Value::from),
            Self::Float(float) => Value::from(float),
        }
    }

    /// The order by value.
    pub(super) fn compare(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => a.cmp(&b),
            (Self::Whole(a), Self::Float(b)) => compare_exactly(a, b),
            (Self::Float(a), Self::Whole(b)) => compare_exactly(b, a).reverse(),
            (Self::Float(a), Self::Float(b)) => a.partial_cmp(&b).unwrap_or_else(|| a.total_cmp(&b)),
        }
    }

    /// One text for all numbers of the same value.
    #[allow(clippy::cast_possible_truncation)] // Only within the range of i128.
    pub(super) fn canonical(self) -> String {
        match self {
            Self::Float(float) if float.fract() == 0.0 && float.abs() < 1e30 => (float as i128).to_string(),
            Self::Float(float) => float.to_string(),
            Self::Whole(whole) => whole.to_string(),
        }
    }

    pub(super) fn negated(self) -> Result<Value, Error> {
        match self {
            Self::Whole(whole) => finish(whole.checked_neg().map(Self::Whole)),
            Self::Float(float) => finish(Some(Self::Float(-float))),
        }
    }
}

/// Compares without rounding: rounded, the order would not be transitive, and sorting must not meet that.
#[allow(clippy::cast_possible_truncation)] // Only within the range of i128.
fn compare_exactly(whole: i128, float: f64) -> Ordering {
    const BEYOND: f64 = 1.7e38;
    if float.is_nan() || float >= BEYOND {
        return Ordering::Less;
    }
    if float <= -BEYOND {
        return Ordering::Greater;
    }
    let by_whole = whole.cmp(&(float.trunc() as i128));
    by_whole.then_with(|| 0.0.partial_cmp(&float.fract()).unwrap_or(Ordering::Equal))
}

/// What can be done with two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Remainder,
    Power,
}

/// Calculates. Fails for a division by zero, and for a result that no number holds.
#[allow(clippy::cast_precision_loss)]
pub(super) fn calculate(operation: Arithmetic, a: Number, b: Number) -> Result<Value, Error> {
    use Arithmetic::{Add, Divide, FloorDivide, Multiply, Power, Remainder, Subtract};
    if matches!(operation, Divide | FloorDivide | Remainder) && b.is_zero() {
        return Err(invalid("division by zero; test the divisor first"));
    }
    if let (Number::Whole(a), Number::Whole(b)) = (a, b) {
        let whole = match operation {
            Add => a.checked_add(b),
            Subtract => a.checked_sub(b),
            Multiply => a.checked_mul(b),
            FloorDivide => floor_divide(a, b),
            Remainder => floor_divide(a, b).and_then(|quotient| a.checked_sub(quotient.checked_mul(b)?)),
            Power if b >= 0 => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
            Divide => return finish(Some(Number::Float(a as f64 / b as f64))),
            Power => return finish(Some(Number::Float((a as f64).powf(b as f64)))),
        };
        return finish(whole.map(Number::Whole));
    }
    let (a, b) = (a.as_f64(), b.as_f64());
    let float = match operation {
        Add => a + b,
        Subtract => a - b,
        Multiply => a * b,
        Divide => a / b,
        FloorDivide => (a / b).floor(),
        Remainder => a - b * (a / b).floor(),
        Power => a.powf(b),
    };
    finish(Some(Number::Float(float)))
}

fn floor_divide(a: i128, b: i128) -> Option<i128> {
    let quotient = a.checked_div(b)?;
    let inexact = quotient.checked_mul(b)? != a;
    if inexact && (a < 0) != (b < 0) { quotient.checked_sub(1) } else { Some(quotient) }
}

/// A result that JSON can hold.
fn finish(number: Option<Number>) -> Result<Value, Error> {
    match number {
        Some(Number::Float(float)) if !float.is_finite() => Err(out_of_range()),
        Some(number) => Ok(number.to_value()),
        None => Err(out_of_range()),
    }
}

fn out_of_range() -> Error {
    invalid("the result is out of the range of numbers; use smaller ones")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_number_prints_as_it_came() {
        for text in [
            "0",
            "-0",
            "1",
            "-1",
            "1.0",
            "1.10",
            "1e400",
            "-1E5",
            "12345678901234567890123",
            "9223372036854775808",
            "0.1000000000000000055511151231257827",
            "1e2",
            "100000000000000000000000000000000000000000000",
        ] {
            assert_eq!(from_json(text).to_string(), text);
        }
    }

    #[test]
    fn arithmetic_is_whole_where_both_sides_are() {
        let one = |operation, a: &str, b: &str| {
            let number = |text| of(&from_json(text)).unwrap();
            calculate(operation, number(a), number(b)).map(|value| value.to_string()).map_err(|error| error.to_string())
        };
        assert_eq!(one(Arithmetic::Add, "1", "2").unwrap(), "3");
        assert_eq!(one(Arithmetic::Multiply, "1.10", "2").unwrap(), "2.2");
        assert_eq!(one(Arithmetic::Divide, "4", "2").unwrap(), "2.0");
        assert_eq!(one(Arithmetic::FloorDivide, "-7", "2").unwrap(), "-4");
        assert_eq!(one(Arithmetic::Remainder, "-7", "2").unwrap(), "1");
        assert_eq!(one(Arithmetic::Power, "2", "10").unwrap(), "1024");
        assert!(one(Arithmetic::Power, "10", "10000").is_err());
        assert!(one(Arithmetic::Divide, "1", "0.0").is_err());
        assert!(one(Arithmetic::Multiply, "1e400", "2").is_err());
    }

    proptest! {
        #[test]
        fn any_json_number_keeps_its_text(text in "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?") {
            prop_assert_eq!(from_json(&text).to_string(), text);
        }

        #[test]
        fn no_arithmetic_panics(a in any::<i128>(), b in any::<i128>(), c in any::<f64>()) {
            use Arithmetic::{Add, Divide, FloorDivide, Multiply, Power, Remainder, Subtract};
            for operation in [Add, Subtract, Multiply, Divide, FloorDivide, Remainder, Power] {
                let _ = calculate(operation, Number::Whole(a), Number::Whole(b));
                let _ = calculate(operation, Number::Whole(a), Number::Float(c));
                let _ = calculate(operation, Number::Float(c), Number::Whole(b));
            }
        }
    }
}
