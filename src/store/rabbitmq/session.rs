//! One supervised connection to the broker: connected for ever, rebuilt for ever.
//!
//! A connection and all its channels are one *epoch*. Whatever goes wrong on a connection ends its epoch: every
//! waiter fails, every handle of that epoch goes stale, and the supervisor builds the next one. Nothing of an old
//! epoch can reach a new channel, because nothing is carried over. (The client's own recovery is off: it repairs
//! connections, but not our accounting of who was told what.)

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, ConnectionProperties, Event};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::address::{Address, AddressError, Tls};
use super::claim::Claims;
use super::lasting::{self, Lasting};
use super::line::{self, Line};
use super::{fault, tls};
use crate::core::retry::Backoff;
use crate::store::{Fault, StoreError};

/// TCP, TLS and the AMQP handshake with one node. A host that swallows packets is given up after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// One answer of the broker on an open connection: opening a channel, a declaration, a cancel.
pub(super) const RPC_TIMEOUT: Duration = Duration::from_secs(10);

/// The client library can't say when it knows of an end that it has not been asked about.
const NOTICED_POLL: Duration = Duration::from_millis(1);

/// The largest frame that we ask for, the default of brokers. The client library makes buffers of 32 frames: a broker
/// without a limit of its own would have it take all memory there is.
const FRAME_MAX: u32 = 131_072;

/// A connection that lived so long was a good one.
const STABLE: Duration = Duration::from_secs(10);

/// So many that did not are answered by a new one at once: a broker that comes up, or is being moved, does that.
const FORGIVEN: u32 = 5;

/// Closing is a courtesy.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Half-open connections are noticed after two of these.
const HEARTBEAT_SECONDS: u16 = 10;
/// How often a connection is asked whether it still is one: the client library does not report every end of it.
const STATUS_CHECK: Duration = Duration::from_secs(5);

/// Between connects: quick after a hiccup, patient in an outage, spread so that pods don't come in step.
fn backoff() -> Backoff {
    Backoff { interval: Duration::from_millis(250), factor: 2.0, max_interval: Duration::from_secs(15), jitter: 0.2 }
}

/// Reads where the broker is; called before every connect, so that a rotated Secret is taken up.
pub type AddressSource = Arc<dyn Fn() -> Result<Address, AddressError> + Send + Sync>;

/// The state of a session.
#[derive(Debug, Clone)]
pub(super) enum State {
    /// Connected.
    Up(Arc<Epoch>),
    /// Connected, but the broker takes no publishes (an alarm); the text is its reason.
    Blocked(Arc<Epoch>, String),
    /// The first connect since the start or the loss has not failed yet.
    Connecting,
    /// Not connected, because of this.
    Down(StoreError),
}

/// One connection's lifetime.
pub(super) struct Epoch {
    /// Tells epochs apart; only grows.
    pub(super) number: u64,
    connection: lapin::Connection,
    /// Ends the socket with the epoch, whatever the client library still waits for on it.
    _socket: DropGuard,
    failed: CancellationToken,
    /// What of this connection is not the client library's.
    pub(super) line: Arc<Line>,
    /// A channel for questions, kept while its answers are good: the broker closes it with every refusal.
    asking: tokio::sync::Mutex<Option<Channel>>,
    claims: Mutex<Claims>,
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}", self.number)
    }
}

impl Epoch {
    /// Opens a channel. No channel, no epoch: the numbers of a connection's channels are finite, and the client library
    /// never uses one again that the broker closed.
    pub(super) async fn channel(&self) -> Result<Channel, StoreError> {
        match timeout(RPC_TIMEOUT, self.connection.create_channel()).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => {
                self.fail();
                Err(not_connected(&error))
            }
            Err(_) => {
                self.fail();
                Err(StoreError::NotConnected("the broker did not open a channel in time".to_owned()))
            }
        }
    }

    /// Asks the broker something on the channel for questions, within [`RPC_TIMEOUT`]. No answer ends the epoch.
    pub(super) async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&Channel) -> lapin::Result<T>,
    ) -> lapin::Result<Result<T, StoreError>> {
        let mut asking = self.asking.lock().await;
        let channel = match asking.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => match self.channel().await {
                Ok(channel) => channel,
                Err(error) => return Ok(Err(error)),
            },
        };
        match timeout(RPC_TIMEOUT, question(&channel)).await {
            Ok(Ok(answer)) => {
                *asking = Some(channel);
                Ok(Ok(answer))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => {
                self.fail();
                Ok(Err(StoreError::NotConnected("the broker did not answer in time".to_owned())))
            }
        }
    }

    /// See [`Claims`].
    pub(super) fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends this epoch: something on it did not answer, so nothing on it can be trusted to.
    pub(super) fn fail(&self) {
        self.failed.cancel();
        // Whoever waits for the broker is told now, not when the connection has been closed.
        self.line.forget();
    }

    /// Waits until the epoch has ended.
    pub(super) async fn ended(&self) {
        self.failed.cancelled().await;
    }

    /// Whether the epoch has ended.
    pub(super) fn is_over(&self) -> bool {
        self.failed.is_cancelled() || !self.connection.status().connected()
    }
}

