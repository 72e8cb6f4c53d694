//! One connection, as the broker reads it: the handshake, and an answer to every method that our client uses.

use std::io::Read as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use amq_protocol::frame::{AMQPFrame, parse_frame};
use amq_protocol::protocol::{AMQPClass, basic, channel, confirm, connection, exchange, queue};
use amq_protocol::types::{AMQPValue, FieldTable};

use super::broker::{Channel, Manner, Published, Shared, State, Stored};
use super::line::{Line, bytes};

/// What RabbitMQ offers.
const FRAME_MAX: u32 = 131_072;
/// Kind, channel and size; behind the payload comes one more octet.
const FRAME_HEAD: usize = 7;

/// Serves a connection to its end.
pub(super) fn serve(shared: &Arc<Shared>, line: &Arc<Line>, stream: Arc<TcpStream>, manner: Manner) {
    let mut session = Session { shared, line, stream, manner, coming: None };
    let mut greeting = [0; 8];
    if (&*session.stream).read_exact(&mut greeting).is_err() {
        return;
    }
    let start = start();
    match manner {
        Manner::Silent => {}
        Manner::StallsInAFrame => line.raw(&bytes(&AMQPFrame::Method(0, start))[..20]),
        _ => line.method(0, start),
    }
    while let Some(frame) = session.read() {
        let goes_on = match frame {
            AMQPFrame::Method(channel, method) => session.method(channel, method),
            AMQPFrame::Header(_, header) => {
                let size = usize::try_from(header.body_size).unwrap();
                session.coming =
                    session.coming.take().map(|coming| Coming { properties: header.properties, size, ..coming });
                session.content()
            }
            AMQPFrame::Body(_, more) => {
                if let Some(coming) = &mut session.coming {
                    coming.body.extend(more);
                }
                session.content()
            }
            _ => true,
        };
        if !goes_on {
            return;
        }
    }
}

struct Session<'a> {
    shared: &'a Arc<Shared>,
    line: &'a Arc<Line>,
    stream: Arc<TcpStream>,
    manner: Manner,
    coming: Option<Coming>,
}

/// A publish whose content is on its way.
struct Coming {
    channel: u16,
    publish: basic::Publish,
    properties: basic::AMQPProperties,
    size: usize,
    body: Vec<u8>,
}

