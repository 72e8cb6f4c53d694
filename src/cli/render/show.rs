//! What became of a message, for people and for scripts.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use serde_json::{Value, json};

use super::way::{Arrival, Outcome, Station, Way};
use crate::core::duration;
use crate::core::message::Message;
use crate::core::ordering::Lane;
use crate::expression::Content;
use crate::forwarder::Sent;
use crate::ingress::{Refused, Taken};

/// Parts with a heading each; a body stands there as it is.
pub(super) fn text(way: &Way) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(arrival) = &way.arrival {
        arrived(arrival, &mut lines);
    }
    for (store, key) in &way.unroutable {
        lines.push(format!("# MessageStore/{store}: no queue of these files is bound for routing key `{key}`"));
        lines.push(String::new());
    }
    way.stations.iter().for_each(|station| processed(station, &mut lines));
    // What is between the parts is not behind the last.
    lines.pop_if(|last| last.is_empty());
    lines
}

fn arrived(arrival: &Arrival, lines: &mut Vec<String>) {
    let Arrival { request, previewed, passed_over, .. } = arrival;
    lines.push("# request".to_owned());
    lines.push(format!("{} {}", request.method(), request.uri()));
    content(request.headers(), request.body(), lines);
    let answer = match &previewed.outcome {
        Ok(Taken { rule, store, routing_key, message, answer, reply }) => {
            let key = routing_key.as_ref().map(|key| format!(", routing key `{key}`")).unwrap_or_default();
            let name = rule.route.rsplit('/').next().unwrap_or_default();
            lines.push(format!("# IngressRoute/{name}, rule {}: into MessageStore/{store}{key}", rule.rule));
            let Content { headers, body } = Content::of(message);
            content(&headers, &body, lines);
            reply.map_or(Ok(answer), Err)
        }
        Err(Refused { answer, .. }) => {
            lines.push("# not stored".to_owned());
            Ok(answer)
        }
    };
    // Of a request that was taken, only rules that came near are worth a line.
    let near = previewed.passed_over.iter().map(|passed| previewed.outcome.is_err() || passed.field != "path");
    let shown = passed_over.iter().zip(near).filter_map(|(passed, near)| near.then_some(passed));
    let before = lines.len();
    lines.extend(shown.map(|passed| format!("passed over: {passed}")));
    if lines.len() > before || previewed.outcome.is_err() {
        lines.push(String::new());
    }
    match answer {
        Ok(answer) => {
            lines.push("# answer to the caller".to_owned());
            lines.push(answer.status().to_string());
            content(answer.headers(), answer.body(), lines);
        }
        Err(reply) => {
            lines.push(format!("# answer to the caller: the target's, awaited for {}", duration::format(reply)));
            lines.push(String::new());
        }
    }
}

fn processed(station: &Station, lines: &mut Vec<String>) {
    let Station { processor, source, outcome } = station;
    let heading = format!("# ForwardingProcessor/{processor}, from MessageStore/{source}");
    match outcome {
        Outcome::Filtered => lines.push(format!("{heading}: filtered, settled without delivery")),
        Outcome::Failed { then, .. } => lines.push(format!("{heading}: fails ({then})")),
        Outcome::Sent { lane, sent, secret } => {
            let key = match lane {
                Lane::Key(key) => format!(", ordering key `{key}`"),
                Lane::Keyless => ", without an ordering key".to_owned(),
                Lane::All | Lane::Own(_) => String::new(),
            };
            match sent {
                Sent::Request(request) => {
                    lines.push(format!("{heading}{key}"));
                    lines.push(format!("{} {}", request.method(), request.uri()));
                    lines.extend(secret.iter().map(|secret| format!("authorization: (of {secret})")));
                    return content(request.headers(), request.body(), lines);
                }
                Sent::Message { store, message } => {
                    lines.push(format!("{heading}{key}: into MessageStore/{store}"));
                    let Content { headers, body } = Content::of(message);
                    return content(&headers, &body, lines);
                }
            }
        }
    }
    lines.push(String::new());
}

