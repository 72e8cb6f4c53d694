//! The broker's bytes, cut into frames: who gets each, and what of it must be mended.
//!
//! Another client may have published what the client library gives a whole connection up over: bytes that are no UTF-8
//! where AMQP says text, or tables in tables until its stack ends. The broker hands such a message out again after every
//! reconnect, so one of them would stop its queue for good. Here the bytes that are no text become `?`, and what is
//! nested too deeply becomes a header of plain bytes. Nothing changes its length, and bodies pass as they are.
//!
//! A frame that breaks the protocol is an error, which ends the connection, rather than something to wait for the rest
//! of.

use std::io;

use super::broken;
use super::lanes::{Lanes, Table, Whose};
use super::payload::{Method, Payload};

/// Kind, channel, size; and the octet behind the payload.
pub(super) const FRAME_HEAD: usize = 7;
pub(super) const FRAME_END: u8 = 0xCE;
pub(super) const FRAME_OVERHEAD: usize = FRAME_HEAD + 1;
pub(super) const METHOD: u8 = 1;
pub(super) const HEADER: u8 = 2;
pub(super) const BODY: u8 = 3;
pub(super) const HEARTBEAT: u8 = 8;

/// Until the broker has said what its largest frame is, and if it says "any".
const MAX_FRAME: usize = 16 << 20;
/// The least that a broker may say.
const MIN_FRAME: usize = 4096;

/// Room that is asked for in one read.
const READ: usize = 64 << 10;

/// Bytes from the broker that were not handed on yet.
#[derive(Debug)]
pub(super) struct Frames {
    buffer: Vec<u8>,
    /// From here on nothing was handed on.
    start: usize,
    /// Up to here there are bytes.
    end: usize,
    /// The frame whose middle comes next.
    within: Within,
    max_frame: usize,
    /// A frame has come: it is a broker.
    begun: bool,
}

/// In the middle of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Within {
    /// A frame begins here.
    None,
    /// So many bytes pass to the client library unseen: the rest of a body.
    Theirs(usize),
    /// So many bytes of a body are a channel's of ours; the end octet follows.
    Ours { channel: u16, left: usize },
}

impl Frames {
    pub(super) fn new() -> Self {
        Self { buffer: Vec::new(), start: 0, end: 0, within: Within::None, max_frame: MAX_FRAME, begun: false }
    }

    /// Where the next bytes go; say afterwards how many came.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.start > 0 && self.buffer.len() - self.end < READ {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.len() - self.end < READ {
            self.buffer.resize(self.end + READ, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// So many bytes came. What is the client library's is added to `theirs`.
    pub(super) fn came(&mut self, count: usize, lanes: &Lanes, theirs: &mut Vec<u8>) -> io::Result<()> {
        self.end += count;
        let mut table = lanes.lock();
        while self.next(&mut table, theirs)? {}
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        Ok(())
    }

    /// Whether what was handed to the client library ends with a frame.
    pub(super) fn between(&self) -> bool {
        !matches!(self.within, Within::Theirs(_))
    }

    /// Hands on the next frame, or the next piece of one. `false`: more must come first.
    fn next(&mut self, table: &mut Table, theirs: &mut Vec<u8>) -> io::Result<bool> {
        let bytes = &mut self.buffer[self.start..self.end];
        match self.within {
            Within::Theirs(left) => {
                let piece = left.min(bytes.len());
                theirs.extend_from_slice(&bytes[..piece]);
                self.start += piece;
                self.within = if piece == left { Within::None } else { Within::Theirs(left - piece) };
                return Ok(piece == left);
            }
            Within::Ours { channel, left } => {
                let piece = left.min(bytes.len());
                if piece > 0 {
                    table.body(channel, &bytes[..piece])?;
                }
                self.start += piece;
                self.within = Within::Ours { channel, left: left - piece };
                return match bytes.get(piece) {
                    Some(&FRAME_END) => {
                        self.start += 1;
                        self.within = Within::None;
                        Ok(true)
                    }
                    Some(_) => Err(broken("a frame that does not end where it should")),
                    None => Ok(false),
                };
            }
            Within::None => {}
        }
        let Some(head) = bytes.first_chunk::<FRAME_HEAD>() else { return Ok(false) };
        let [kind, channel @ .., s1, s2, s3, s4] = *head;
        let channel = u16::from_be_bytes(channel);
        let size = u32::from_be_bytes([s1, s2, s3, s4]) as usize;
        match kind {
            METHOD | HEADER | BODY | HEARTBEAT => self.begun = true,
            // Another version of AMQP, TLS, or another protocol: the client library knows what to say of those.
            _ if !self.begun => {
                self.within = Within::Theirs(usize::MAX);
                return Ok(true);
            }
            _ => return Err(broken(format!("a frame of the unknown kind {kind}"))),
        }
        let length = size.saturating_add(FRAME_OVERHEAD);
        if length > self.max_frame {
            return Err(broken(format!("a frame of {length} bytes, and {} were agreed on", self.max_frame)));
        }
        if kind == BODY {
            self.within = if table.has(channel) {
                self.start += FRAME_HEAD;
                Within::Ours { channel, left: size }
            } else {
                Within::Theirs(length)
            };
            return Ok(true);
        }
        if bytes.len() < length {
            return Ok(false);
        }
        if bytes[length - 1] != FRAME_END {
            return Err(broken("a frame that does not end where it should"));
        }
        let payload = Payload::new(&mut bytes[FRAME_HEAD..length - 1]);
        let whose = match kind {
            METHOD => match payload.method() {
                Some(Method::Tune(max)) => {
                    self.max_frame = if max == 0 { MAX_FRAME } else { (max as usize).max(MIN_FRAME) };
                    Whose::Theirs
                }
                Some(method) => table.method(channel, &method)?,
                // What is shorter than it should be is the client library's to complain about.
                None if !table.has(channel) => Whose::Theirs,
                None => return Err(broken("a method that can't be read")),
            },
            HEADER => match payload.content_header() {
                Some(head) => table.header(channel, &head)?,
                None if !table.has(channel) => Whose::Theirs,
                None => return Err(broken("properties that can't be read")),
            },
            _ => Whose::Theirs,
        };
        if whose == Whose::Theirs {
            theirs.extend_from_slice(&bytes[..length]);
        }
        self.start += length;
        Ok(true)
    }
}
