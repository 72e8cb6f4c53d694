//! A broker that does what a test says, at the moment that the test names.
//!
//! It speaks AMQP 0-9-1 as far as our client uses it, and keeps its queues in memory. What it does at each publish and
//! at each delivery is a script of the test's; without one it does what a broker should.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use amq_protocol::protocol::{AMQPClass, BasicProperties, basic};

use super::line::Line;
use super::session;

/// How a connection that comes in is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// As a broker should.
    Proper,
    /// Accepted, and then nothing.
    Silent,
    /// Greeted; the answer to that gets no answer.
    StallsAfterStart,
    /// All said but that the virtual host is open.
    StallsBeforeOpen,
    /// Greeted with part of a frame.
    StallsInAFrame,
}

type AtPublish = Box<dyn FnMut(&Published) + Send>;
type AtDelivery = Box<dyn FnMut(&Handed) -> bool + Send>;
type AtBegin = Box<dyn FnMut(&Arc<Line>) + Send>;

/// Listens until it is dropped.
pub(crate) struct FakeBroker {
    pub(crate) port: u16,
    pub(crate) shared: Arc<Shared>,
}

/// What all connections of a broker share.
pub(crate) struct Shared {
    state: Mutex<State>,
    lines: Mutex<Vec<Arc<Line>>>,
    manner: Mutex<Manner>,
    at_publish: Mutex<Option<AtPublish>>,
    at_begin: Mutex<Option<AtBegin>>,
    at_delivery: Mutex<Option<AtDelivery>>,
    connections: AtomicUsize,
    pub(super) answers_close: AtomicBool,
    stopped: AtomicBool,
}

/// A message in a queue.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) exchange: String,
    pub(crate) key: String,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Vec<u8>,
    pub(crate) redelivered: bool,
}

/// Queues, bindings and channels.
#[derive(Default)]
pub(super) struct State {
    pub(super) queues: HashMap<String, VecDeque<Stored>>,
    pub(super) bindings: HashMap<(String, String), String>,
    pub(super) channels: BTreeMap<(usize, u16), Channel>,
}

pub(super) struct Channel {
    pub(super) line: Arc<Line>,
    pub(super) published: u64,
    pub(super) handed: u64,
    pub(super) prefetch: u16,
    pub(super) unsettled: BTreeMap<u64, (String, Stored)>,
    /// Name and queue.
    pub(super) consumers: Vec<(String, String)>,
}

/// A message that was just published.
#[derive(Clone)]
pub(crate) struct Published {
    pub(super) shared: Arc<Shared>,
    pub(crate) line: Arc<Line>,
    pub(crate) channel: u16,
    pub(crate) tag: u64,
    pub(super) message: Stored,
}

impl Published {
    /// Its message id.
    pub(crate) fn id(&self) -> String {
        self.message.properties.message_id().as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default()
    }

    /// Its body.
    pub(crate) fn body(&self) -> &[u8] {
        &self.message.body
    }

    /// Puts it into its queue; `false`: it has none.
    pub(crate) fn store(&self) -> bool {
        self.shared.put(self.message.clone())
    }

    /// Confirms it, and it alone.
    pub(crate) fn ack(&self) {
        self.line.ack(self.channel, self.tag, false);
    }

    /// Refuses it, and it alone.
    pub(crate) fn nack(&self) {
        self.line.nack(self.channel, self.tag, false);
    }

    /// Confirms all up to it.
    pub(crate) fn ack_up_to(&self) {
        self.line.ack(self.channel, self.tag, true);
    }

    /// Sends it back as one that has no queue.
    pub(crate) fn give_back(&self) {
        let back = basic::Return {
            reply_code: 312,
            reply_text: "NO_ROUTE".into(),
            exchange: self.message.exchange.as_str().into(),
            routing_key: self.message.key.as_str().into(),
        };
        self.line.method(self.channel, AMQPClass::Basic(basic::AMQPMethod::Return(back)));
        self.line.header(self.channel, self.message.body.len(), &self.message.properties);
        self.line.body(self.channel, &self.message.body);
    }

