//! Filters over texts.

// The engine hands arguments over by value.
#![allow(clippy::needless_pass_by_value)]

use std::borrow::Cow;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minijinja::filters as engine;
use minijinja::{Environment, Error, Value};

use super::super::data::{list, text};
use super::super::limits::{ITEM, charge, charge_text, charge_walk, invalid};
use super::super::scope;

fn text_filter<F>(environment: &mut Environment<'_>, name: &'static str, growth: usize, make: F)
where
    F: Fn(&str) -> String + Send + Sync + 'static,
{
    environment.add_filter(name, move |value: Value| {
        let text = text(&value)?;
        charge(text.len().saturating_mul(growth))?;
        let result = make(&text);
        charge_text(result.len())?;
        Ok::<_, Error>(result)
    });
}

pub(super) fn add_to(environment: &mut Environment<'_>) {
    text_filter(environment, "lower", 1, str::to_lowercase);
    text_filter(environment, "upper", 1, str::to_uppercase);
    text_filter(environment, "title", 1, |text| engine::title(Cow::Borrowed(text)));
    text_filter(environment, "capitalize", 1, |text| {
        let mut characters = text.chars();
        let first = characters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
        first + &characters.as_str().to_lowercase()
    });
    text_filter(environment, "string", 0, str::to_owned);
    text_filter(environment, "b64encode", 1, |text| STANDARD.encode(text));
    text_filter(environment, "urlencode", 2, encode_percent);
    text_filter(environment, "urldecode", 1, |text| scope::decode_percent(text, false));
    text_filter(environment, "escape", 5, escape);
    text_filter(environment, "e", 5, escape);
    environment.add_filter("b64decode", |value: Value| {
        let text = text(&value)?;
        charge_text(text.len())?;
        let bytes = STANDARD.decode(text.trim()).map_err(|_| invalid("this text is not base64"))?;
        String::from_utf8(bytes).map_err(|_| invalid("what this base64 holds is not text (UTF-8)"))
    });
    environment.add_filter("trim", |value: Value, characters: Option<Cow<'_, str>>| {
        let text = text(&value)?;
        charge_text(text.len())?;
        let trimmed = match &characters {
            Some(these) => text.trim_matches(|character| these.contains(character)),
            None => text.trim(),
        };
        Ok::<_, Error>(trimmed.to_owned())
    });
    environment.add_filter("replace", |value: Value, from: Cow<'_, str>, to: Cow<'_, str>| {
        let text = text(&value)?;
        charge_walk(text.len())?;
        let occurrences = text.matches(&*from).count();
        charge_text(text.len().saturating_add(occurrences.saturating_mul(to.len())))?;
        Ok::<_, Error>(text.replace(&*from, &to))
    });
    environment.add_filter("split", split);
    environment.add_filter("lines", |value: Value| {
        let text = text(&value)?;
        charge_text(text.len())?;
        collect(text.lines().map(Value::from))
    });
    environment.add_filter("wordcount", |value: Value| {
        let text = text(&value)?;
        charge_walk(text.len())?;
        Ok::<_, Error>(text.split_whitespace().count())
    });
    environment.add_filter("indent", indent);
    environment.add_filter("truncate", |value: Value, length: Option<usize>, end: Option<Cow<'_, str>>| {
        let (text, length) = (text(&value)?, length.unwrap_or(255));
        charge_text(text.len())?;
        if text.chars().count() <= length {
            return Ok::<_, Error>(text.into_owned());
        }
        let end = end.unwrap_or(Cow::Borrowed("..."));
        let kept = text.chars().take(length.saturating_sub(end.chars().count())).collect::<String>();
        Ok(kept + &end)
    });
    environment.add_filter("zfill", |value: Value, width: usize| {
        let text = text(&value)?;
        let missing = width.saturating_sub(text.chars().count());
        charge_text(text.len().saturating_add(missing))?;
        let (sign, digits) = match text.strip_prefix(['-', '+']) {
            Some(digits) => text.split_at(text.len() - digits.len()),
            None => ("", &*text),
        };
        Ok::<_, Error>([sign, &"0".repeat(missing), digits].concat())
    });
}

/// A list of texts, charged as it grows.
fn collect<'t>(texts: impl Iterator<Item = Value> + 't) -> Result<Value, Error> {
    let mut found = Vec::new();
    for text in texts {
        charge(ITEM)?;
        found.push(text);
    }
    list(found)
}

fn split(value: Value, separator: Option<Cow<'_, str>>, most: Option<i64>) -> Result<Value, Error> {
    let text = text(&value)?;
    charge_text(text.len())?;
    let most = most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most.saturating_add(1));
    match separator.as_deref() {
        Some("") => Err(invalid("a text cannot be split by an empty text")),
        Some(separator) => collect(text.splitn(most, separator).map(Value::from)),
        None => collect(text.split_whitespace().take(most).map(Value::from)),
    }
}

fn indent(value: Value, width: Option<usize>, first: Option<bool>) -> Result<String, Error> {
    let (text, width) = (text(&value)?, width.unwrap_or(4));
    charge_walk(text.len())?;
    let lines = text.matches('\n').count() + 1;
    charge_text(text.len().saturating_add(lines.saturating_mul(width)))?;
    let margin = " ".repeat(width);
    let mut indented = String::new();
    for (at, line) in text.split_inclusive('\n').enumerate() {
        if (at > 0 || first == Some(true)) && !line.trim().is_empty() {
            indented.push_str(&margin);
        }
        indented.push_str(line);
    }
    Ok(indented)
}

/// Everything but the unreserved characters of RFC 3986.
fn encode_percent(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// For XML and HTML.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}
