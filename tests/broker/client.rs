//! Another client of the broker: what it publishes, takes, declares and deletes beside us.

use std::time::Instant;

use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions,
    QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use tokio::runtime::Runtime;

use futures_util::StreamExt as _;

use crate::support::seconds;

/// See the module. Each call has a channel of its own, since the broker closes it with every refusal.
pub(crate) struct Client {
    connection: Connection,
    runtime: Runtime,
}

/// A message as it lay in a queue.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) properties: BasicProperties,
    pub(crate) body: Vec<u8>,
}

impl Taken {
    /// A header as text; numbers as such.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        match self.properties.headers().as_ref()?.inner().get(name)? {
            AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
            AMQPValue::LongInt(number) => Some(number.to_string()),
            AMQPValue::LongLongInt(number) => Some(number.to_string()),
            AMQPValue::LongUInt(number) => Some(number.to_string()),
            other => Some(format!("{other:?}")),
        }
    }

    /// All names of headers.
    pub(crate) fn names(&self) -> Vec<String> {
        let headers = self.properties.headers().as_ref();
        headers.into_iter().flat_map(|table| table.inner().keys()).map(|name| name.as_str().to_owned()).collect()
    }

    pub(crate) fn id(&self) -> String {
        self.properties.message_id().as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default()
    }
}

/// Text or bytes as the value of a header.
pub(crate) fn long(bytes: impl Into<Vec<u8>>) -> AMQPValue {
    AMQPValue::LongString(LongString::from(bytes.into()))
}

/// Headers of a message.
pub(crate) fn headers(pairs: impl IntoIterator<Item = (&'static str, AMQPValue)>) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert(name.into(), value);
    }
    BasicProperties::default().with_delivery_mode(2).with_headers(table)
}

fn short(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap()
}

impl Client {
    pub(crate) fn connect(uri: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let connection = runtime.block_on(Connection::connect(uri, ConnectionProperties::default())).unwrap();
        Self { connection, runtime }
    }

    fn on_channel<T>(&self, work: impl AsyncFnOnce(&Channel) -> lapin::Result<T>) -> lapin::Result<T> {
        self.runtime.block_on(async {
            let channel = self.connection.create_channel().await?;
            let done = work(&channel).await;
            if channel.status().connected() {
                let _ = channel.close(200, "done".into()).await;
            }
            done
        })
    }

    /// Publishes, and waits for the confirm.
    #[track_caller]
    pub(crate) fn publish(&self, exchange: &str, key: &str, properties: BasicProperties, body: &[u8]) {
        let confirmed = self.on_channel(async move |channel| {
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            channel.basic_publish(short(exchange), short(key), options, body, properties).await?.await
        });
        assert!(matches!(confirmed, Ok(Confirmation::Ack(None))), "{confirmed:?}");
    }

    /// Publishes many, persistent, and waits for all confirms.
    #[track_caller]
    pub(crate) fn fill(&self, queue: &str, bodies: impl IntoIterator<Item = String>) {
        let filled = self.on_channel(async move |channel| {
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            let mut pending = std::collections::VecDeque::new();
            for (number, body) in bodies.into_iter().enumerate() {
                let id = ShortString::try_new(format!("id-{number}")).unwrap();
                let properties = BasicProperties::default().with_delivery_mode(2).with_message_id(id);
                let options = BasicPublishOptions::default();
                let confirm = channel
                    .basic_publish(ShortString::default(), short(queue), options, body.as_bytes(), properties)
                    .await?;
                pending.push_back(confirm);
                if pending.len() > 1000
                    && let Some(first) = pending.pop_front()
                {
                    assert!(matches!(first.await?, Confirmation::Ack(None)));
                }
            }
            for confirm in pending {
                assert!(matches!(confirm.await?, Confirmation::Ack(None)));
            }
            Ok(())
        });
        filled.unwrap();
    }

    /// Takes this many messages out of a queue, or those that come within 20 s.
    pub(crate) fn take(&self, queue: &str, count: usize) -> Vec<Taken> {
        let deadline = Instant::now() + seconds(20);
        let taken = self.on_channel(async move |channel| {
            let options = BasicConsumeOptions::default();
            let mut consumer =
                channel.basic_consume(short(queue), ShortString::default(), options, FieldTable::default()).await?;
            let mut taken = Vec::new();
            while taken.len() < count {
                let next = tokio::time::timeout_at(deadline.into(), consumer.next()).await;
                let Ok(Some(delivery)) = next else { break };
                let delivery = delivery?;
                channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await?;
                taken.push(Taken { properties: delivery.properties, body: delivery.data });
            }
            Ok(taken)
        });
        taken.unwrap()
    }

    /// Ready messages and consumers of a queue; `None` if there is no such queue.
    pub(crate) fn look(&self, queue: &str) -> Option<(u32, u32)> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let found = self
            .on_channel(async move |channel| channel.queue_declare(short(queue), options, FieldTable::default()).await);
        found.ok().map(|queue| (queue.message_count(), queue.consumer_count()))
    }

    /// Ready messages of a queue.
    pub(crate) fn depth(&self, queue: &str) -> u32 {
        self.look(queue).map_or(0, |(ready, _)| ready)
    }

    /// Makes a durable queue.
    pub(crate) fn declare(&self, queue: &str, arguments: impl IntoIterator<Item = (&'static str, AMQPValue)>) {
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert(name.into(), value);
        }
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.on_channel(async move |channel| channel.queue_declare(short(queue), options, table).await).unwrap();
    }

    /// Answers how many messages went with it.
    pub(crate) fn delete_queue(&self, queue: &str) -> u32 {
        let options = QueueDeleteOptions::default();
        self.on_channel(async move |channel| channel.queue_delete(short(queue), options).await).unwrap()
    }

    pub(crate) fn purge(&self, queue: &str) -> u32 {
        let options = QueuePurgeOptions::default();
        self.on_channel(async move |channel| channel.queue_purge(short(queue), options).await).unwrap()
    }

    pub(crate) fn delete_exchange(&self, exchange: &str) {
        let options = ExchangeDeleteOptions::default();
        self.on_channel(async move |channel| channel.exchange_delete(short(exchange), options).await).unwrap();
    }

    pub(crate) fn unbind(&self, queue: &str, exchange: &str, key: &str) {
        let (queue, exchange, key) = (short(queue), short(exchange), short(key));
        let unbound = self
            .on_channel(async move |channel| channel.queue_unbind(queue, exchange, key, FieldTable::default()).await);
        unbound.unwrap();
    }
}
