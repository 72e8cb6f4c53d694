//! Who takes messages out of a queue whose order matters, from the moment it attaches until it has settled or returned
//! what it took.
//!
//! A consumer that has taken its batch leaves the queue and still holds messages; nothing about the queue shows that to
//! another process. So whoever attaches alone has an exclusive queue beside it: the broker lets no other connection
//! declare it, and removes it with the connection, when what that held is back in its queue.

use std::collections::HashMap;
use std::sync::Arc;

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::ShortString;
use sha2::{Digest as _, Sha256};

use super::session::Epoch;
use super::topology::{name, type_arguments};
use crate::core::topology::QueueKind;
use crate::store::StoreError;

/// AMQP's bound on a name.
const MOST: usize = 255;

/// Held as long as messages of the queue are. Those of one connection share it.
#[derive(Debug)]
pub(super) struct Claim {
    epoch: Arc<Epoch>,
    queue: ShortString,
    held: bool,
}

/// How many claims of this connection there are, by the name of the exclusive queue.
pub(super) type Claims = HashMap<String, usize>;

impl Claim {
    /// Fails with [`StoreError::InUse`] while another connection has it.
    pub(super) async fn take(epoch: &Arc<Epoch>, of: &str) -> Result<Self, StoreError> {
        let queue = name(&beside(of))?;
        let asked = epoch
            .ask(async |channel| {
                let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
                channel.queue_declare(queue.clone(), options, type_arguments(QueueKind::Classic)).await?;
                // Nobody else asks meanwhile: counted and declared are the same to all.
                *epoch.claims().entry(queue.to_string()).or_default() += 1;
                Ok(())
            })
            .await;
        match asked {
            Ok(Ok(())) => Ok(Self { epoch: Arc::clone(epoch), queue, held: true }),
            Ok(Err(error)) => Err(error),
            Err(error) if is_locked(&error) => {
                Err(StoreError::InUse(format!("another process still holds messages of queue `{of}`")))
            }
            Err(error) => Err(super::topology::reply(&error)),
        }
    }

    /// Lets others have it, and returns when they can.
    pub(super) async fn release(mut self) {
        self.held = false;
        release(&self.epoch, &self.queue).await;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.held
            && !self.epoch.is_over()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (epoch, queue) = (Arc::clone(&self.epoch), self.queue.clone());
            runtime.spawn(async move { release(&epoch, &queue).await });
        }
    }
}

/// Not done, the end of the connection does it.
async fn release(epoch: &Epoch, queue: &ShortString) {
    let asked = epoch.ask(async |channel| {
        let is_last = {
            let mut claims = epoch.claims();
            let left = claims.get(queue.as_str()).map_or(0, |count| count.saturating_sub(1));
            if left > 0 {
                claims.insert(queue.to_string(), left);
            } else {
                claims.remove(queue.as_str());
            }
            left == 0
        };
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
