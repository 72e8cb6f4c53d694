//! A listener with one route over a store whose answers are scripted, and a client that sends raw bytes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use stagepost::core::deactivation::Deactivation;
use stagepost::core::message::Message;
use stagepost::core::retry::Backoff;
use stagepost::ingress::{Drain, Drained, RouteCounters, RouteInput, RouteTable, RuleError, Server};
use stagepost::plan::{BodyKind, IngressPlan, Limits, ObjectName, ResponsePlan, RulePlan};
use stagepost::store::publisher::{Link, Publisher};
use stagepost::store::{BoxFuture, Connection, Consumer, Depth, MessageStore, PublishError, StoreError};
use stagepost::telemetry::metrics::Metrics;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Takes messages, or does not, as the test says.
#[derive(Debug)]
pub(crate) struct ScriptedStore {
    stored: Mutex<Vec<(Arc<Message>, Option<String>)>>,
    refusal: Mutex<Option<PublishError>>,
    /// A publish takes a permit of it before it does anything: closed by [`ScriptedStore::hold`].
    gate: Semaphore,
    waiting: watch::Sender<usize>,
    connection: watch::Sender<Connection>,
}

const OPEN: usize = 1_000_000;

impl ScriptedStore {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            stored: Mutex::default(),
            refusal: Mutex::default(),
            gate: Semaphore::new(OPEN),
            waiting: watch::Sender::new(0),
            connection: watch::Sender::new(Connection::Up),
        })
    }

    /// From now on publishes fail.
    pub(crate) fn refuse(&self, error: PublishError) {
        *self.refusal.lock().unwrap() = Some(error);
    }

    /// From now on publishes wait.
    pub(crate) fn hold(&self) {
        self.gate.forget_permits(OPEN);
    }

    /// Lets all publishes go on.
    pub(crate) fn release(&self) {
        self.gate.add_permits(OPEN);
    }

    /// Waits until this many publishes are waiting.
    pub(crate) async fn waiting(&self, count: usize) {
        let mut waiting = self.waiting.subscribe();
        timeout(PATIENCE, waiting.wait_for(|now| *now >= count)).await.unwrap().unwrap();
    }

    pub(crate) fn messages(&self) -> Vec<Arc<Message>> {
        self.stored.lock().unwrap().iter().map(|(message, _)| message.clone()).collect()
    }

    pub(crate) fn routing_keys(&self) -> Vec<Option<String>> {
        self.stored.lock().unwrap().iter().map(|(_, key)| key.clone()).collect()
    }
}

impl MessageStore for ScriptedStore {
    fn publish<'a>(
        &'a self,
        message: Arc<Message>,
        routing_key: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), PublishError>> {
        Box::pin(async move {
            self.waiting.send_modify(|count| *count += 1);
            let permit = self.gate.acquire().await.unwrap();
            drop(permit);
            self.waiting.send_modify(|count| *count -= 1);
            if let Some(error) = self.refusal.lock().unwrap().clone() {
                return Err(error);
            }
            self.stored.lock().unwrap().push((message, routing_key.map(str::to_owned)));
            Ok(())
        })
    }

    fn depth(&self) -> BoxFuture<'_, Result<Depth, StoreError>> {
        Box::pin(async { Ok(Depth::default()) })
    }

    fn consume(&self, _: u16) -> BoxFuture<'_, Result<Box<dyn Consumer>, StoreError>> {
        Box::pin(async { Err(StoreError::Closed) })
    }

    fn deactivation<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Deactivation>, StoreError>> {
        Box::pin(async { Ok(None) })
    }

    fn deactivate<'a>(&'a self, _: &'a str, _: &'a Deactivation) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn reactivate<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.subscribe()
    }

    fn name(&self) -> &'static str {
        "scripted"
    }
}

/// `POST /orders`, any body, into the store.
pub(crate) fn rule() -> RulePlan {
    let answer = |status| ResponsePlan { status, headers: BTreeMap::new(), body: None };
    RulePlan {
        name: "take".into(),
        path: "/orders".into(),
        methods: vec!["POST".into()],
        when: None,
        consumes: vec![],
        body: BodyKind::Any,
        schema: None,
        forward_credentials: false,
        store: "orders".into(),
        routing_key: None,
        transform: vec![],
        reply_timeout: None,
        accepted: answer(202),
        invalid: answer(400),
        store_failed: answer(503),
    }
}

pub(crate) fn limits() -> Limits {
    Limits {
        max_body_size: 1024 * 1024,
        max_header_size: 32 * 1024,
        read_timeout: Duration::from_secs(30),
        max_in_flight: 1024,
        max_in_flight_bytes: 64 * 1024 * 1024,
        max_connections: 1000,
    }
}

/// A running ingress.
pub(crate) struct Ingress {
    pub(crate) address: SocketAddr,
    pub(crate) store: Arc<ScriptedStore>,
    pub(crate) counters: Arc<RouteCounters>,
    pub(crate) metrics: Metrics,
    routes: Arc<ArcSwap<RouteTable>>,
    shutdown: CancellationToken,
    serving: JoinHandle<Drained>,
}

impl Ingress {
    pub(crate) async fn start(rules: Vec<RulePlan>, limits: Limits) -> Self {
        let drain = Drain { linger: Duration::ZERO, grace: PATIENCE };
        Self::start_with(rules, limits, drain).await
    }

    /// One rule, the default limits.
    pub(crate) async fn simple() -> Self {
        Self::start(vec![rule()], limits()).await
    }

