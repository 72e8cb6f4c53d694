//! Declaring queues, exchanges and bindings, and looking at them.
//!
//! All of it goes over a channel of its own: the broker answers a mismatch by closing the channel it came on.

use std::sync::Arc;

use lapin::options::{
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind as LapinExchangeKind, Queue as LapinQueue};
use tokio::time::timeout;

use super::session::{Epoch, RPC_TIMEOUT, not_connected};
use crate::core::topology::{Consumers, Exchange, ExchangeKind, Management, Queue, QueueKind, Topology};
use crate::store::{Fault, StoreError};

/// How often the broker may redeliver a message of a quorum queue before it drops it.
///
/// Never absent (3.10 then returns messages to the tail, 4.x drops them at the 21st return), never -1 (3.10 drops
/// the message at its first return).
const DELIVERY_LIMIT: i32 = 1_000_000;

/// Declares all of a topology. What exists alike stays as it is.
pub(super) async fn declare(epoch: &Arc<Epoch>, topology: &Topology) -> Result<(), StoreError> {
    if let Some(exchange) = &topology.exchange {
        declare_exchange(epoch, exchange).await?;
    }
    let Some(queue) = &topology.queue else { return Ok(()) };
    declare_queue(epoch, queue).await?;
    if let Some(exchange) = &topology.exchange {
        // A fanout exchange ignores the key, but a binding there must be.
        let fanout = [String::new()];
        let keys = if exchange.kind == ExchangeKind::Fanout { &fanout[..] } else { &topology.bindings };
        for key in keys {
            bind(epoch, queue, exchange, key).await?;
        }
    }
    Ok(())
}

/// Removes bindings that left the spec.
pub(super) async fn unbind(epoch: &Epoch, queue: &str, exchange: &str, keys: &[String]) -> Result<(), StoreError> {
    for key in keys {
        let (queue, exchange, key) = (name(queue)?, name(exchange)?, name(key)?);
        ask(epoch, async move |channel| channel.queue_unbind(queue, exchange, key, FieldTable::default()).await)
            .await?;
    }
    Ok(())
}

async fn declare_exchange(epoch: &Epoch, exchange: &Exchange) -> Result<(), StoreError> {
    let kind = match exchange.kind {
        ExchangeKind::Direct => LapinExchangeKind::Direct,
        ExchangeKind::Topic => LapinExchangeKind::Topic,
        ExchangeKind::Fanout => LapinExchangeKind::Fanout,
    };
    let options = ExchangeDeclareOptions {
        passive: exchange.management == Management::Existing,
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let exchange_name = name(&exchange.name)?;
    let declared = ask(epoch, async move |channel| {
        channel.exchange_declare(exchange_name, kind, options, FieldTable::default()).await
    })
    .await;
    declared.map_err(|error| explain(error, "exchange", &exchange.name))
}

async fn declare_queue(epoch: &Epoch, queue: &Queue) -> Result<(), StoreError> {
    let passive = queue.management == Management::Existing;
    let arguments = if passive { FieldTable::default() } else { arguments(queue) };
    declare_one(epoch, &queue.name, passive, arguments).await.map(|_| ())
}

/// Declares one durable queue and says how much is in it.
pub(super) async fn declare_one(
    epoch: &Epoch,
    queue: &str,
    passive: bool,
    arguments: FieldTable,
) -> Result<LapinQueue, StoreError> {
    let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
    let queue_name = name(queue)?;
    let declared = ask(epoch, async move |channel| channel.queue_declare(queue_name, options, arguments).await).await;
    declared.map_err(|error| explain(error, "queue", queue))
}

/// Looks at a queue without changing anything: ready messages and consumers.
pub(super) async fn look(epoch: &Epoch, queue: &str) -> Result<LapinQueue, StoreError> {
    declare_one(epoch, queue, true, FieldTable::default()).await
}

/// Removes all ready messages of a queue.
pub(super) async fn purge(epoch: &Epoch, queue: &str) -> Result<(), StoreError> {
    let queue_name = name(queue)?;
    let purged =
        ask(epoch, async move |channel| channel.queue_purge(queue_name, QueuePurgeOptions::default()).await).await;
    purged.map(|_| ()).map_err(|error| explain(error, "queue", queue))
}

/// Deletes a queue with everything in it; one that is not there is as good as deleted.
pub(super) async fn delete(epoch: &Epoch, queue: &str) -> Result<(), StoreError> {
    let queue_name = name(queue)?;
    let deleted =
        ask(epoch, async move |channel| channel.queue_delete(queue_name, QueueDeleteOptions::default()).await).await;
    match deleted {
        Ok(_) | Err(StoreError::NotFound(_)) => Ok(()),
        Err(error) => Err(explain(error, "queue", queue)),
    }
}

async fn bind(epoch: &Epoch, queue: &Queue, exchange: &Exchange, key: &str) -> Result<(), StoreError> {
    let (queue_name, exchange_name, binding) = (name(&queue.name)?, name(&exchange.name)?, name(key)?);
    let bound = ask(epoch, async move |channel| {
        let options = QueueBindOptions::default();
        channel.queue_bind(queue_name, exchange_name, binding, options, FieldTable::default()).await
    })
    .await;
    bound.map_err(|error| explain(error, "binding", key))
}

/// The arguments that make our queue ours. Each of them is compared by the broker when it is declared again.
fn arguments(queue: &Queue) -> FieldTable {
    let mut arguments = type_arguments(queue.kind);
    let mut put = |key: &str, value: AMQPValue| {
        arguments.insert(ShortString::from(key), value);
    };
    if queue.consumers == Consumers::SingleActive {
        put("x-single-active-consumer", AMQPValue::Boolean(true));
    }
    let number = |n: u64| AMQPValue::LongLongInt(i64::try_from(n).unwrap_or(i64::MAX));
    if let Some(most) = queue.max_length {
        put("x-max-length", number(most));
    }
    if let Some(most) = queue.max_length_bytes {
        put("x-max-length-bytes", number(most));
    }
    if queue.max_length.is_some() || queue.max_length_bytes.is_some() {
        put("x-overflow", AMQPValue::LongString("reject-publish".into()));
    }
    arguments
}

/// Type and delivery limit; the latter is an error on classic queues.
pub(super) fn type_arguments(kind: QueueKind) -> FieldTable {
    let mut arguments = FieldTable::default();
    let kind_name = match kind {
        QueueKind::Quorum => "quorum",
        QueueKind::Classic => "classic",
    };
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind_name.into()));
    if kind == QueueKind::Quorum {
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
    }
    arguments
}