    /// What a broker should do with it.
    pub(crate) fn take(&self) {
        if !self.store() {
            self.give_back();
        }
        self.ack();
    }
}

/// A message that is about to be handed to a consumer.
pub(crate) struct Handed {
    pub(crate) line: Arc<Line>,
    pub(crate) channel: u16,
    consumer: String,
    tag: u64,
    pub(crate) message: Stored,
}

impl Handed {
    /// The first of its frames.
    pub(crate) fn head(&self) {
        self.head_on(self.channel);
    }

    /// The same, on another channel.
    pub(crate) fn head_on(&self, channel: u16) {
        let deliver = basic::Deliver {
            consumer_tag: self.consumer.as_str().into(),
            delivery_tag: self.tag,
            redelivered: self.message.redelivered,
            exchange: self.message.exchange.as_str().into(),
            routing_key: self.message.key.as_str().into(),
        };
        self.line.method(channel, AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver)));
    }

    /// Cancels the consumer that it is for.
    pub(crate) fn cancel(&self) {
        let cancel = basic::Cancel { consumer_tag: self.consumer.as_str().into(), nowait: true };
        self.line.method(self.channel, AMQPClass::Basic(basic::AMQPMethod::Cancel(cancel)));
    }

    fn all(&self) {
        self.head();
        self.line.header(self.channel, self.message.body.len(), &self.message.properties);
        self.line.body(self.channel, &self.message.body);
    }
}

impl FakeBroker {
    /// Starts one.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            lines: Mutex::default(),
            manner: Mutex::new(Manner::Proper),
            at_publish: Mutex::default(),
            at_begin: Mutex::default(),
            at_delivery: Mutex::default(),
            connections: AtomicUsize::new(0),
            answers_close: AtomicBool::new(true),
            stopped: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepting.stopped.load(Ordering::SeqCst) {
                    return;
                }
                accepting.accept(stream);
            }
        });
        Self { port, shared }
    }

    /// Where it is.
    pub(crate) fn uri(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// How connections are treated that come from now on.
    pub(crate) fn manner(&self, manner: Manner) {
        *self.shared.manner.lock().unwrap() = manner;
    }

    /// What is done at each publish from now on.
    pub(crate) fn at_publish(&self, script: impl FnMut(&Published) + Send + 'static) {
        *self.shared.at_publish.lock().unwrap() = Some(Box::new(script));
    }

    /// What is done when the first frame of a publish has come, before more is read.
    pub(crate) fn at_begin(&self, script: impl FnMut(&Arc<Line>) + Send + 'static) {
        *self.shared.at_begin.lock().unwrap() = Some(Box::new(script));
    }

    /// What is done at each delivery from now on; `true` has it delivered as it should be.
    pub(crate) fn at_delivery(&self, script: impl FnMut(&Handed) -> bool + Send + 'static) {
        *self.shared.at_delivery.lock().unwrap() = Some(Box::new(script));
    }

    /// From now on it does what a broker should.
    pub(crate) fn behave(&self) {
        self.manner(Manner::Proper);
        self.shared.answers_close.store(true, Ordering::SeqCst);
        *self.shared.at_publish.lock().unwrap() = None;
        *self.shared.at_begin.lock().unwrap() = None;
        *self.shared.at_delivery.lock().unwrap() = None;
    }

    /// Leaves every wish to close something without an answer.
    pub(crate) fn ignore_close(&self) {
        self.shared.answers_close.store(false, Ordering::SeqCst);
    }

    /// How many connections there were.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Those that stand.
    pub(crate) fn lines(&self) -> Vec<Arc<Line>> {
        self.shared.lines.lock().unwrap().iter().filter(|line| line.is_open()).cloned().collect()
    }

    /// Empties a queue.
    pub(crate) fn forget(&self, queue: &str) {
        self.shared.state().queues.entry(queue.to_owned()).or_default().clear();
    }

    /// Bodies in a queue, ready or handed out.
    pub(crate) fn bodies(&self, queue: &str) -> Vec<Vec<u8>> {
        self.messages(queue).into_iter().map(|message| message.body).collect()
    }

    /// Messages in a queue, ready or handed out.
    pub(crate) fn messages(&self, queue: &str) -> Vec<Stored> {
        let state = self.shared.state();
        let held = state.channels.values().flat_map(|channel| channel.unsettled.values());
        let held = held.filter(|(from, _)| from == queue).map(|(_, message)| message);
        let ready = state.queues.get(queue).into_iter().flatten();
        held.chain(ready).cloned().collect()
    }

    /// Puts messages into a queue, whether it is declared or not.
    pub(crate) fn fill(&self, queue: &str, messages: impl IntoIterator<Item = Stored>) {
        let mut state = self.shared.state();
        state.queues.entry(queue.to_owned()).or_default().extend(messages);
        self.shared.hand_out(&mut state);
    }
}

