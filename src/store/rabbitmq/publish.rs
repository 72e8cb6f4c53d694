//! Publishing with confirms. Stored means: persistent, mandatory, acknowledged, not returned.
//!
//! One task owns each publishing channel. Sharing a channel between tasks lets delivery tags and publishes swap
//! places, and then a refused message is reported as stored; a single owner can't do that. Requests come in over a
//! bounded queue and are pipelined: many are under way, none is awaited one by one, and no pending confirm is dropped.
//!
//! A broker that refuses a *message* (not a full queue: its size or its properties) closes the channel, or the
//! connection, with everybody's confirms, and does not say which message it was. So what was under way then is
//! suspected: whoever offers one of those again has it published alone. The one that is refused alone is published
//! once more with its body, its id and why it is dead, and if that is refused too, whoever offers it keeps it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use lapin::types::ShortString;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::lasting::{self, Lasting};
use super::session::{Epoch, State};
use super::suspects::Suspects;
use super::topology::rpc;
use super::window::{Ended, Window, taking_none};
use crate::core::message::{MAX_BODY_BYTES, Message};
use crate::store::{PublishError, StoreError};

/// Requests that wait for a place in the window. Callers beyond it wait in `publish`, bounded by their time-out.
const QUEUE: usize = 256;

/// Most bytes of a body that is published again. It may have come from another client, and 4.x takes as much.
const MAX_BODY_AGAIN: usize = 16 << 20;

/// Between two tries to open a publishing channel on a connection that is up.
const REOPEN: Duration = Duration::from_millis(250);

/// One publish, and where its outcome goes.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) message: Arc<Message>,
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    /// Not sent any more after this.
    pub(super) expires: Instant,
    pub(super) claim: Claim,
    pub(super) done: oneshot::Sender<Result<(), PublishError>>,
}

/// Either the request is sent, or its caller is told that it was not: whoever takes this first decides.
#[derive(Debug, Clone, Default)]
pub(super) struct Claim(Arc<AtomicBool>);

impl Claim {
    /// `false`: the other side was first.
    pub(super) fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// The handle of one publishing task.
#[derive(Debug, Clone)]
pub(super) struct Publisher {
    requests: mpsc::Sender<Request>,
    /// The most bytes of a body that the broker takes, once it has said so by refusing one; 0 until then.
    largest: Arc<AtomicUsize>,
}

impl Publisher {
    /// Starts the task; it ends when the last handle is dropped.
    pub(super) fn start(state: watch::Receiver<State>) -> Self {
        let (requests, incoming) = mpsc::channel(QUEUE);
        let largest = Arc::<AtomicUsize>::default();
        lasting::start(Task { state, incoming, suspects: Suspects::default(), largest: largest.clone() });
        Self { requests, largest }
    }

