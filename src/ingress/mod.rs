//! HTTP into stores: a request is read, checked, stored durably, and only then answered.
//!
//! Inputs: compiled routes ([`RouteTable`]), a listener ([`Server`]). Outputs: messages published through
//! [`crate::store::publisher::Publisher`], answers to callers, counters. The order of things is the promise: the
//! answer that says "accepted" is sent after the store confirmed, never before.
//!
//! It must not deliver anything, must not read a store, and must not hold more in memory than the routes' limits
//! allow: what is beyond them is refused by its head, before its body is read.
//!
//! Who bounds what:
//!
//! | bound | where |
//! |---|---|
//! | connections | the accept loop (`server`) stops accepting |
//! | time to the first byte, to the complete head, between requests | `connection`, by the longest `readTimeout` of the routes |
//! | size of a head | `handler` by the route's limit, hyper a little above the largest: 431 |
//! | requests and bytes in flight, size of a body, time for it | `admission`, by route: 503, 413, 408 |
//! | time of a publish | the publisher's deadline |
//! | time to write an answer, and to close | `socket` |

mod admission;
mod answer;
mod connection;
mod handler;
mod headers;
mod no_rule;
mod preview;
mod problem;
mod publication;
mod publishers;
mod received;
mod refusal;
mod reply;
mod routes;
mod schema;
mod server;
mod socket;

pub use answer::AnswerError;
pub use preview::{PassedOver, Preview, Previewed, Refused, RuleName, Taken};
pub use publishers::publishers;
pub use routes::{RouteCounters, RouteError, RouteInput, RouteTable, RuleError};
pub use server::{Drain, Drained, Server};
