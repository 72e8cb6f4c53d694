//! The functions of the language: `range`, `dict` and `namespace`.

use minijinja::value::{Kwargs, ValueOrKwargs};
use minijinja::{Environment, Error, Value, functions as engine};

use super::data;
use super::limits::{MAX_ITEMS, exceeded, invalid};

pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment.add_function("range", range);
    environment.add_function("dict", |named: Kwargs| {
        let pairs = named.args().map(|name| Ok((Value::from(name), named.get::<Value>(name)?)));
        data::mapping(pairs.collect::<Result<Vec<_>, Error>>()?)
    });
    environment.add_function("namespace", |values: Option<ValueOrKwargs>| {
        let values = values.map_or_else(|| Value::from_pairs([] as [(&str, Value); 0]), ValueOrKwargs::into_value);
        // What a namespace holds must be data, so that none holds another.
        let pairs = data::pairs(&values)?.into_iter().map(|(key, value)| Ok((key.to_string(), data::storable(value)?)));
        let checked = Value::from_pairs(pairs.collect::<Result<Vec<_>, Error>>()?);
        engine::namespace(Some(checked.into()))
    });
}

/// Whole numbers from `start` (or 0) to below `end`.
fn range(first: i64, second: Option<i64>, stride: Option<i64>) -> Result<Value, Error> {
    let (start, end) = second.map_or((0, first), |end| (first, end));
    let stride = stride.unwrap_or(1);
    if stride == 0 {
        return Err(invalid("a range cannot step by 0"));
    }
    let distance = i128::from(end) - i128::from(start);
    let stride = i128::from(stride);
    let count =
        if (distance > 0) == (stride > 0) && distance != 0 { (distance.abs() - 1) / stride.abs() + 1 } else { 0 };
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count > MAX_ITEMS {
        return Err(exceeded("a range has more than 1048576 items"));
    }
    Ok(Value::make_iterable(move || {
        (0..count).map(move |at| {
            let value = i128::from(start) + stride * i128::try_from(at).unwrap_or(0);
            i64::try_from(value).unwrap_or(i64::MAX)
        })
    }))
}