    /// Publishes, and waits at most `patience` for the confirm.
    pub(super) async fn publish(
        &self,
        message: Arc<Message>,
        exchange: ShortString,
        routing_key: ShortString,
        patience: Duration,
    ) -> Result<(), PublishError> {
        let most = if is_again(&message) { MAX_BODY_AGAIN } else { MAX_BODY_BYTES };
        let most = match self.largest.load(Ordering::Relaxed) {
            0 => most,
            largest => most.min(largest),
        };
        if message.body.len() > most {
            return Err(PublishError::Invalid(format!(
                "its body has {} bytes, and the broker takes at most {most}",
                message.body.len()
            )));
        }
        let (done, outcome) = oneshot::channel();
        let expires = Instant::now() + patience;
        let claim = Claim::default();
        let request = Request { message, exchange, routing_key, expires, claim: claim.clone(), done };
        match tokio::time::timeout_at(expires, self.requests.send(request)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(PublishError::NotConnected("shut down".to_owned())),
            Err(_) => {
                return Err(PublishError::NotConnected("the broker is too slow: no place in the window".to_owned()));
            }
        }
        match tokio::time::timeout_at(expires, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(PublishError::Unknown("the publishing task ended".to_owned())),
            Err(_) if claim.take() => Err(PublishError::NotConnected("not sent in time".to_owned())),
            Err(_) => Err(PublishError::Unknown(format!("no confirm within {} ms", patience.as_millis()))),
        }
    }
}

struct Task {
    state: watch::Receiver<State>,
    incoming: mpsc::Receiver<Request>,
    suspects: Suspects,
    largest: Arc<AtomicUsize>,
}

impl Lasting for Task {
    async fn run(&mut self) {
        loop {
            let state = self.state.borrow_and_update().clone();
            match state {
                State::Up(epoch) => {
                    let open = match open(&epoch).await {
                        Ok(channel) => {
                            let window = Window::new(channel, epoch, &mut self.suspects);
                            match window.serve(&mut self.incoming, &mut self.state).await {
                                Ended::Lost(lost) => {
                                    tracing::debug!(reason = %lost.text, "publishing channel lost");
                                    self.learn(&lost.text);
                                    true
                                }
                                Ended::Unused => false,
                            }
                        }
                        Err(error) => {
                            tracing::debug!(%error, "no publishing channel");
                            self.refuse_for(REOPEN, &PublishError::NotConnected(error.to_string())).await
                        }
                    };
                    if !open {
                        return;
                    }
                }
                State::Blocked(_, reason) => {
                    let error = PublishError::Refused(taking_none(&reason));
                    if !self.refuse_until_change(&error).await {
                        return;
                    }
                }
                State::Connecting => {
                    let error = PublishError::NotConnected("connecting".to_owned());
                    if !self.refuse_until_change(&error).await {
                        return;
                    }
                }
                State::Down(error) => {
                    // It may be another broker, or the same one with another limit, that comes back.
                    self.largest.store(0, Ordering::Relaxed);
                    if !self.refuse_until_change(&PublishError::NotConnected(error.detail())).await {
                        return;
                    }
                }
            }
        }
    }
}

impl Task {
    /// Answers at once, so that nobody waits for a broker that is known not to answer.
    async fn refuse_until_change(&mut self, error: &PublishError) -> bool {
        loop {
            tokio::select! {
                changed = self.state.changed() => return changed.is_ok(),
                request = self.incoming.recv() => match request {
                    Some(request) => { let _ = request.done.send(Err(error.clone())); }
                    None => return false,
                },
            }
        }
    }

    /// A broker whose limit is below ours says so by refusing a message, with all that is under way.
    fn learn(&self, refusal: &str) {
        if let Some(largest) = largest_body(refusal) {
            tracing::warn!(largest, "the broker takes no larger bodies; larger ones are refused from now on");
            self.largest.store(largest, Ordering::Relaxed);
        }
    }

    async fn refuse_for(&mut self, wait: Duration, error: &PublishError) -> bool {
        timeout(wait, self.refuse_until_change(error)).await.unwrap_or(true)
    }
}

async fn open(epoch: &Epoch) -> Result<Channel, StoreError> {
    let channel = epoch.channel().await?;
    rpc(epoch, channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

/// Whether a message lay in a store before, so that losing what it carries beside its body is better than being stuck.
pub(super) fn is_again(message: &Message) -> bool {
    message.death.is_some() || !message.carried.is_empty()
}

/// The limit in "message size 200 is larger than (configured) max size 100".
fn largest_body(refusal: &str) -> Option<usize> {
    let (_, limit) = refusal.split_once("message size ")?.1.split_once("max size ")?;
    let digits = limit.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().filter(|limit| *limit > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_read_out_of_the_refusals_of_all_versions() {
        let new = "PRECONDITION_FAILED - message size 2000 is larger than configured max size 1000";
        assert_eq!(largest_body(new), Some(1000));
        assert_eq!(
            largest_body("x (406): PRECONDITION_FAILED - message size 20 is larger than max size 10\""),
            Some(10)
        );
        assert_eq!(largest_body("PRECONDITION_FAILED - invalid expiration 'x'"), None);
    }

    #[test]
    fn either_the_sender_or_the_caller_has_a_request() {
        let claim = Claim::default();
        assert!(claim.clone().take());
        assert!(!claim.take());
    }
}