/// Waits until the client library knows that the broker has closed a channel: we hear of it first, and until then
/// nothing may be asked of the library that rests on it.
pub(super) async fn noticed(channel: &Channel) {
    let noticed = async {
        while channel.status().connected() {
            tokio::time::sleep(NOTICED_POLL).await;
        }
    };
    let _ = timeout(RPC_TIMEOUT, noticed).await;
}

/// A connection that is kept up until the session is dropped.
#[derive(Debug)]
pub(super) struct Session {
    state: watch::Receiver<State>,
    refresh: Arc<tokio::sync::Notify>,
    _stop: DropGuard,
}

impl Session {
    /// Starts the supervisor. `name` is what the broker's management shows.
    pub(super) fn start(name: String, address: AddressSource) -> Self {
        let (sender, state) = watch::channel(State::Connecting);
        let stop = CancellationToken::new();
        let refresh = Arc::new(tokio::sync::Notify::new());
        lasting::start(Supervisor { name, address, state: sender, refresh: refresh.clone(), stop: stop.clone() });
        Self { state, refresh, _stop: stop.drop_guard() }
    }

    /// The state now, and a way to wait for changes.
    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// The epoch to work on, blocked or not.
    pub(super) fn epoch(&self) -> Result<Arc<Epoch>, StoreError> {
        match &*self.state.borrow() {
            State::Up(epoch) | State::Blocked(epoch, _) => Ok(epoch.clone()),
            State::Connecting => Err(StoreError::NotConnected("connecting".to_owned())),
            State::Down(error) => Err(error.clone()),
        }
    }

    /// Tries to connect now rather than after the backoff: the Secret has changed.
    pub(super) fn refresh(&self) {
        self.refresh.notify_one();
    }
}

struct Supervisor {
    name: String,
    address: AddressSource,
    state: watch::Sender<State>,
    refresh: Arc<tokio::sync::Notify>,
    stop: CancellationToken,
}

static EPOCHS: AtomicU64 = AtomicU64::new(1);

impl Lasting for Supervisor {
    async fn run(&mut self) {
        let (mut failures, mut hangups) = (0_u32, 0_u32);
        let mut said: Option<StoreError> = None;
        loop {
            let connected = tokio::select! {
                () = self.stop.cancelled() => return,
                connected = self.connect() => connected,
            };
            match connected {
                Ok(opened) => {
                    said = None;
                    let since = Instant::now();
                    self.live(opened).await;
                    // A broker that takes connections and ends them is not asked again and again at once.
                    hangups = if since.elapsed() >= STABLE { 0 } else { hangups + 1 };
                    failures = hangups.saturating_sub(FORGIVEN);
                }
                Err(error) => {
                    failures += 1;
                    // Once, and again when it is something else.
                    if said.as_ref() != Some(&error) {
                        tracing::warn!(session = %self.name, %error, "broker not reachable; trying again for ever");
                        said = Some(error.clone());
                    }
                    self.state.send_replace(State::Down(error));
                }
            }
            if self.stop.is_cancelled() {
                return;
            }
            let wait = backoff().delay(failures.max(1), fastrand::f64());
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = self.refresh.notified() => {}
            }
        }
    }

    fn cut_off(&mut self) {
        self.state.send_replace(State::Connecting);
    }
}

impl Supervisor {
    async fn connect(&self) -> Result<Opened, StoreError> {
        let address = (self.address)().map_err(|error| invalid_secret(error.to_string()))?;
        let mut last = invalid_secret("the Secret names no host".to_owned());
        for (host, port) in &address.hosts {
            match timeout(CONNECT_TIMEOUT, open(&self.name, &address, host, *port)).await {
                Ok(Ok((connection, line, socket))) => return Ok(Opened { address, connection, line, socket }),
                Ok(Err(error)) => last = error,
                Err(_) => {
                    let detail = format!("{host}:{port} did not answer in time");
                    last = StoreError::Unreachable { fault: Fault::TimedOut, detail };
                }
            }
        }
        Err(last)
    }

