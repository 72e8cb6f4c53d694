//! Who takes messages out of a queue whose order matters, from the moment it attaches until it has settled or returned
//! what it took.
//!
//! A consumer that has taken its batch leaves the queue and still holds messages; nothing about the queue shows that to
//! another process. So whoever attaches alone has an exclusive queue beside it: the broker lets no other connection
//! declare it, and removes it with the connection, when what that held is back in its queue.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::ShortString;
use sha2::{Digest as _, Sha256};

use super::session::Epoch;
use super::topology::{name, reply, type_arguments};
use crate::core::topology::QueueKind;
use crate::store::{Fault, StoreError};

/// AMQP's bound on a name.
const MOST: usize = 255;

/// Held as long as messages of the queue are. Those of one connection share it.
#[derive(Debug)]
pub(super) struct Claim {
    epoch: Arc<Epoch>,
    queue: ShortString,
    held: bool,
}

/// What a connection knows of claims, by the names of their exclusive queues.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// How often each is held.
    held: HashMap<String, usize>,
    /// Our user may not declare these. Asked once a connection: each refusal costs a channel.
    refused: HashSet<String>,
}

impl Claim {
    /// Fails with [`StoreError::InUse`] while another connection has it. `None`: our user may not declare it; then only
    /// the queue's consumer shows that somebody takes from it.
    pub(super) async fn take(epoch: &Arc<Epoch>, of: &str) -> Result<Option<Self>, StoreError> {
        let queue = name(&beside(of))?;
        if epoch.claims().refused.contains(queue.as_str()) {
            return Ok(None);
        }
        // Counted first: whoever is cancelled here lets go of it all the same.
        *epoch.claims().held.entry(queue.to_string()).or_default() += 1;
        let claim = Self { epoch: Arc::clone(epoch), queue: queue.clone(), held: true };
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let asked = epoch
            .ask(async |channel| {
                let declaring = channel.queue_declare(queue.clone(), options, type_arguments(QueueKind::Classic));
                declaring.await.map(drop)
            })
            .await;
        match asked {
            Ok(Ok(())) => Ok(Some(claim)),
            Ok(Err(error)) => Err(error),
            Err(error) if is_locked(&error) => {
                claim.forget();
                Err(StoreError::InUse(format!("another process still holds messages of queue `{of}`")))
            }
            Err(error) => match reply(&error) {
                StoreError::Unreachable { fault: Fault::AuthenticationFailed, .. } => {
                    claim.forget();
                    tracing::warn!(
                        %queue,
                        "no permission to configure this exclusive queue: while a processor that polls delivers its \
                         batch, another process could take the next one; see \"Permissions\" in the documentation"
                    );
                    epoch.claims().refused.insert(queue.to_string());
                    Ok(None)
                }
                error => Err(error),
            },
        }
    }

    /// Lets others have it, and returns when they can.
    pub(super) async fn release(mut self) {
        let (epoch, queue) = (Arc::clone(&self.epoch), self.queue.clone());
        release(&epoch, &queue, &mut self.held).await;
    }

    /// It is not ours: there is nothing to delete.
    fn forget(mut self) {
        self.held = false;
        self.epoch.claims().let_go(&self.queue);
    }
}

impl Claims {
    /// One less. Answers whether it was the last.
    fn let_go(&mut self, queue: &ShortString) -> bool {
        let left = self.held.get(queue.as_str()).map_or(0, |count| count.saturating_sub(1));
        if left > 0 {
            self.held.insert(queue.to_string(), left);
        } else {
            self.held.remove(queue.as_str());
        }
        left == 0
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.held
            && !self.epoch.is_over()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (epoch, queue) = (Arc::clone(&self.epoch), self.queue.clone());
            runtime.spawn(async move { release(&epoch, &queue, &mut true).await });
        }
    }
}

/// Not done, the end of the connection does it. Nobody else asks meanwhile, so what is counted is what is there.
async fn release(epoch: &Epoch, queue: &ShortString, held: &mut bool) {
    let asked = epoch.ask(async |channel| {
        *held = false;
        let is_last = epoch.claims().let_go(queue);
        if is_last {
            channel.queue_delete(queue.clone(), QueueDeleteOptions::default()).await?;
        }
        Ok(())
    });
    if let Err(error) = asked.await {
        tracing::debug!(%queue, %error, "a claim is left to the end of the connection");
    }
}

/// Names that begin so are not for stores.
fn beside(queue: &str) -> String {
    let whole = format!("stagepost.{queue}.taking");
    if whole.len() <= MOST {
        return whole;
    }
    let digest = Sha256::digest(queue.as_bytes());
    digest.iter().fold("stagepost.taking.".to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

fn is_locked(error: &lapin::Error) -> bool {
    let lapin::ErrorKind::ProtocolError(amqp) = error.kind() else { return false };
    matches!(amqp.kind(), AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_fits_whatever_the_queues_is() {
        assert_eq!(beside("shop.orders"), "stagepost.shop.orders.taking");
        let (long, other) = (beside(&"ä".repeat(125)), beside(&format!("{}b", "ä".repeat(124))));
        assert!(long.len() <= MOST && long.starts_with("stagepost.") && long != other);
    }
}
