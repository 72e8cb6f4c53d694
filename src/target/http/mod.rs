//! HTTP targets: one attempt is one HTTP/1.1 request, and the complete response head is its outcome.
//!
//! Inputs: an [`Attempt`], complete. Outputs: an [`Answer`], always. This module never retries for the caller's sake
//! (but for the stale keep-alive rule below), follows no redirect, reads no proxy from the environment, decodes no
//! content encoding, and never goes on without TLS where the URL says `https`.
//!
//! # Why `hyper::client::conn` with a pool of our own
//!
//! The rules need two things that a ready-made client keeps to itself. Whether the connection that was reset *had been
//! reused*: such a reset is not the target's answer but a race with its idle time-out, and gets one immediate try on a
//! fresh connection that counts as no attempt; a client that repeats by itself hides a possible duplicate. And the
//! *address* that is really dialled, literals included: a resolver hook never sees `http://169.254.169.254/`. A
//! connection here is one value that the attempt itself drives: no task per connection, no hand-over between threads,
//! and a cancelled attempt closes its connection by dropping it.
//!
//! # The time of an attempt
//!
//! `connect_timeout` bounds name, connect and TLS handshake together; `timeout` bounds writing the request and reading
//! the complete head, both tries of a repeated attempt together; `timeout` again bounds the body.
//!
//! # When addresses change
//!
//! A name is resolved again for each new connection; an idle one is kept for [`pool::MAX_IDLE_TIME`] and none is reused
//! after [`pool::MAX_AGE`], so traffic follows a changed address within a minute even on a busy target.

mod address;
mod config;
mod connect;
mod connection;
mod failure;
mod pool;
mod request;
mod tls;

pub use config::{ClientIdentity, Credentials, HttpTargetConfig, TargetConfigError, TlsMaterial};

use std::sync::Arc;
use std::time::Duration;

use ::http::uri::Scheme;
use ::http::{Request, Uri};
use bytes::Bytes;
use http_body_util::Full;
use tokio::time::Instant;

use self::connect::Connector;
use self::connection::{Connection, Exchanged, Head};
use self::pool::Pool;
use self::request::Requests;
use super::{Answer, AnswerBody, Attempt, Target};
use crate::core::outcome::Outcome;
use crate::store::BoxFuture;

/// Of an answer that nobody wants: read up to this many bytes to keep the connection, give it up beyond.
const DRAIN_BYTES: usize = 64 * 1024;

/// Of an answer that nobody wants: how long the next message may wait for the connection to be kept. A new connection
/// costs less than a longer wait.
const DRAIN_TIME: Duration = Duration::from_millis(100);

/// The request that an attempt comes to, with its whole URL and without credentials. For whoever wants to see it:
/// nothing is dialled.
pub fn preview(url: &str, attempt: Attempt) -> Result<Request<Bytes>, String> {
    let url = config::parse_url(url).map_err(|error| error.to_string())?;
    let requests = Requests::new(&url, None).map_err(|error| error.to_string())?;
    let body = attempt.body.clone();
    let mut request = requests.build(attempt)?.map(|_| body);
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(if url.secure { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority = url.authority.parse().ok();
    *request.uri_mut() = Uri::from_parts(parts).map_err(|error| error.to_string())?;
    Ok(request)
}

/// A target that is called over HTTP. Its connections are its own; dropping it closes the idle ones.
pub struct HttpTarget {
    requests: Requests,
    connector: Connector,
    pool: Arc<Pool>,
    timeout: Duration,
    reads_bodies: bool,
    max_body: usize,
}

impl std::fmt::Debug for HttpTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpTarget").field("target", &self.requests.display()).finish_non_exhaustive()
    }
}

impl HttpTarget {
    /// Checks the configuration and builds the target. Dials nothing.
    pub fn new(config: &HttpTargetConfig) -> Result<Self, TargetConfigError> {
        let url = config::parse_url(&config.url)?;
        Ok(Self {
            requests: Requests::new(&url, config.credentials.as_ref())?,
            connector: Connector::new(&url, config)?,
            pool: Pool::new(pool::Limits::for_attempts(config.max_idle)),
            timeout: config.timeout,
            reads_bodies: config.reads_bodies,
            max_body: config.max_body,
        })
    }

    /// The URL without its query, as it may stand in a status or a log.
    pub fn display_url(&self) -> &str {
        self.requests.display()
    }

    async fn attempt(&self, attempt: Attempt) -> Answer {
        let started = Instant::now();
        let wanted = (self.reads_bodies || attempt.message.reply_to.is_some()).then_some(self.max_body);
        let request = match self.requests.build(attempt) {
            Ok(request) => request,
            Err(impossible) => return failed(Outcome::Invalid(impossible), false, started),
        };
        let mut repeated = false;
        let mut time_left = self.timeout;
        if let Some(mut reused) = self.pool.take() {
            let sending = Instant::now();
            match reused.exchange(request.clone(), sending + self.timeout).await {
                Exchanged::Head(head) => return self.answer(reused, head, wanted, false, started).await,
                Exchanged::Failed(outcome) => return failed(outcome, false, started),
                Exchanged::ClosedBeforeAnswer { sent, .. } => {
                    repeated = sent;
                    time_left = self.timeout.saturating_sub(sending.elapsed());
                }
            }
        }
        let mut fresh = match self.connector.connect().await {
            Ok(fresh) => fresh,
            Err(outcome) => return failed(outcome, repeated, started),
        };
        match fresh.exchange(request, Instant::now() + time_left).await {
            Exchanged::Head(head) => self.answer(fresh, head, wanted, repeated, started).await,
            Exchanged::Failed(outcome) | Exchanged::ClosedBeforeAnswer { outcome, .. } => {
                failed(outcome, repeated, started)
            }
        }
    }

    /// The head has decided. What happens from here on can only cost the body and the connection.
    async fn answer(
        &self,
        mut connection: Connection,
        head: Head,
        wanted: Option<usize>,
        repeated: bool,
        started: Instant,
    ) -> Answer {
        let elapsed = started.elapsed();
        let body = match wanted {
            Some(limit) => connection.read_body(head.body, limit, self.timeout).await,
            None if connection.drain(head.body, DRAIN_BYTES, DRAIN_TIME).await => AnswerBody::None,
            None => AnswerBody::Unusable("not read"),
        };
        let intact = !matches!(body, AnswerBody::Unusable(_));
        if intact && connection.is_reusable().await {
            self.pool.put(connection);
        }
        let body = if wanted.is_none() { AnswerBody::None } else { body };
        Answer { outcome: Outcome::Response { status: head.status, headers: head.headers }, body, repeated, elapsed }
    }
}

impl Target for HttpTarget {
    fn send(&self, attempt: Attempt) -> BoxFuture<'_, Answer> {
        Box::pin(self.attempt(attempt))
    }
}

fn failed(outcome: Outcome, repeated: bool, started: Instant) -> Answer {
    Answer { outcome, body: AnswerBody::None, repeated, elapsed: started.elapsed() }
}

/// What goes over a connection: the body is there as a whole, so it can be sent again.
type Outgoing = Request<Full<Bytes>>;