impl Session<'_> {
    fn read(&mut self) -> Option<AMQPFrame> {
        // After a reset, what had come before it could still be read.
        if !self.line.is_open() {
            return None;
        }
        let mut frame = vec![0; FRAME_HEAD];
        (&*self.stream).read_exact(&mut frame).ok()?;
        let size = u32::from_be_bytes(*frame.last_chunk().unwrap()) as usize;
        frame.resize(FRAME_HEAD + size + 1, 0);
        (&*self.stream).read_exact(&mut frame[FRAME_HEAD..]).ok()?;
        Some(parse_frame(&frame[..]).expect("the client writes frames").1)
    }

    fn method(&mut self, number: u16, method: AMQPClass) -> bool {
        match method {
            AMQPClass::Connection(method) => return self.connection(method),
            AMQPClass::Channel(method) => self.channel(number, &method),
            AMQPClass::Queue(method) => self.queue(number, method),
            AMQPClass::Basic(method) => self.basic(number, method),
            AMQPClass::Exchange(exchange::AMQPMethod::Declare(_)) => {
                let ok = exchange::AMQPMethod::DeclareOk(exchange::DeclareOk {});
                self.line.method(number, AMQPClass::Exchange(ok));
            }
            AMQPClass::Confirm(confirm::AMQPMethod::Select(_)) => {
                let ok = confirm::AMQPMethod::SelectOk(confirm::SelectOk {});
                self.line.method(number, AMQPClass::Confirm(ok));
            }
            other => unspoken(&other),
        }
        true
    }

    fn connection(&mut self, method: connection::AMQPMethod) -> bool {
        use connection::AMQPMethod as M;
        let answer = match method {
            M::StartOk(start) => {
                if let Some(AMQPValue::LongString(name)) = start.client_properties.inner().get("connection_name") {
                    let _ = self.line.name.set(name.to_string());
                }
                if self.manner == Manner::StallsAfterStart {
                    return true;
                }
                M::Tune(connection::Tune { channel_max: 2047, frame_max: FRAME_MAX, heartbeat: 60 })
            }
            M::TuneOk(_) => return true,
            M::Open(_) if self.manner == Manner::StallsBeforeOpen => return true,
            M::Open(_) => M::OpenOk(connection::OpenOk {}),
            M::Close(_) => {
                if !self.shared.answers_close.load(Ordering::SeqCst) {
                    return true;
                }
                self.line.method(0, AMQPClass::Connection(M::CloseOk(connection::CloseOk {})));
                return false;
            }
            M::CloseOk(_) => return false,
            other => {
                unspoken(&other);
                return false;
            }
        };
        self.line.method(0, AMQPClass::Connection(answer));
        true
    }

    fn channel(&self, number: u16, method: &channel::AMQPMethod) {
        use channel::AMQPMethod as M;
        let key = (self.line.number, number);
        let answer = match method {
            M::Open(_) => {
                let channel = Channel {
                    line: self.line.clone(),
                    published: 0,
                    handed: 0,
                    prefetch: 0,
                    unsettled: std::collections::BTreeMap::new(),
                    consumers: Vec::new(),
                };
                self.shared.state().channels.insert(key, channel);
                M::OpenOk(channel::OpenOk {})
            }
            M::Close(_) => {
                if !self.shared.answers_close.load(Ordering::SeqCst) {
                    return;
                }
                self.shared.gone(self.line.number, Some(number));
                M::CloseOk(channel::CloseOk {})
            }
            M::CloseOk(_) => return self.shared.gone(self.line.number, Some(number)),
            other => return unspoken(other),
        };
        self.line.method(number, AMQPClass::Channel(answer));
    }

    fn queue(&self, number: u16, method: queue::AMQPMethod) {
        use queue::AMQPMethod as M;
        let mut state = self.shared.state();
        let answer = match method {
            M::Declare(declare) => {
                let name = declare.queue.as_str();
                if declare.passive && !state.queues.contains_key(name) {
                    return self.line.close_channel(number, 404, &format!("NOT_FOUND - no queue '{name}'"));
                }
                let ready = state.queues.entry(name.to_owned()).or_default().len();
                let consumers = state.channels.values().flat_map(|channel| &channel.consumers);
                let consumers = consumers.filter(|(_, queue)| queue == name).count();
                M::DeclareOk(queue::DeclareOk {
                    queue: declare.queue,
                    message_count: u32::try_from(ready).unwrap(),
                    consumer_count: u32::try_from(consumers).unwrap(),
                })
            }
            M::Delete(delete) => {
                let deleted = state.queues.remove(delete.queue.as_str()).unwrap_or_default();
                M::DeleteOk(queue::DeleteOk { message_count: u32::try_from(deleted.len()).unwrap() })
            }
            M::Bind(bind) => {
                let key = (bind.exchange.as_str().to_owned(), bind.routing_key.as_str().to_owned());
                state.bindings.insert(key, bind.queue.as_str().to_owned());
                M::BindOk(queue::BindOk {})
            }
            M::Purge(purge) => {
                let purged = state.queues.get_mut(purge.queue.as_str()).map(std::mem::take).unwrap_or_default();
                M::PurgeOk(queue::PurgeOk { message_count: u32::try_from(purged.len()).unwrap() })
            }
            other => return unspoken(&other),
        };
        self.line.method(number, AMQPClass::Queue(answer));
    }

    fn basic(&mut self, number: u16, method: basic::AMQPMethod) {
        use basic::AMQPMethod as M;
        if let M::Publish(publish) = method {
            self.shared.begun(self.line);
            let (properties, body) = (basic::AMQPProperties::default(), Vec::new());
            self.coming = Some(Coming { channel: number, publish, properties, size: 0, body });
            return;
        }
        let mut state = self.shared.state();
        if let M::Get(get) = method {
            return self.get(&mut state, number, get.queue.as_str());
        }
        let State { queues, channels, .. } = &mut *state;
        let Some(channel) = channels.get_mut(&(self.line.number, number)) else { return };
        let answer = match method {
            M::Qos(qos) => {
                channel.prefetch = qos.prefetch_count;
                Some(M::QosOk(basic::QosOk {}))
            }
            M::Consume(consume) => {
                let name = format!("consumer-{number}");
                channel.consumers.push((name.clone(), consume.queue.as_str().to_owned()));
                Some(M::ConsumeOk(basic::ConsumeOk { consumer_tag: name.into() }))
            }
            M::Cancel(cancel) => {
                channel.consumers.retain(|(name, _)| name != cancel.consumer_tag.as_str());
                Some(M::CancelOk(basic::CancelOk { consumer_tag: cancel.consumer_tag }))
            }
            M::Ack(ack) if ack.multiple => {
                channel.unsettled.retain(|tag, _| *tag > ack.delivery_tag);
                None
            }
            M::Ack(ack) => {
                channel.unsettled.remove(&ack.delivery_tag);
                None
            }
            M::Nack(nack) => {
                if let Some((from, message)) = channel.unsettled.remove(&nack.delivery_tag) {
                    queues.entry(from).or_default().push_front(Stored { redelivered: true, ..message });
                }
                None
            }
            other => return unspoken(&other),
        };
        if let Some(answer) = answer {
            self.line.method(number, AMQPClass::Basic(answer));
        }
        self.shared.hand_out(&mut state);
    }

    fn get(&self, state: &mut State, number: u16, queue: &str) {
        let State { queues, channels, .. } = state;
        let Some(channel) = channels.get_mut(&(self.line.number, number)) else { return };
        let Some(message) = queues.get_mut(queue).and_then(std::collections::VecDeque::pop_front) else {
            let empty = basic::AMQPMethod::GetEmpty(basic::GetEmpty {});
            return self.line.method(number, AMQPClass::Basic(empty));
        };
        channel.handed += 1;
        let ok = basic::GetOk {
            delivery_tag: channel.handed,
            redelivered: message.redelivered,
            exchange: message.exchange.as_str().into(),
            routing_key: message.key.as_str().into(),
            message_count: 0,
        };
        self.line.method(number, AMQPClass::Basic(basic::AMQPMethod::GetOk(ok)));
        self.line.header(number, message.body.len(), &message.properties);
        self.line.body(number, &message.body);
        channel.unsettled.insert(channel.handed, (queue.to_owned(), message));
    }

    /// Acts on a publish once all of it is there.
    fn content(&mut self) -> bool {
        let Some(coming) = self.coming.take_if(|coming| coming.body.len() >= coming.size) else { return true };
        let tag = {
            let mut state = self.shared.state();
            let Some(channel) = state.channels.get_mut(&(self.line.number, coming.channel)) else { return true };
            channel.published += 1;
            channel.published
        };
        let message = Stored {
            exchange: coming.publish.exchange.as_str().to_owned(),
            key: coming.publish.routing_key.as_str().to_owned(),
            properties: coming.properties,
            body: coming.body,
            redelivered: false,
        };
        let (shared, line) = (self.shared.clone(), self.line.clone());
        self.shared.published(&Published { shared, line, channel: coming.channel, tag, message });
        true
    }
}

fn start() -> AMQPClass {
    let mut capabilities = FieldTable::default();
    for name in ["publisher_confirms", "consumer_cancel_notify", "connection.blocked", "basic.nack"] {
        capabilities.insert(name.into(), AMQPValue::Boolean(true));
    }
    let mut server_properties = FieldTable::default();
    server_properties.insert("capabilities".into(), AMQPValue::FieldTable(capabilities));
    let mechanisms = "PLAIN AMQPLAIN".into();
    let start = connection::Start {
        version_major: 0,
        version_minor: 9,
        server_properties,
        mechanisms,
        locales: "en_US".into(),
    };
    AMQPClass::Connection(connection::AMQPMethod::Start(start))
}

/// Not by a panic: that would end a thread that no test waits for.
fn unspoken(method: &dyn std::fmt::Debug) {
    eprintln!("the fake broker does not speak {method:?}");
}