    /// Publishes the epoch, and returns when it is over.
    async fn live(&self, opened: Opened) {
        let Opened { address, connection, line, socket } = opened;
        let mut events = Box::pin(connection.events_listener());
        let failed = CancellationToken::new();
        let number = EPOCHS.fetch_add(1, Ordering::Relaxed);
        let (asking, claims) = (tokio::sync::Mutex::default(), Mutex::default());
        let ended = socket.clone();
        let failing = failed.clone();
        // However this ends.
        let _over = failed.clone().drop_guard();
        let epoch =
            Arc::new(Epoch { number, connection, _socket: socket.drop_guard(), failed: failing, line, asking, claims });
        tracing::info!(session = %self.name, epoch = number, "connected to the broker");
        self.state.send_replace(State::Up(epoch.clone()));
        let mut check = tokio::time::interval(STATUS_CHECK);
        let reason = loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break None,
                _ = check.tick() => if !epoch.connection.status().connected() {
                    break Some("the connection is gone".to_owned());
                },
                // A new password is for the next connect. A new place is for now.
                () = self.refresh.notified() => match (self.address)() {
                    Ok(now) if !now.is_same_place(&address) => break Some("the Secret names another broker".to_owned()),
                    Ok(_) | Err(_) => {}
                },
                () = failed.cancelled() => break Some("the broker stopped answering".to_owned()),
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => {
                        tracing::warn!(session = %self.name, %reason, "the broker takes no publishes");
                        self.state.send_replace(State::Blocked(epoch.clone(), reason));
                    }
                    Some(Event::ConnectionUnblocked) => {
                        tracing::info!(session = %self.name, "the broker takes publishes again");
                        self.state.send_replace(State::Up(epoch.clone()));
                    }
                    Some(Event::Error(error)) => {
                        // Channel errors are reported here too; they end a channel, not the epoch.
                        if !epoch.connection.status().connected() {
                            break Some(error.to_string());
                        }
                    }
                    Some(_) => {}
                    None => break Some("the connection is gone".to_owned()),
                },
                () = epoch.line.ended() => break Some("the connection is gone".to_owned()),
            }
        };
        epoch.fail();
        self.state.send_replace(State::Connecting);
        if let Some(reason) = reason {
            tracing::warn!(session = %self.name, epoch = number, %reason, "connection to the broker lost");
        }
        let _ = timeout(CLOSE_TIMEOUT, epoch.connection.close(200, "bye".into())).await;
        ended.cancel();
    }
}

/// A connection that the broker has accepted.
struct Opened {
    address: Address,
    connection: lapin::Connection,
    line: Arc<Line>,
    /// Ends the socket.
    socket: CancellationToken,
}

/// Opens one connection to one node. Whoever drops this halfway ends the socket too: the client library would wait on
/// it for ever.
async fn open(
    name: &str,
    address: &Address,
    host: &str,
    port: u16,
) -> Result<(lapin::Connection, Arc<Line>, CancellationToken), StoreError> {
    let uri = AMQPUri {
        scheme: if address.tls.is_some() { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo { username: address.username.clone(), password: address.password.clone() },
            host: host.to_owned(),
            port,
        },
        vhost: address.virtual_host.clone(),
        query: AMQPQueryString {
            heartbeat: Some(HEARTBEAT_SECONDS),
            frame_max: Some(FRAME_MAX),
            ..AMQPQueryString::default()
        },
    };
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let tls: Option<Tls> = address.tls.clone();
    let connector = match &tls {
        Some(tls) => Some(Arc::new(tls::connector(tls).map_err(invalid_secret)?)),
        None => None,
    };
    let (opened, socket) = (Arc::<Mutex<Option<Arc<Line>>>>::default(), CancellationToken::new());
    let unfinished = socket.clone().drop_guard();
    // The client library may ask for a second socket when the first one ends early: the last one counts.
    let (last, end) = (opened.clone(), socket.clone());
    let server_name = tls.and_then(|tls| tls.server_name).unwrap_or_else(|| host.to_owned());
    let connection = lapin::Connection::connector(
        uri,
        line::runtime(),
        async move |uri: AMQPUri, _runtime| {
            let target = (uri.authority.host.as_str(), uri.authority.port);
            let opened = timeout(CONNECT_TIMEOUT, tls::stream(target, connector.as_deref(), &server_name));
            let socket = opened.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))?;
            let (line, pipe) = Line::start(socket, FRAME_MAX as usize, end.clone());
            *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(line);
            Ok(pipe)
        },
        properties,
    )
    .await
    .map_err(|error| fault::unreachable(&error))?;
    let line = opened.lock().unwrap_or_else(PoisonError::into_inner).take();
    let line = line.ok_or_else(|| StoreError::NotConnected("there is no socket".to_owned()))?;
    let _ = unfinished.disarm();
    Ok((connection, line, socket))
}

fn invalid_secret(detail: String) -> StoreError {
    StoreError::Unreachable { fault: Fault::InvalidSecret, detail }
}

pub(super) fn not_connected(error: &lapin::Error) -> StoreError {
    StoreError::NotConnected(error.to_string())
}
