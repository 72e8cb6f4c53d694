//! What RabbitMQ does, where our rules rest on it. Measured once, and held on every supported version: a broker that
//! does otherwise one day makes a rule wrong, and this says which.

use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions,
    BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

use futures_util::StreamExt as _;

use super::common::{Share, broker, say, shared};
use crate::rabbitmq;
use crate::support::{eventually, millis, seconds};

async fn open() -> Option<(Share, Connection, Channel)> {
    let share = tokio::task::spawn_blocking(shared).await.unwrap()?;
    let connection = Connection::connect(&share.uri, ConnectionProperties::default()).await.unwrap();
    let channel = channel(&connection).await;
    Some((share, connection, channel))
}

async fn channel(connection: &Connection) -> Channel {
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    channel
}

fn arguments(pairs: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert((*name).into(), value.clone());
    }
    table
}

fn quorum(more: &[(&str, AMQPValue)]) -> FieldTable {
    arguments(&[&[("x-queue-type", text("quorum"))], more].concat())
}

fn classic(more: &[(&str, AMQPValue)]) -> FieldTable {
    arguments(&[&[("x-queue-type", text("classic"))], more].concat())
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn number(value: i64) -> AMQPValue {
    AMQPValue::LongLongInt(value)
}

async fn declare(channel: &Channel, name: &str, arguments: FieldTable) -> lapin::Result<lapin::Queue> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.into(), options, arguments).await
}

async fn publish(
    channel: &Channel,
    queue: &str,
    body: &[u8],
    properties: BasicProperties,
) -> lapin::Result<Confirmation> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    channel.basic_publish("".into(), queue.into(), options, body, properties.with_delivery_mode(2)).await?.await
}

async fn publish_numbers(channel: &Channel, queue: &str, count: u32) {
    for number in 0..count {
        let stored = publish(channel, queue, number.to_string().as_bytes(), BasicProperties::default()).await.unwrap();
        assert!(matches!(stored, Confirmation::Ack(None)), "{stored:?}");
    }
}

/// Takes what there is, in its order, until nothing more comes.
async fn take_all(connection: &Connection, queue: &str) -> Vec<String> {
    let channel = connection.create_channel().await.unwrap();
    let (options, table) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut stream = channel.basic_consume(queue.into(), "".into(), options, table).await.unwrap();
    let mut taken = Vec::new();
    while let Ok(Some(delivery)) = tokio::time::timeout(seconds(1), stream.next()).await {
        let delivery = delivery.unwrap();
        taken.push(String::from_utf8(delivery.data.clone()).unwrap());
        channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await.unwrap();
    }
    taken
}

/// Takes the first message and returns it, so many times.
async fn return_head(connection: &Connection, queue: &str, times: usize) {
    let channel = connection.create_channel().await.unwrap();
    channel.basic_qos(1, BasicQosOptions::default()).await.unwrap();
    let (options, table) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut stream = channel.basic_consume(queue.into(), "".into(), options, table).await.unwrap();
    for _ in 0..times {
        let Ok(Some(delivery)) = tokio::time::timeout(seconds(2), stream.next()).await else { break };
        let requeue = BasicNackOptions { multiple: false, requeue: true };
        channel.basic_nack(delivery.unwrap().delivery_tag, requeue).await.unwrap();
    }
    channel.close(200, "done".into()).await.unwrap();
}