/// Headers, an empty line, the body, an empty line.
fn content(headers: &HeaderMap, body: &[u8], lines: &mut Vec<String>) {
    for (name, value) in headers {
        lines.push(format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())));
    }
    lines.push(String::new());
    if body.is_empty() {
        return;
    }
    match std::str::from_utf8(body) {
        // The line's end is printed anyway.
        Ok(text) => lines.push(text.strip_suffix('\n').unwrap_or(text).to_owned()),
        Err(_) => lines.push(format!("({} bytes that are not text; see them with -o json)", body.len())),
    }
    lines.push(String::new());
}

/// The same for scripts. Headers and bodies look as in the lines of `stagepost sink`.
pub(super) fn json(way: &Way) -> Value {
    let arrival = way.arrival.as_ref();
    let unroutable: Vec<Value> =
        way.unroutable.iter().map(|(store, key)| json!({"store": store, "routingKey": key})).collect();
    json!({
        "request": arrival.map(|arrival| {
            let request = &arrival.request;
            json!({
                "method": request.method().as_str(),
                "path": request.uri().path(),
                "query": request.uri().query(),
                "headers": headers(request.headers()),
                "body": body(request.body()),
            })
        }),
        "route": arrival.map(route),
        "unroutable": unroutable,
        "processors": way.stations.iter().map(station).collect::<Vec<_>>(),
    })
}

fn route(arrival: &Arrival) -> Value {
    let taken = arrival.previewed.outcome.as_ref().ok();
    let answer = match &arrival.previewed.outcome {
        Ok(Taken { reply: Some(_), .. }) => None,
        Ok(taken) => Some(&taken.answer),
        Err(refused) => Some(&refused.answer),
    };
    json!({
        "name": taken.map(|taken| &taken.rule.route),
        "rule": taken.map(|taken| &taken.rule.rule),
        "store": taken.map(|taken| &taken.store),
        "routingKey": taken.and_then(|taken| taken.routing_key.as_ref()),
        "message": taken.map(|taken| message(&taken.message)),
        "answer": answer.map(|answer| {
            json!({
                "status": answer.status().as_u16(),
                "headers": headers(answer.headers()),
                "body": body(answer.body()),
            })
        }),
        "reply": taken.and_then(|taken| taken.reply).map(duration::format),
        "error": arrival.error,
        "passedOver": arrival.passed_over,
    })
}

fn station(station: &Station) -> Value {
    let mut shown = json!({"name": station.processor, "store": station.source});
    match &station.outcome {
        Outcome::Filtered => shown["filtered"] = json!(true),
        Outcome::Failed { error, then } => {
            shown["error"] = json!(error);
            shown["then"] = json!(then);
        }
        Outcome::Sent { lane, sent, secret } => {
            if let Lane::Key(key) = lane {
                shown["orderingKey"] = json!(&**key);
            }
            match sent {
                Sent::Request(request) => {
                    shown["request"] = json!({
                        "method": request.method().as_str(),
                        "url": request.uri().to_string(),
                        "headers": headers(request.headers()),
                        "body": body(request.body()),
                        "credentials": secret,
                    });
                }
                Sent::Message { store, message: sent } => {
                    shown["message"] = message(sent);
                    shown["targetStore"] = json!(store);
                }
            }
        }
    }
    shown
}

fn message(message: &Message) -> Value {
    let content = Content::of(message);
    json!({"id": message.id.as_str(), "headers": headers(&content.headers), "body": body(&content.body)})
}

fn headers(headers: &HeaderMap) -> BTreeMap<&str, Vec<String>> {
    let mut shown: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        shown.entry(name.as_str()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    shown
}

fn body(body: &[u8]) -> Value {
    let mut shown = json!({"base64": STANDARD.encode(body)});
    if let Ok(text) = std::str::from_utf8(body) {
        shown["text"] = json!(text);
    }
    shown
}