impl Drop for FakeBroker {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(("127.0.0.1", self.port));
        self.lines().iter().for_each(|line| line.end());
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, stream: std::net::TcpStream) {
        let number = self.connections.fetch_add(1, Ordering::SeqCst);
        let stream = Arc::new(stream);
        let line = Arc::new(Line::new(stream.clone(), number));
        self.lines.lock().unwrap().push(line.clone());
        let (shared, manner) = (self.clone(), *self.manner.lock().unwrap());
        if manner == Manner::Proper {
            line.clone().keep_alive();
        }
        std::thread::spawn(move || {
            session::serve(&shared, &line, stream, manner);
            line.end();
            shared.gone(line.number, None);
        });
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn published(&self, published: &Published) {
        match &mut *self.at_publish.lock().unwrap() {
            Some(script) => script(published),
            None => published.take(),
        }
    }

    pub(super) fn begun(&self, line: &Arc<Line>) {
        if let Some(script) = &mut *self.at_begin.lock().unwrap() {
            script(line);
        }
    }

    fn put(&self, message: Stored) -> bool {
        let mut state = self.state();
        let name = if message.exchange.is_empty() {
            Some(message.key.clone())
        } else {
            state.bindings.get(&(message.exchange.clone(), message.key.clone())).cloned()
        };
        let Some(queue) = name.and_then(|name| state.queues.get_mut(&name)) else { return false };
        queue.push_back(message);
        self.hand_out(&mut state);
        true
    }

    /// Gives consumers what they have room for.
    pub(super) fn hand_out(&self, state: &mut State) {
        let State { queues, channels, .. } = state;
        for ((_, number), channel) in channels {
            let Some((consumer, from)) = channel.consumers.first().cloned() else { continue };
            let Some(queue) = queues.get_mut(&from) else { continue };
            while channel.prefetch == 0 || channel.unsettled.len() < usize::from(channel.prefetch) {
                let Some(message) = queue.pop_front() else { break };
                channel.handed += 1;
                channel.unsettled.insert(channel.handed, (from.clone(), message.clone()));
                let line = channel.line.clone();
                let handed =
                    Handed { line, channel: *number, consumer: consumer.clone(), tag: channel.handed, message };
                let proper = match &mut *self.at_delivery.lock().unwrap() {
                    Some(script) => script(&handed),
                    None => true,
                };
                if proper {
                    handed.all();
                }
            }
        }
    }

    /// A connection or one of its channels has ended: what it held is handed out again.
    pub(super) fn gone(&self, line: usize, channel: Option<u16>) {
        let mut state = self.state();
        let gone = |key: &(usize, u16)| key.0 == line && channel.is_none_or(|channel| channel == key.1);
        let keys: Vec<_> = state.channels.keys().copied().filter(gone).collect();
        for key in keys {
            let Some(channel) = state.channels.remove(&key) else { continue };
            for (from, mut message) in channel.unsettled.into_values().rev() {
                message.redelivered = true;
                state.queues.entry(from).or_default().push_front(message);
            }
        }
        self.hand_out(&mut state);
    }
}
