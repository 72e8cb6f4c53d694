//! The deactivation record on the broker: a queue of its own that holds at most one message and has no consumer.
//!
//! That it is not empty is the state. A look at its length takes nothing out, so it is what is done once a second; but a
//! length of 0 is also what the broker says of a quorum queue whose leader does not answer it in time, and of one whose
//! record is just being read. So where it matters (before a processor begins, and before one that was deactivated goes
//! on) an empty queue has to be empty several times, as its leader says. The record itself is read once by each process: every
//! read returns it, and returns are limited.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use lapin::types::{AMQPValue, ShortString};
use tokio::time::sleep;

use super::Broker;
use super::session::Epoch;
use super::topology::{self, declare_one, name, rpc, type_arguments};
use crate::core::deactivation::Deactivation;
use crate::core::topology::QueueKind;
use crate::store::StoreError;

/// For so long at most another process has the record in its hands while it reads it, or a queue no leader that answers.
const READ_BY_ANOTHER: Duration = Duration::from_millis(300);

/// So often a queue has to be empty before it is taken to be.
const LOOKS: u32 = 3;

/// A record comes back when whoever reads it returns it; it is removed again then. Nobody reads it so often.
const REMOVALS: usize = 5;

/// `stagepost.<namespace>.<name>.deactivated`.
pub(super) fn queue(processor: &str) -> String {
    format!("stagepost.{processor}.deactivated")
}

/// What this process knows of each processor's record. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Records(Arc<Mutex<HashMap<String, Known>>>);

#[derive(Debug, Clone)]
enum Known {
    /// There was none, on the connection of this number.
    None(u64),
    /// This one.
    Some(Box<Deactivation>),
}

impl Records {
    /// The record, if there is one.
    pub(super) async fn read(
        &self,
        broker: &Broker,
        epoch: &Arc<Epoch>,
        processor: &str,
        kind: QueueKind,
    ) -> Result<Option<Deactivation>, StoreError> {
        let filled = length(broker, epoch, processor, kind).await? > 0;
        match (self.known(processor), filled) {
            (Some(Known::Some(record)), true) => return Ok(Some(*record)),
            (Some(Known::None(number)), false) if number == epoch.number => return Ok(None),
            _ => {}
        }
        // In a task of its own: a caller that gives up must not leave the record in our hands.
        let (epoch, queue) = (epoch.clone(), queue(processor));
        let number = epoch.number;
        let read = tokio::spawn(async move { look_closely(&epoch, &queue, filled).await });
        Ok(match read.await.unwrap_or(Err(StoreError::Closed))? {
            Found::Record(record) => {
                self.know(processor, Known::Some(record.clone()));
                Some(*record)
            }
            // It is there, and what it says is read another time.
            Found::InOtherHands => Some(unreadable("another process is reading it")),
            Found::Nothing => {
                self.know(processor, Known::None(number));
                None
            }
        })
    }

    /// Removes the record, and makes sure that it is gone.
    pub(super) async fn remove(&self, epoch: &Arc<Epoch>, processor: &str) -> Result<(), StoreError> {
        self.forget(processor);
        let (epoch, queue) = (epoch.clone(), queue(processor));
        let removed = tokio::spawn(async move {
            for _ in 0..REMOVALS {
                match topology::purge(&epoch, &queue).await {
                    Ok(()) => {}
                    Err(StoreError::NotFound(_)) => return Ok(()),
                    Err(error) => return Err(error),
                }
                sleep(READ_BY_ANOTHER / 2).await;
                if topology::look(&epoch, &queue).await?.message_count() == 0
                    && get(&epoch, &queue, Then::Remove).await?.is_none()
                {
                    return Ok(());
                }
            }
            Err(StoreError::NotConnected(format!("`{queue}` does not stay empty; try again")))
        });
        removed.await.unwrap_or(Err(StoreError::Closed))
    }

    fn known(&self, processor: &str) -> Option<Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(processor).cloned()
    }

    fn know(&self, processor: &str, known: Known) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(processor.to_owned(), known);
    }

    /// The record may have changed by our doing.
    pub(super) fn forget(&self, processor: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(processor);
    }
}

/// How many records there are, in a queue that is made if it is missing.
pub(super) async fn length(
    broker: &Broker,
    epoch: &Arc<Epoch>,
    processor: &str,
    kind: QueueKind,
) -> Result<u32, StoreError> {
    let queue = queue(processor);
    let found = match topology::look(epoch, &queue).await {
        Err(StoreError::NotFound(_)) => {
            broker.lost(&queue, kind);
            let mut arguments = type_arguments(kind);
            arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
            arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
            declare_one(epoch, &queue, false, arguments).await?.message_count()
        }
        found => found?.message_count(),
    };
    broker.found(&queue, kind);
    Ok(found)
}

/// What a close look finds.
enum Found {
    Nothing,
    Record(Box<Deactivation>),
    InOtherHands,
}

/// Looks until there is a record, or there was none so often that there is none.
async fn look_closely(epoch: &Arc<Epoch>, queue: &str, mut filled: bool) -> Result<Found, StoreError> {
    for _ in 1..LOOKS {
        if let Some(body) = get(epoch, queue, Then::Return).await? {
            return Ok(record(&body));
        }
        if filled {
            return Ok(Found::InOtherHands);
        }
        // Not in step with others who look as well.
        sleep(READ_BY_ANOTHER.mul_f64(0.4 + 0.6 * fastrand::f64())).await;
        filled = topology::look(epoch, queue).await?.message_count() > 0;
    }
    Ok(match get(epoch, queue, Then::Return).await? {
        Some(body) => record(&body),
        None if filled => Found::InOtherHands,
        None => Found::Nothing,
    })
}

/// What lies there and is no record of ours is not ours to judge: something does, so the processor is not to run.
fn record(body: &[u8]) -> Found {
    Found::Record(Box::new(serde_json::from_slice(body).unwrap_or_else(|error| unreadable(&error.to_string()))))
}

/// What is done with a record that was read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Return,
    Remove,
}

/// Takes the record in hand. Only the queue's leader answers this, so that "none" is true.
async fn get(epoch: &Epoch, queue: &str, then: Then) -> Result<Option<Vec<u8>>, StoreError> {
    let channel = epoch.channel().await?;
    let got = rpc(epoch, channel.basic_get(name(queue)?, BasicGetOptions::default())).await?;
    if let Some(got) = &got {
        let tag = got.delivery.delivery_tag;
        match then {
            Then::Return => {
                let requeue = BasicNackOptions { multiple: false, requeue: true };
                rpc(epoch, channel.basic_nack(tag, requeue)).await?;
            }
            Then::Remove => {
                rpc(epoch, channel.basic_ack(tag, BasicAckOptions::default())).await?;
            }
        }
    }
    rpc(epoch, channel.close(200, ShortString::from("read"))).await?;
    Ok(got.map(|got| got.delivery.data))
}

fn unreadable(why: &str) -> Deactivation {
    Deactivation {
        uid: String::new(),
        time: jiff::Timestamp::UNIX_EPOCH,
        message_id: String::new(),
        reason: "Unknown".to_owned(),
        message: format!("the record can't be read: {why}"),
        attempts: 0,
    }
}