fn version() -> (u32, u32) {
    let version = rabbitmq::version().unwrap();
    let mut parts = version.split('.').map(|part| part.parse().unwrap());
    (parts.next().unwrap(), parts.next().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_argument_of_a_queue_counts_when_it_is_declared_again() {
    let Some((_share, connection, channel)) = open().await else { return };
    let base = [("x-max-length", number(10)), ("x-delivery-limit", number(1_000_000))];
    declare(&channel, "q", quorum(&base)).await.unwrap();
    declare(&channel, "q", quorum(&base)).await.expect("alike is alike");
    let others = [
        quorum(&[("x-max-length", number(11)), base[1].clone()]),
        quorum(&[base[0].clone(), ("x-delivery-limit", number(5))]),
        quorum(&[&base[..], &[("x-overflow", text("reject-publish"))]].concat()),
        quorum(&[&base[..], &[("x-dead-letter-exchange", text("x"))]].concat()),
        quorum(&[&base[..], &[("x-single-active-consumer", AMQPValue::Boolean(true))]].concat()),
        classic(&base[..1]),
    ];
    for other in others {
        let asking = connection.create_channel().await.unwrap();
        let error = declare(&asking, "q", other.clone()).await.expect_err("it differs");
        assert!(error.to_string().contains("PRECONDITION_FAILED"), "{other:?}: {error}");
    }
    declare(&channel, "q", quorum(&base)).await.expect("and nothing has changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_limit_is_refused_on_a_classic_queue() {
    let Some((_share, _connection, channel)) = open().await else { return };
    let error = declare(&channel, "q", classic(&[("x-delivery-limit", number(5))])).await.expect_err("not there");
    assert!(error.to_string().contains("PRECONDITION_FAILED"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_delivery_limit_a_returned_message_loses_its_place_or_is_dropped() {
    let Some((_share, connection, channel)) = open().await else { return };
    declare(&channel, "q", quorum(&[])).await.unwrap();
    publish_numbers(&channel, "q", 3).await;
    if version() < (4, 0) {
        return_head(&connection, "q", 1).await;
        assert_eq!(take_all(&connection, "q").await, ["1", "2", "0"], "it goes to the tail");
    } else if version() < (4, 3) {
        return_head(&connection, "q", 25).await;
        assert_eq!(take_all(&connection, "q").await, ["1", "2"], "it is dropped");
    } else {
        // A nack counts no more; the end of a consumer that held it does.
        return_head(&connection, "q", 25).await;
        assert_eq!(take_all(&connection, "q").await, ["0", "1", "2"], "it is kept");
        publish_numbers(&channel, "q", 3).await;
        for _ in 0..25 {
            let taking = connection.create_channel().await.unwrap();
            taking.basic_qos(1, BasicQosOptions::default()).await.unwrap();
            let (options, table) = (BasicConsumeOptions::default(), FieldTable::default());
            let mut stream = taking.basic_consume("q".into(), "".into(), options, table).await.unwrap();
            let _ = tokio::time::timeout(seconds(2), stream.next()).await;
            taking.close(200, "gone".into()).await.unwrap();
        }
        assert_eq!(take_all(&connection, "q").await, ["1", "2"], "it is dropped");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_limit_of_minus_one_drops_or_moves_what_is_returned() {
    let Some((_share, connection, channel)) = open().await else { return };
    declare(&channel, "q", quorum(&[("x-delivery-limit", AMQPValue::LongInt(-1))])).await.unwrap();
    publish_numbers(&channel, "q", 3).await;
    return_head(&connection, "q", 1).await;
    let left = take_all(&connection, "q").await;
    if version() < (4, 0) {
        assert!(left.is_empty(), "dropped at the first return, the next ones as their channel ends: {left:?}");
    } else if version() < (4, 3) {
        assert_eq!(left.len(), 3);
        assert!(!left.is_sorted(), "it has lost its place: {left:?}");
    } else {
        assert_eq!(left, ["0", "1", "2"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quorum_queue_keeps_what_it_confirmed_two_seconds_after_it_was_made_and_perhaps_not_before() {
    let Some(mut rabbit) = tokio::task::spawn_blocking(|| broker("")).await.unwrap() else { return };
    for (name, age) in [("settled", seconds(2)), ("young", millis(0))] {
        let connection = Connection::connect(&rabbit.uri(), ConnectionProperties::default()).await.unwrap();
        let channel = channel(&connection).await;
        declare(&channel, name, quorum(&[])).await.unwrap();
        tokio::time::sleep(age).await;
        publish_numbers(&channel, name, 10).await;
        rabbit = tokio::task::spawn_blocking(move || {
            rabbit.kill();
            rabbit.run();
            rabbit
        })
        .await
        .unwrap();
        let connection = Connection::connect(&rabbit.uri(), ConnectionProperties::default()).await.unwrap();
        // A queue that did not come back whole may refuse its first consumer, after a minute.
        let taking = tokio::spawn(async move { take_all(&connection, name).await });
        let kept = tokio::time::timeout(seconds(10), taking).await.map(Result::unwrap_or_default).unwrap_or_default();
        say(&format!("a quorum queue made {age:?} before: {} of 10 survive a kill of the broker", kept.len()));
        let expected: Vec<String> = (0..10).map(|number| number.to_string()).collect();
        assert!(name == "young" || kept == expected, "{kept:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_delivery_limit_keeps_a_returned_message_and_its_place() {
    let Some((_share, connection, channel)) = open().await else { return };
    declare(&channel, "q", quorum(&[("x-delivery-limit", AMQPValue::LongInt(1_000_000))])).await.unwrap();
    publish_numbers(&channel, "q", 3).await;
    return_head(&connection, "q", 50).await;
    assert_eq!(take_all(&connection, "q").await, ["0", "1", "2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_the_channel_returns_everything_to_its_place_also_what_is_under_way() {
    let Some((_share, connection, channel)) = open().await else { return };
    for (name, table) in [("quorum", quorum(&[("x-delivery-limit", number(1_000_000))])), ("classic", classic(&[]))] {
        declare(&channel, name, table).await.unwrap();
        publish_numbers(&channel, name, 200).await;
        for prefetch in [1, 7, 64, 150] {
            let taking = connection.create_channel().await.unwrap();
            taking.basic_qos(prefetch, BasicQosOptions::default()).await.unwrap();
            let (options, table) = (BasicConsumeOptions::default(), FieldTable::default());
            let mut stream = taking.basic_consume(name.into(), "".into(), options, table).await.unwrap();
            stream.next().await.unwrap().unwrap();
            taking.close(200, "back".into()).await.unwrap();
        }
        let expected: Vec<String> = (0..200).map(|number| number.to_string()).collect();
        assert_eq!(take_all(&connection, name).await, expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quorum_queue_with_a_single_active_consumer_can_not_be_polled() {
    let Some((_share, _connection, channel)) = open().await else { return };
    let single = [("x-single-active-consumer", AMQPValue::Boolean(true))];
    declare(&channel, "q", quorum(&single)).await.unwrap();
    let error = channel.basic_get("q".into(), BasicGetOptions::default()).await.expect_err("refused");
    assert!(error.to_string().contains("RESOURCE_LOCKED") || error.to_string().contains("405"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_a_classic_one_at_its_length_a_quorum_one_just_beyond() {
    let Some((_share, _connection, channel)) = open().await else { return };
    let limits = [("x-max-length", number(3)), ("x-overflow", text("reject-publish"))];
    for (name, table, most) in [("classic", classic(&limits), 3), ("quorum", quorum(&limits), 4)] {
        declare(&channel, name, table).await.unwrap();
        let mut stored = 0;
        while let Confirmation::Ack(None) = publish(&channel, name, b"x", BasicProperties::default()).await.unwrap() {
            stored += 1;
            assert!(stored <= most, "{name} takes more than {most}");
            // A quorum queue tells its channels that it is full a moment after it is.
            tokio::time::sleep(millis(100)).await;
        }
        assert_eq!(stored, most, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passive_declaration_counts_what_is_ready_and_says_nothing_of_arguments() {
    let Some((_share, connection, channel)) = open().await else { return };
    declare(&channel, "q", quorum(&[])).await.unwrap();
    publish_numbers(&channel, "q", 3).await;
    let taking = connection.create_channel().await.unwrap();
    taking.basic_get("q".into(), BasicGetOptions::default()).await.unwrap().expect("one");
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let begun = std::time::Instant::now();
    loop {
        let found = channel.queue_declare("q".into(), passive, classic(&[("x-max-length", number(9))])).await.unwrap();
        if found.message_count() == 2 {
            break;
        }
        assert!(begun.elapsed() < seconds(10), "{} ready", found.message_count());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_a_quorum_queue_if_it_is_empty_ends_the_whole_connection() {
    let Some((_share, connection, channel)) = open().await else { return };
    declare(&channel, "q", quorum(&[])).await.unwrap();
    let options = QueueDeleteOptions { if_empty: true, ..QueueDeleteOptions::default() };
    let error = channel.queue_delete("q".into(), options).await.expect_err("not implemented");
    assert!(error.to_string().contains("NOT_IMPLEMENTED"), "{error}");
    let begun = std::time::Instant::now();
    while connection.status().connected() {
        assert!(begun.elapsed() < seconds(5), "the connection lives on");
        tokio::time::sleep(millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_in_the_name_of_another_user_or_with_a_bad_expiration_closes_the_channel() {
    let Some((_share, connection, channel)) = open().await else { return };
    declare(&channel, "q", quorum(&[])).await.unwrap();
    let properties = [
        BasicProperties::default().with_user_id("somebody".into()),
        BasicProperties::default().with_expiration("soon".into()),
    ];
    for properties in properties {
        let refused = self::channel(&connection).await;
        let error = publish(&refused, "q", b"x", properties).await.expect_err("refused");
        assert!(error.to_string().contains("PRECONDITION_FAILED"), "{error}");
    }
    publish_numbers(&channel, "q", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_over_16_mib_closes_the_channel_on_new_brokers() {
    let Some((_share, connection, channel)) = open().await else { return };
    declare(&channel, "q", classic(&[])).await.unwrap();
    let publishing = self::channel(&connection).await;
    let body = vec![b'x'; (16 << 20) + 1];
    let stored = publish(&publishing, "q", &body, BasicProperties::default()).await;
    if version() < (4, 0) {
        assert!(matches!(stored, Ok(Confirmation::Ack(None))), "{:?}", stored.err());
    } else {
        let error = stored.expect_err("refused").to_string();
        assert!(error.contains("PRECONDITION_FAILED - message size 16777217 is larger than"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_beyond_a_frame_end_the_connection() {
    let Some((_share, connection, channel)) = open().await else { return };
    declare(&channel, "q", classic(&[])).await.unwrap();
    let table = arguments(&[("large", text(&"x".repeat(140 << 10)))]);
    let stored = publish(&channel, "q", b"x", BasicProperties::default().with_headers(table));
    let stored = tokio::time::timeout(seconds(10), stored).await;
    assert!(!matches!(stored, Ok(Ok(Confirmation::Ack(None)))), "a broker that takes it");
    let begun = std::time::Instant::now();
    while connection.status().connected() {
        assert!(begun.elapsed() < seconds(10), "the connection lives on");
        tokio::time::sleep(millis(10)).await;
    }
}

/// Attaches a consumer, and takes the first `count` messages without an answer.
async fn hold(channel: &Channel, queue: &str, count: u16) -> (lapin::Consumer, Vec<u64>) {
    channel.basic_qos(count, BasicQosOptions::default()).await.unwrap();
    let (options, table) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut stream = channel.basic_consume(queue.into(), "".into(), options, table).await.unwrap();
    let mut tags = Vec::new();
    while tags.len() < usize::from(count) {
        tags.push(stream.next().await.unwrap().unwrap().delivery_tag);
    }
    (stream, tags)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_returned_one_by_one_comes_back_in_the_order_in_which_it_was_returned() {
    let Some((_share, connection, channel)) = open().await else { return };
    declare(&channel, "q", quorum(&[("x-delivery-limit", number(1_000_000))])).await.unwrap();
    publish_numbers(&channel, "q", 6).await;
    let taking = connection.create_channel().await.unwrap();
    let (stream, tags) = hold(&taking, "q", 4).await;
    taking.basic_cancel(stream.tag(), BasicCancelOptions::default()).await.unwrap();
    for tag in tags.into_iter().rev() {
        taking.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await.unwrap();
    }
    taking.close(200, "done".into()).await.unwrap();
    assert_eq!(take_all(&connection, "q").await, ["3", "2", "1", "0", "4", "5"]);
}

/// Why callers' headers stand under names of ours: one could write such a header.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_texts_as_x_death_ends_the_queue_of_an_old_broker_when_it_dead_letters_the_message() {
    let Some(rabbit) = tokio::task::spawn_blocking(|| broker("")).await.unwrap() else { return };
    let connection = Connection::connect(&rabbit.uri(), ConnectionProperties::default()).await.unwrap();
    let channel = channel(&connection).await;
    declare(&channel, "dead", quorum(&[])).await.unwrap();
    let letters = [("x-dead-letter-exchange", text("")), ("x-dead-letter-routing-key", text("dead"))];
    declare(&channel, "q", quorum(&letters)).await.unwrap();
    let values = AMQPValue::FieldArray(vec![text("one"), text("two")].into());
    let properties = BasicProperties::default().with_headers(arguments(&[("x-death", values)]));
    publish(&channel, "q", b"x", properties).await.unwrap();
    let taking = connection.create_channel().await.unwrap();
    let (_stream, tags) = hold(&taking, "q", 1).await;
    taking.basic_nack(tags[0], BasicNackOptions { multiple: false, requeue: false }).await.unwrap();
    if version() < (4, 0) {
        eventually("the queue's leader ends", seconds(20), || {
            rabbit.output().contains("%2F_q' terminating").then_some(())
        });
    } else {
        assert_eq!(take_all(&connection, "dead").await, ["x"]);
    }
}
