//! A request whose body was read, and the view that expressions have of it.

use std::sync::Arc;

use bytes::Bytes;
use http::Version;
use http::header::HeaderMap;
use http::request::Parts;
use jiff::Timestamp;
use serde::de::IgnoredAny;
use uuid::Uuid;

use super::headers::{join_cookies, stored};
use super::routes::Rule;
use crate::core::message::{Carried, Message, MessageId, Origin};
use crate::expression::{Applied, Content, Context, MessageScope, Scope};

/// A request, complete, with the id that its message will have.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) parts: Parts,
    pub(super) body: Bytes,
    pub(super) id: MessageId,
    timestamp: Timestamp,
    /// Whether the body is JSON, once somebody has asked.
    is_json: Option<Result<(), String>>,
    /// The view of the last rule that was asked, with that rule's path pattern.
    view: Option<(Arc<Rule>, Context)>,
}

/// A message that its rule's transform fails on.
pub(super) struct Untransformed {
    /// Of the rule.
    pub(super) field: String,
    pub(super) error: String,
}

impl Received {
    pub(super) fn new(mut parts: Parts, body: Bytes) -> Self {
        if parts.version >= Version::HTTP_2 {
            join_cookies(&mut parts.headers);
        }
        let mut buffer = Uuid::encode_buffer();
        let id: &str = Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
        Self { parts, body, id: MessageId::new(id), timestamp: Timestamp::now(), is_json: None, view: None }
    }

    /// Whether the body is JSON, or what is wrong with it. It is read once for all rules that ask.
    pub(super) fn is_json(&mut self) -> Result<(), String> {
        let read = || serde_json::from_slice::<IgnoredAny>(&self.body).map(|_| ()).map_err(|error| error.to_string());
        self.is_json.get_or_insert_with(read).clone()
    }

    /// What the expressions of a rule see. Rules of one path share a view, so that the body is parsed once.
    pub(super) fn view(&mut self, rule: &Arc<Rule>) -> Context {
        if let Some((seen_by, view)) = &self.view
            && seen_by.pattern == rule.pattern
        {
            return view.clone();
        }
        let view = Context::from(self.scope(rule));
        self.view = Some((rule.clone(), view.clone()));
        view
    }

    fn scope(&self, rule: &Rule) -> Scope {
        Scope {
            body: self.body.clone(),
            headers: self.parts.headers.clone(),
            method: self.parts.method.as_str().to_owned(),
            segments: rule.pattern.matches(self.parts.uri.path()).unwrap_or_default(),
            query: self.parts.uri.query().map(str::to_owned),
            message: MessageScope {
                id: self.id.as_str().to_owned(),
                timestamp: Some(self.timestamp.to_string()),
                ..MessageScope::default()
            },
        }
    }

    /// The message to be stored: the request, without what is not to be kept, changed by the rule's transform.
    pub(super) fn into_message(mut self, rule: &Rule) -> Result<Message, Untransformed> {
        let scope = rule.transform.as_ref().map(|_| self.scope(rule));
        let kept = stored(std::mem::replace(&mut self.parts.headers, HeaderMap::new()), rule.forward_credentials);
        let mut message = Message {
            id: self.id,
            correlation_id: None,
            timestamp: Some(self.timestamp),
            content_type: kept.content_type,
            content_encoding: kept.content_encoding,
            origin: Some(Origin {
                path: self.parts.uri.path().to_owned(),
                query: self.parts.uri.query().map(str::to_owned),
                method: self.parts.method,
                route: rule.label.clone(),
            }),
            headers: kept.headers,
            body: self.body,
            status: None,
            reply_to: None,
            death: None,
            carried: Carried::default(),
        };
        if let (Some(transform), Some(scope)) = (&rule.transform, scope) {
            match transform.apply(&scope, Content::of(&message)) {
                Ok(Applied::Changed(content)) => content.into_message(&mut message),
                Ok(Applied::Filtered) => {
                    // Refused when the route is compiled.
                    let error = "a filter has no meaning in a route".to_owned();
                    return Err(Untransformed { field: "transform".to_owned(), error });
                }
                Err(error) => return Err(Untransformed { field: error.field(), error: error.to_string() }),
            }
        }
        Ok(message)
    }
}
