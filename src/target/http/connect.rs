//! From a target's host to an open connection: name, address check, connect, TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::address::refusal;
use super::config::{HttpTargetConfig, TargetConfigError, TargetUrl};
use super::connection::{Connection, Stream};
use super::failure;
use super::tls::Tls;
use crate::core::duration;
use crate::core::outcome::Outcome;

/// Lookups of one target that run at once. A lookup that hangs holds a thread of the runtime long after we stopped
/// waiting for it; all attempts together may not hold more than these.
const LOOKUPS_AT_ONCE: usize = 4;

/// Makes the connections of one target.
pub(super) struct Connector {
    host: Host,
    port: u16,
    tls: Option<Tls>,
    connect_timeout: Duration,
    refuse_loopback: bool,
    lookups: Arc<Semaphore>,
}

enum Host {
    Literal(IpAddr),
    Name(String),
}

impl Connector {
    pub(super) fn new(url: &TargetUrl, config: &HttpTargetConfig) -> Result<Self, TargetConfigError> {
        Ok(Self {
            host: url.host.parse().map_or_else(|_| Host::Name(url.host.clone()), Host::Literal),
            port: url.port,
            tls: url.secure.then(|| Tls::new(&url.host, &config.tls)).transpose()?,
            connect_timeout: config.connect_timeout,
            refuse_loopback: config.refuse_loopback,
            lookups: Arc::new(Semaphore::new(LOOKUPS_AT_ONCE)),
        })
    }

    /// A fresh connection within the connect time-out. Nothing of a request has been sent when it fails.
    pub(super) async fn connect(&self) -> Result<Connection, Outcome> {
        let deadline = Instant::now() + self.connect_timeout;
        let addresses = self.addresses(deadline).await.map_err(Outcome::ConnectionError)?;
        let stream = self.dial(&addresses, deadline).await.map_err(Outcome::ConnectionError)?;
        let stream = match &self.tls {
            None => Stream::Plain(stream),
            Some(tls) => match timeout_at(deadline, tls.handshake(stream)).await {
                Ok(Ok(stream)) => Stream::Tls(Box::new(stream)),
                Ok(Err(error)) => return Err(Outcome::Tls(failure::of_handshake(&error))),
                Err(_) => return Err(Outcome::Tls(format!("handshake timed out after {}", self.limit()))),
            },
        };
        Connection::open(stream).await
    }

    fn limit(&self) -> String {
        duration::format(self.connect_timeout)
    }

    /// The addresses that may be dialled, in the resolver's order.
    async fn addresses(&self, deadline: Instant) -> Result<Vec<SocketAddr>, String> {
        let mut addresses = match &self.host {
            Host::Literal(address) => vec![SocketAddr::new(*address, self.port)],
            Host::Name(name) => match timeout_at(deadline, self.look_up(name)).await {
                Ok(found) => found.map_err(|error| unresolved(name, &error))?,
                Err(_) => return Err(format!("name not resolved: {name}: no answer after {}", self.limit())),
            },
        };
        let mut refused = None;
        addresses.retain(|address| {
            let reason = refusal(address.ip(), self.refuse_loopback);
            refused = refused.or(reason.map(|reason| (address.ip(), reason)));
            reason.is_none()
        });
        match (addresses.is_empty(), refused) {
            (false, _) => Ok(addresses),
            (true, Some((address, reason))) => Err(format!("address {address} is refused: {reason}")),
            (true, None) => Err("name not resolved: it has no address".to_owned()),
        }
    }

    async fn look_up(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        let permit = Arc::clone(&self.lookups).acquire_owned().await.map_err(io::Error::other)?;
        let target = (name.to_owned(), self.port);
        // A task of its own, so that the permit is held for as long as the thread is.
        let lookup = tokio::spawn(async move {
            let found = tokio::net::lookup_host((target.0.as_str(), target.1)).await.map(Iterator::collect);
            drop(permit);
            found
        });
        lookup.await.map_err(io::Error::other)?
    }

    /// The first address that answers. Each gets an equal share of the time that is left, so that one that swallows
    /// packets does not cost the others their turn.
    async fn dial(&self, addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, String> {
        let mut failure = String::new();
        for (done, address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addresses.len() - done).unwrap_or(u32::MAX);
            match timeout_at(Instant::now() + share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Without it a small request may wait for the acknowledgement of the one before it. A socket that
                    // cannot be told is only slower.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => failure = failure::of_connect(&error),
                Err(_) => failure = format!("connect timed out after {}", self.limit()),
            }
        }
        Err(failure)
    }
}

fn unresolved(name: &str, error: &io::Error) -> String {
    let text = error.to_string();
    let cause = text.strip_prefix("failed to lookup address information: ").unwrap_or(&text);
    format!("name not resolved: {name}: {cause}")
}