    // Async so that it is called inside a runtime.
    #[allow(clippy::unused_async)]
    pub(crate) async fn start_with(rules: Vec<RulePlan>, limits: Limits, drain: Drain) -> Self {
        let store = ScriptedStore::new();
        let counters = Arc::new(RouteCounters::default());
        let metrics = Metrics::default();
        let table = compile(rules, limits, &store, &counters, &metrics).unwrap();
        let routes = Arc::new(ArcSwap::from_pointee(table));
        let server = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = server.local_addr();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(server.serve(routes.clone(), shutdown.clone(), drain));
        Self { address, store, counters, metrics, routes, shutdown, serving }
    }

    /// Takes over other rules.
    pub(crate) fn reload(&self, rules: Vec<RulePlan>, limits: Limits) {
        self.routes.store(Arc::new(compile(rules, limits, &self.store, &self.counters, &self.metrics).unwrap()));
    }

    pub(crate) async fn connect(&self) -> Client {
        Client { stream: TcpStream::connect(self.address).await.unwrap(), read: Vec::new() }
    }

    /// Sends bytes on a connection of their own, and reads one answer.
    pub(crate) async fn send(&self, request: impl AsRef<[u8]>) -> Reply {
        let mut client = self.connect().await;
        client.write(request).await;
        client.answer().await
    }

    pub(crate) async fn post(&self, body: &str) -> Reply {
        self.send(post(body)).await
    }

    /// Tells it to stop.
    pub(crate) fn stop(&self) {
        self.shutdown.cancel();
    }

    pub(crate) async fn stopped(self) -> Drained {
        timeout(PATIENCE + PATIENCE, self.serving).await.unwrap().unwrap()
    }

    /// Waits until a metric's line has this value.
    pub(crate) async fn metric(&self, line: &str) {
        timeout(PATIENCE, async {
            while !self.metrics.encode().lines().any(|found| found == line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{line} does not come:\n{}", self.metrics.encode()));
    }

    /// Waits until nothing is in flight.
    pub(crate) async fn idle(&self) {
        self.metric(r#"stagepost_ingress_in_flight{route="shop/desk"} 0"#).await;
    }
}

fn compile(
    rules: Vec<RulePlan>,
    limits: Limits,
    store: &Arc<ScriptedStore>,
    counters: &Arc<RouteCounters>,
    metrics: &Metrics,
) -> Result<RouteTable, stagepost::ingress::RouteError> {
    let backoff = Backoff {
        interval: Duration::from_millis(500),
        factor: 1.5,
        max_interval: Duration::from_secs(5),
        jitter: 0.0,
    };
    let link =
        Link { store: store.clone(), keyed: true, max_retries: 3, backoff, metrics: metrics.store("shop/orders") };
    let publisher = Arc::new(Publisher::new(link, vec![], Duration::from_secs(10)));
    RouteTable::compile(vec![RouteInput {
        plan: IngressPlan {
            object: ObjectName { namespace: "shop".into(), name: "desk".into(), uid: String::new() },
            rules,
            limits,
            stores: BTreeMap::new(),
        },
        publishers: BTreeMap::from([("orders".to_owned(), publisher)]),
        metrics: metrics.route("shop/desk"),
        counters: counters.clone(),
    }])
}

/// Why this rule is not compiled.
pub(crate) fn rule_error(rule: RulePlan) -> RuleError {
    let (store, counters, metrics) = (ScriptedStore::new(), Arc::default(), Metrics::default());
    let error = compile(vec![rule], limits(), &store, &counters, &metrics).unwrap_err();
    assert_eq!(error.route, "shop/desk");
    *error.reason
}

/// A well-formed POST to `/orders`.
pub(crate) fn post(body: &str) -> String {
    format!("POST /orders HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A POST with further header lines.
pub(crate) fn post_with(lines: &str, body: &str) -> String {
    format!("POST /orders HTTP/1.1\r\nHost: a\r\n{lines}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// A connection.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    read: Vec<u8>,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn closes(&self) -> bool {
        self.header("connection") == Some("close")
    }
}

impl Client {
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Writes what the other side may no longer want.
    pub(crate) async fn try_write(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    pub(crate) async fn answer(&mut self) -> Reply {
        self.try_answer().await.expect("an answer")
    }

    /// The next answer; `None` if the connection is closed instead.
    pub(crate) async fn try_answer(&mut self) -> Option<Reply> {
        loop {
            if let Some((reply, length)) = parse(&self.read) {
                self.read.drain(..length);
                return Some(reply);
            }
            if !self.read_more().await {
                return None;
            }
        }
    }

    /// Everything up to the close.
    pub(crate) async fn rest(mut self) -> String {
        while self.read_more().await {}
        String::from_utf8_lossy(&self.read).into_owned()
    }

    /// Whether the connection is closed now, or soon, without another byte.
    pub(crate) async fn is_closed(&mut self) -> bool {
        !self.read_more().await && self.read.is_empty()
    }

    async fn read_more(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match timeout(PATIENCE, self.stream.read(&mut buffer)).await.expect("bytes or a close") {
            Ok(0) | Err(_) => false,
            Ok(read) => {
                self.read.extend_from_slice(&buffer[..read]);
                true
            }
        }
    }
}

fn parse(bytes: &[u8]) -> Option<(Reply, usize)> {
    let head_length = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..head_length]).unwrap();
    let mut lines = head.lines();
    let status: u16 = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize =
        headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, value)| value.parse().unwrap());
    let body = bytes.get(head_length..head_length + length)?;
    let body = String::from_utf8(body.to_vec()).unwrap();
    Some((Reply { status, headers, body }, head_length + length))
}