/// One request on the channel for questions.
async fn ask<T>(epoch: &Epoch, question: impl AsyncFnOnce(&Channel) -> lapin::Result<T>) -> Result<T, StoreError> {
    epoch.ask(question).await.unwrap_or_else(|error| Err(reply(&error)))
}

/// One request and its answer, within [`RPC_TIMEOUT`]. No answer ends the epoch.
pub(super) async fn rpc<T>(epoch: &Epoch, call: impl Future<Output = lapin::Result<T>>) -> Result<T, StoreError> {
    match timeout(RPC_TIMEOUT, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(reply(&error)),
        Err(_) => {
            epoch.fail();
            Err(StoreError::NotConnected("the broker did not answer in time".to_owned()))
        }
    }
}

/// What the broker said, by the code of its reply.
pub(super) fn reply(error: &lapin::Error) -> StoreError {
    use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
    let lapin::ErrorKind::ProtocolError(amqp) = error.kind() else { return not_connected(error) };
    let text = amqp.get_message().to_string();
    match amqp.kind() {
        // A classic queue that lives on a node that is down is not found either, and it is there.
        AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) if text.contains("is down or inaccessible") => {
            not_connected(error)
        }
        AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => StoreError::NotFound(text),
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => {
            StoreError::Unreachable { fault: Fault::AuthenticationFailed, detail: text }
        }
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => StoreError::Mismatch(text),
        _ => not_connected(error),
    }
}

fn explain(error: StoreError, what: &str, name: &str) -> StoreError {
    match error {
        StoreError::Mismatch(text) => StoreError::Mismatch(format!(
            "{what} `{name}` exists with other arguments ({text}); undo the change, or create a new store and drain this \
             one with `target.storeRef`, as a store with `management: Existing`"
        )),
        StoreError::NotFound(text) => StoreError::NotFound(format!(
            "{what} `{name}` does not exist ({text}); create it, or set `management: Declare`"
        )),
        other => other,
    }
}

/// AMQP carries names of up to 255 bytes; the API allows no longer ones.
pub(super) fn name(text: &str) -> Result<ShortString, StoreError> {
    ShortString::try_new(text)
        .map_err(|_| StoreError::Mismatch(format!("`{text}` is longer than the 255 bytes that AMQP allows")))
}
