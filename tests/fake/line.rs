//! One connection, as the broker writes to it: whole frames, parts of frames, and its ends.

use std::io::Write as _;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, WriteContext, gen_frame};
use amq_protocol::protocol::{AMQPClass, BasicProperties, basic, channel, connection};

/// The class of everything that has content.
const BASIC: u16 = 60;

/// A connection's writing side. It outlives the connection: then nothing is written any more.
pub(crate) struct Line {
    stream: Mutex<Option<Arc<TcpStream>>>,
    /// Counts the connections of a broker.
    pub(crate) number: usize,
    /// The name that the client gave its connection.
    pub(super) name: OnceLock<String>,
}

impl Line {
    pub(super) fn new(stream: Arc<TcpStream>, number: usize) -> Self {
        Self { stream: Mutex::new(Some(stream)), number, name: OnceLock::new() }
    }

    /// Heartbeats, whatever else it does or does not: the connection never looks half-open.
    pub(super) fn keep_alive(self: Arc<Self>) {
        std::thread::spawn(move || {
            while self.is_open() {
                std::thread::sleep(Duration::from_secs(3));
                if self.name.get().is_some() {
                    self.raw(&bytes(&AMQPFrame::Heartbeat));
                }
            }
        });
    }

    /// The one that our client publishes on.
    pub(crate) fn publishes(&self) -> bool {
        self.name.get().is_some_and(|name| name.ends_with(" publish"))
    }

    /// Bytes of any kind.
    pub(crate) fn raw(&self, bytes: &[u8]) {
        // A client that has gone away is what many of these tests are about.
        if let Some(stream) = &*self.stream.lock().unwrap() {
            let _ = (&**stream).write_all(bytes);
        }
    }

    /// A method on a channel.
    pub(crate) fn method(&self, channel: u16, method: AMQPClass) {
        self.raw(&bytes(&AMQPFrame::Method(channel, method)));
    }

    /// A confirm.
    pub(crate) fn ack(&self, channel: u16, tag: u64, multiple: bool) {
        self.raw(&bytes(&ack(channel, tag, multiple)));
    }

    /// A refusal.
    pub(crate) fn nack(&self, channel: u16, tag: u64, multiple: bool) {
        let nack = basic::Nack { delivery_tag: tag, multiple, requeue: false };
        self.method(channel, AMQPClass::Basic(basic::AMQPMethod::Nack(nack)));
    }

    /// What tells of the body that follows.
    pub(crate) fn header(&self, channel: u16, size: usize, properties: &BasicProperties) {
        let properties = properties.clone();
        let header = AMQPContentHeader { class_id: BASIC, body_size: size as u64, properties };
        self.raw(&bytes(&AMQPFrame::Header(channel, header)));
    }

    /// A body, or a piece of it.
    pub(crate) fn body(&self, channel: u16, body: &[u8]) {
        self.raw(&bytes(&AMQPFrame::Body(channel, body.to_vec())));
    }

    /// Closes a channel, as the broker does over an error.
    pub(crate) fn close_channel(&self, channel: u16, code: u16, text: &str) {
        let close = channel::Close { reply_code: code, reply_text: text.into(), class_id: 0, method_id: 0 };
        self.method(channel, AMQPClass::Channel(channel::AMQPMethod::Close(close)));
    }

    /// Closes the connection, as the broker does when it is stopped.
    pub(crate) fn close_connection(&self, code: u16, text: &str) {
        let close = connection::Close { reply_code: code, reply_text: text.into(), class_id: 0, method_id: 0 };
        self.method(0, AMQPClass::Connection(connection::AMQPMethod::Close(close)));
    }

    /// Says that there was an alarm, or that it is over.
    pub(crate) fn blocked(&self, blocked: bool) {
        let method = if blocked {
            connection::AMQPMethod::Blocked(connection::Blocked { reason: "low on memory".into() })
        } else {
            connection::AMQPMethod::Unblocked(connection::Unblocked {})
        };
        self.method(0, AMQPClass::Connection(method));
    }

    /// RST: the other side's reads and writes fail at once, and nothing more is read here.
    pub(crate) fn reset(&self) {
        if let Some(stream) = self.stream.lock().unwrap().take() {
            let _ = socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
            // Local only. Whoever reads lets go of the socket then, and its last owner's close is the reset.
            let _ = stream.shutdown(Shutdown::Read);
        }
    }

    /// FIN, behind all that was written.
    pub(crate) fn end(&self) {
        if let Some(stream) = self.stream.lock().unwrap().take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Whether the connection stands, as far as is known here.
    pub(crate) fn is_open(&self) -> bool {
        self.stream.lock().unwrap().is_some()
    }
}

/// A confirm as a frame, for those who send parts of it.
pub(crate) fn ack(channel: u16, tag: u64, multiple: bool) -> AMQPFrame {
    let ack = basic::Ack { delivery_tag: tag, multiple };
    AMQPFrame::Method(channel, AMQPClass::Basic(basic::AMQPMethod::Ack(ack)))
}

/// A frame's bytes.
pub(crate) fn bytes(frame: &AMQPFrame) -> Vec<u8> {
    gen_frame(frame)(WriteContext::from(Vec::new())).unwrap().into_inner().0
}
