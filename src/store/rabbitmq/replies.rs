//! The mailbox of this process on a broker: a queue of its own, for as long as its connection lasts.
//!
//! The queue is exclusive, named by the server, and gone with the connection; so an answer to a caller of another
//! connection finds no queue, and its sender learns that. What comes is handed over at once: there is nothing to
//! acknowledge, for an answer that is lost with this process has lost its caller too.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use tokio::sync::watch;
use tokio::time::timeout;

use super::lasting::{self, Lasting};
use super::session::{Epoch, State, not_connected};
use super::topology::{rpc, type_arguments};
use super::wire;
use crate::core::message::MessageId;
use crate::core::topology::QueueKind;
use crate::store::StoreError;
use crate::store::mailbox::Mailbox;

/// Between two tries to have a queue on a connection that is up.
const AGAIN: Duration = Duration::from_secs(1);

/// Keeps the mailbox open whenever the broker is connected. Ends with the session.
pub(super) fn start(state: watch::Receiver<State>) -> Arc<Mailbox> {
    let mailbox = Arc::new(Mailbox::closed("connecting"));
    lasting::start(Opener { state, mailbox: mailbox.clone() });
    mailbox
}

struct Opener {
    state: watch::Receiver<State>,
    mailbox: Arc<Mailbox>,
}

impl Lasting for Opener {
    async fn run(&mut self) {
        let mut said: Option<StoreError> = None;
        loop {
            let now = self.state.borrow_and_update().clone();
            let epoch = match now {
                State::Up(epoch) | State::Blocked(epoch, _) => epoch,
                State::Connecting | State::Down(_) => {
                    if self.state.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let error = serve(&epoch, &self.mailbox).await;
            self.mailbox.close(&error.detail());
            if !epoch.is_over() && said.as_ref() != Some(&error) {
                tracing::warn!(%error, "no queue for replies; requests that want one are refused, and it is tried again");
                said = Some(error);
            }
            // A change ends the wait; the end of the session too, and is seen above.
            let _ = timeout(AGAIN, self.state.changed()).await;
            if self.state.has_changed().is_err() {
                return;
            }
        }
    }

    fn cut_off(&mut self) {
        self.mailbox.close("a bug ended it");
    }
}

/// Hands over what comes, until the queue or its connection is gone.
async fn serve(epoch: &Arc<Epoch>, mailbox: &Mailbox) -> StoreError {
    let mut stream = match open(epoch).await {
        Ok((queue, stream)) => {
            tracing::debug!(%queue, "waiting for replies");
            mailbox.open(queue.as_str());
            stream
        }
        Err(error) => return error,
    };
    loop {
        let came = tokio::select! {
            biased;
            () = epoch.ended() => return StoreError::NotConnected("the connection was lost".to_owned()),
            came = stream.next() => came,
        };
        match came {
            Some(Ok(delivery)) => {
                let unnamed = || MessageId::new(uuid::Uuid::now_v7().to_string());
                let written = wire::written(&delivery.properties);
                let properties = wire::Properties::read(&written).unwrap_or_default();
                mailbox.take_in(wire::message(&properties, delivery.data, unnamed));
            }
            Some(Err(error)) => return not_connected(&error),
            None => return StoreError::NotFound("the broker cancelled the consumer of replies".to_owned()),
        }
    }
}

async fn open(epoch: &Arc<Epoch>) -> Result<(ShortString, lapin::Consumer), StoreError> {
    let channel = epoch.channel().await?;
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    // Said, because a virtual host may have another default, which can't be exclusive.
    let declaring = channel.queue_declare(ShortString::default(), options, type_arguments(QueueKind::Classic));
    let queue = rpc(epoch, declaring).await?.name().clone();
    let options = BasicConsumeOptions { no_ack: true, exclusive: true, ..BasicConsumeOptions::default() };
    let consuming = channel.basic_consume(queue.clone(), ShortString::default(), options, FieldTable::default());
    Ok((queue, rpc(epoch, consuming).await?))
}
