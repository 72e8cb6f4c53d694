//! The deactivation record on the broker: a queue of its own that holds at most one message and has no consumer.

use std::sync::Arc;

use lapin::options::{BasicGetOptions, BasicNackOptions};
use lapin::types::{AMQPValue, ShortString};

use super::session::Epoch;
use super::topology::{self, declare_one, name, rpc, type_arguments};
use crate::core::deactivation::Deactivation;
use crate::core::topology::QueueKind;
use crate::store::StoreError;

/// `stagepost.<namespace>.<name>.deactivated`.
pub(super) fn queue(processor: &str) -> String {
    format!("stagepost.{processor}.deactivated")
}

/// Makes the queue, or finds it. The first record stays: a second one is refused.
pub(super) async fn declare(epoch: &Epoch, processor: &str, kind: QueueKind) -> Result<u32, StoreError> {
    let mut arguments = type_arguments(kind);
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let queue = declare_one(epoch, &queue(processor), false, arguments).await?;
    Ok(queue.message_count())
}

/// The record, if there is one. Looks first: that is one round trip, and nearly always the answer is no.
pub(super) async fn read(epoch: &Arc<Epoch>, processor: &str) -> Result<Option<Deactivation>, StoreError> {
    let queue = queue(processor);
    match topology::look(epoch, &queue).await {
        Ok(found) if found.message_count() == 0 => return Ok(None),
        Ok(_) => {}
        Err(StoreError::NotFound(_)) => return Ok(None),
        Err(error) => return Err(error),
    }
    let channel = epoch.channel().await?;
    let got = rpc(epoch, channel.basic_get(name(&queue)?, BasicGetOptions::default())).await?;
    let Some(got) = got else { return Ok(None) };
    let requeue = BasicNackOptions { multiple: false, requeue: true };
    rpc(epoch, channel.basic_nack(got.delivery.delivery_tag, requeue)).await?;
    rpc(epoch, channel.close(200, ShortString::from("read"))).await?;
    match serde_json::from_slice(&got.delivery.data) {
        Ok(record) => Ok(Some(record)),
        // Not ours to judge: something lies there, so the processor is not to run.
        Err(error) => Ok(Some(Deactivation {
            uid: String::new(),
            time: jiff::Timestamp::UNIX_EPOCH,
            message_id: String::new(),
            reason: "Unknown".to_owned(),
            message: format!("the record can't be read: {error}"),
            attempts: 0,
        })),
    }
}
