//! The broker's frames, looked through before the client library reads them.
//!
//! Another client may have published what that library gives a whole connection up over: bytes that are no UTF-8 where
//! AMQP says text, or tables in tables until its stack ends. The broker hands such a message out again after every
//! reconnect, so one of them would stop its queue for good. Here the bytes that are no text become `?`, and what is
//! nested too deeply becomes a header of plain bytes. Nothing changes its length, and bodies pass as they are.
//!
//! The same look keeps the account of publishes: which were returned, by their ids and before their confirm can be
//! read, and whether a confirm is for something that was published at all. A frame that breaks the protocol is an
//! error, which ends the connection, rather than something to wait for the rest of.

mod ledger;
mod payload;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

pub(super) use self::ledger::Ledger;
use self::payload::{Payload, Seen};

/// Kind, channel, size; and the octet behind the payload.
const FRAME_HEAD: usize = 7;
const FRAME_END: u8 = 0xCE;
const FRAME_OVERHEAD: usize = FRAME_HEAD + 1;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// Until the broker has said what its largest frame is, and if it says "any".
const MAX_FRAME: usize = 16 << 20;
/// The least that a broker may say.
const MIN_FRAME: usize = 4096;

/// Room that is asked for in one read.
const READ: usize = 64 << 10;

/// Bytes from the broker, handed on frame by frame.
#[derive(Debug)]
pub(super) struct Frames {
    ledger: Arc<Ledger>,
    buffer: Vec<u8>,
    /// From here on nothing was handed on.
    start: usize,
    /// Up to here it may be.
    checked: usize,
    /// Up to here there are bytes.
    end: usize,
    /// Bytes that follow and pass unseen: the rest of a body.
    passing: usize,
    max_frame: usize,
    /// A frame has come: it is a broker.
    begun: bool,
}

impl Frames {
    pub(super) fn new(ledger: Arc<Ledger>) -> Self {
        Self {
            ledger,
            buffer: Vec::new(),
            start: 0,
            checked: 0,
            end: 0,
            passing: 0,
            max_frame: MAX_FRAME,
            begun: false,
        }
    }

    /// Hands on what may be; returns how much that is.
    pub(super) fn take(&mut self, target: &mut [u8]) -> usize {
        let count = target.len().min(self.checked - self.start);
        target[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
        self.start += count;
        if self.start == self.end {
            (self.start, self.checked, self.end) = (0, 0, 0);
        }
        count
    }

    /// Where the next bytes go; say afterwards how many came.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.start > 0 && self.buffer.len() - self.end < READ {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.checked, self.end) = (self.checked - self.start, self.end - self.start);
            self.start = 0;
        }
        if self.buffer.len() - self.end < READ {
            self.buffer.resize(self.end + READ, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// So many bytes came.
    pub(super) fn came(&mut self, count: usize) -> io::Result<()> {
        self.end += count;
        loop {
            let passing = self.passing.min(self.end - self.checked);
            self.checked += passing;
            self.passing -= passing;
            if self.passing > 0 {
                return Ok(());
            }
            let frame = &mut self.buffer[self.checked..self.end];
            let Some(head) = frame.first_chunk::<FRAME_HEAD>() else { return Ok(()) };
            let [kind, channel @ .., s1, s2, s3, s4] = *head;
            let channel = u16::from_be_bytes(channel);
            let size = u32::from_be_bytes([s1, s2, s3, s4]) as usize;
            match kind {
                METHOD | HEADER | BODY | HEARTBEAT => self.begun = true,
                // Another version of AMQP, TLS, or another protocol: the client library knows what to say of those.
                _ if !self.begun => {
                    self.passing = usize::MAX;
                    continue;
                }
                _ => return Err(broken(format!("a frame of the unknown kind {kind}"))),
            }
            let whole = size.saturating_add(FRAME_OVERHEAD);
            if whole > self.max_frame {
                return Err(broken(format!("a frame of {whole} bytes, and {} were agreed on", self.max_frame)));
            }
            if kind == BODY {
                self.passing = whole;
                continue;
            }
            if frame.len() < whole {
                return Ok(());
            }
            if frame[whole - 1] != FRAME_END {
                return Err(broken("a frame that does not end where it should"));
            }
            let payload = Payload::new(&mut frame[FRAME_HEAD..whole - 1]);
            // What is shorter than it should be is the client library's to complain about.
            let seen = match kind {
                METHOD => payload.method(channel, &self.ledger),
                HEADER => payload.content_header(channel, &self.ledger),
                _ => None,
            };
            match seen {
                Some(Seen::Tune(max)) => {
                    self.max_frame = if max == 0 { MAX_FRAME } else { (max as usize).max(MIN_FRAME) };
                }
                Some(Seen::UnknownConfirm(tag)) => {
                    return Err(broken(format!("a confirm for publish {tag}, which was never made")));
                }
                // Its confirm will come, and must not pass for one of a message that was stored.
                None if self.ledger.is_returning(channel) => {
                    return Err(broken("a returned message that can't be read"));
                }
                Some(Seen::Nothing) | None => {}
            }
            self.checked += whole;
        }
    }
}

fn broken(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the broker sent {what}"))
}
