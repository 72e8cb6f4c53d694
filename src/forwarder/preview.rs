//! What a processor makes of a message, for whoever wants to see it: nothing is taken from a store, nothing is sent.

use std::sync::Arc;

use ::http::Request;
use ::http::header::AUTHORIZATION;
use bytes::Bytes;

use super::StartError;
use super::prepare::{Expressions, Failure};
use super::request::RequestBuilder;
use crate::core::message::{Carried, Message};
use crate::core::ordering::{Lane, Sequence};
use crate::plan::{ForwarderPlan, TargetPlan};
use crate::store::{Delivery, Tag};
use crate::target::http;

/// Of a store that holds nothing else.
const FIRST: Sequence = 1;

/// A processor that is only looked at.
#[derive(Debug)]
pub struct Preview {
    expressions: Expressions,
    requests: RequestBuilder,
    target: To,
}

#[derive(Debug)]
enum To {
    Url { url: String, has_credentials: bool },
    Store(String),
}

/// What becomes of a message.
#[derive(Debug)]
pub enum Previewed {
    /// A filter was false.
    Filtered,
    /// It is sent.
    Sent {
        /// What it waits behind.
        lane: Lane,
        /// As what.
        as_what: Sent,
    },
}

/// What goes out.
#[derive(Debug)]
pub enum Sent {
    /// The first attempt's request, with its whole URL and without the credentials that `auth` adds.
    Request(Box<Request<Bytes>>),
    /// A message for another store.
    Message {
        /// The store's name.
        store: String,
        /// The message.
        message: Arc<Message>,
    },
}

impl Preview {
    /// Compiles a plan. A Service has the address that it has in a cluster.
    pub fn of(plan: &ForwarderPlan) -> Result<Self, StartError> {
        let target = match &plan.target {
            TargetPlan::Http(target) => To::Url {
                url: target.address.in_cluster(&plan.object.namespace),
                has_credentials: target.auth.is_some(),
            },
            TargetPlan::Store(store) => To::Store(store.clone()),
        };
        let requests = RequestBuilder::of(plan).map_err(StartError::Request)?;
        Ok(Self { expressions: Expressions::compile(plan)?, requests, target })
    }

    /// What becomes of a message that is taken for the first time.
    pub fn message(&self, message: Arc<Message>) -> Result<Previewed, Failure> {
        let delivery =
            Delivery { tag: Tag(FIRST), message, redelivered: false, returned: 0, source: Carried::default() };
        let lane = self.expressions.lane(&delivery.message, FIRST)?;
        let Some(content) = self.expressions.content(&delivery.message)? else { return Ok(Previewed::Filtered) };
        let attempt = self.requests.build(&self.expressions, &delivery, &content, 1)?;
        let as_what = match &self.target {
            To::Store(store) => Sent::Message { store: store.clone(), message: attempt.message },
            To::Url { url, has_credentials } => {
                let failed = |problem| Failure { field: "spec.target".to_owned(), problem };
                let mut request = http::preview(url, attempt).map_err(failed)?;
                if *has_credentials {
                    request.headers_mut().remove(AUTHORIZATION);
                }
                Sent::Request(Box::new(request))
            }
        };
        Ok(Previewed::Sent { lane, as_what })
    }
}
