//! What is written is read back, and what a stranger wrote is read as far as it goes.

use bytes::Bytes;
use http::Method;
use jiff::Timestamp;
use lapin::protocol::basic::parse_properties;
use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable, ShortString};
use proptest::prelude::*;

use super::*;
use crate::core::message::{Carried, Death, Message, MessageId, Origin, ReplyTo};

/// As the client library reads it.
fn written(message: &Message) -> BasicProperties {
    written_in(message, Form::Full)
}

fn written_in(message: &Message, form: Form) -> BasicProperties {
    let bytes = properties(message, Timestamp::UNIX_EPOCH, form).unwrap();
    let (rest, properties) = parse_properties(&bytes[..]).unwrap();
    assert!(rest.is_empty(), "{rest:?}");
    properties
}

fn read(properties: &BasicProperties, body: &[u8]) -> Message {
    let bytes = super::written(properties);
    super::message(&Properties::read(&bytes).unwrap(), body.to_vec(), || MessageId::new("fallback"))
}

fn source(properties: &BasicProperties, exchange: &str, routing_key: &str) -> Carried {
    super::source(&Properties::read(&super::written(properties)).unwrap(), exchange, routing_key)
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn read_back(message: &Message) -> Message {
    read(&written(message), &message.body)
}

fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref().and_then(|table| table.inner().get(name))
}

/// Every type that a header can have, and names that a broker, a connection or we give a meaning to.
fn strangers_table() -> FieldTable {
    let mut nested = FieldTable::default();
    nested.insert("a".into(), AMQPValue::FieldTable(FieldTable::default()));
    let mut array = FieldArray::default();
    array.push(text("1"));
    array.push(AMQPValue::FieldTable(nested.clone()));
    array.push(AMQPValue::LongInt(2));
    let mut table = FieldTable::default();
    for (name, value) in [
        ("Company", text("WSO2")),
        ("not a name", text("x")),
        ("gr\u{fc}n", text("x")),
        ("Connection", text("close")),
        ("bytes", AMQPValue::ByteArray(vec![0, 255].into())),
        ("bad", text("a\r\nb")),
        ("nested", AMQPValue::FieldTable(nested)),
        ("several", AMQPValue::FieldArray(array)),
        ("none", AMQPValue::Void),
        ("decimal", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 })),
        ("retries", AMQPValue::LongInt(-3)),
        ("b", AMQPValue::ShortShortInt(-1)),
        ("bb", AMQPValue::ShortShortUInt(255)),
        ("s", AMQPValue::ShortInt(-2)),
        ("u", AMQPValue::ShortUInt(2)),
        ("i", AMQPValue::LongUInt(4)),
        ("l", AMQPValue::LongLongInt(i64::MIN)),
        ("f", AMQPValue::Float(0.5)),
        ("d", AMQPValue::Double(f64::NAN)),
        ("t", AMQPValue::Boolean(true)),
        ("T", AMQPValue::Timestamp(1_700_000_000)),
        ("late", AMQPValue::Timestamp(u64::MAX)),
    ] {
        table.insert(name.into(), value);
    }
    table
}

fn strangers_properties() -> BasicProperties {
    let mut table = strangers_table();
    for name in ["CC", "BCC", "cc", "x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count"] {
        table.insert(name.into(), text("the broker's"));
    }
    BasicProperties::default()
        .with_headers(table)
        .with_message_id("theirs".into())
        .with_correlation_id("c".into())
        .with_reply_to("their.queue".into())
        .with_type("order.created".into())
        .with_content_type("text/plain\n".into())
        .with_content_encoding("gzip".into())
        .with_user_id("somebody".into())
        .with_expiration("1000".into())
        .with_timestamp(u64::MAX)
        .with_delivery_mode(1)
        .with_priority(9)
        .with_app_id("theirs".into())
}

/// As the forwarder makes it of a delivery.
fn dead(delivered: &BasicProperties, exchange: &str, routing_key: &str) -> Message {
    let message = read(delivered, b"body").again(&source(delivered, exchange, routing_key));
    let death = Death {
        reason: "MaxRedeliveries".into(),
        attempts: 6,
        last_status: None,
        first_at: None,
        last_at: None,
        last_error: None,
        processor: "p".into(),
        source: "q".into(),
    };
    Message { death: Some(death), ..message }
}

#[test]
fn what_a_stranger_wrote_goes_on_under_its_own_names_and_types_and_the_brokers_own_does_not() {
    let delivered = strangers_properties();
    let dead = written(&dead(&delivered, "events", "orders.eu"));
    for (name, value) in strangers_table().inner() {
        let name = name.as_str();
        if name == "d" {
            assert!(matches!(header(&dead, name), Some(AMQPValue::Double(number)) if number.is_nan()));
        } else {
            assert_eq!(header(&dead, name), Some(value), "{name}");
        }
    }
    let names: Vec<&str> = dead.headers().as_ref().unwrap().inner().keys().map(ShortString::as_str).collect();
    assert!(names.iter().all(|name| !is_the_brokers(name)), "{names:?}");
    assert!(names.iter().all(|name| !name.starts_with("http-")), "each stands there once: {names:?}");
    let text_of = |text: &Option<ShortString>| text.as_ref().map(|text| text.as_str().to_owned());
    assert_eq!(text_of(dead.message_id()).as_deref(), Some("theirs"));
    assert_eq!(text_of(dead.correlation_id()).as_deref(), Some("c"));
    assert_eq!(text_of(dead.reply_to()).as_deref(), Some("their.queue"));
    assert_eq!(text_of(dead.kind()).as_deref(), Some("order.created"));
    assert_eq!(text_of(dead.content_type()).as_deref(), Some("text/plain\n"));
    assert_eq!(text_of(dead.content_encoding()).as_deref(), Some("gzip"));
    assert_eq!(text_of(dead.app_id()).as_deref(), Some("stagepost"));
    assert_eq!(*dead.delivery_mode(), Some(2));
    assert_eq!((dead.expiration(), dead.user_id(), dead.priority()), (&None, &None, &None));
    for (name, value) in [
        ("exchange", text("events")),
        ("routing-key", text("orders.eu")),
        ("user-id", text("somebody")),
        ("expiration", text("1000")),
        ("timestamp", AMQPValue::Timestamp(u64::MAX)),
    ] {
        assert_eq!(header(&dead, &format!("{ORIGINAL}{name}")), Some(&value), "{name}");
    }
}

#[test]
fn a_dead_letter_is_read_as_its_original_was_and_keeps_where_that_lay() {
    let delivered = strangers_properties();
    let original = read(&delivered, b"body");
    let first = written(&dead(&delivered, "events", "orders.eu"));
    let again = read(&first, b"body");
    assert_eq!(again.headers, original.headers);
    assert_eq!(again.headers["company"], "WSO2");
    assert_eq!(again.correlation_id, original.correlation_id);
    let second = written(&dead(&first, "", "q.dlc"));
    let same = |name: &str| assert_eq!(header(&second, name), header(&first, name), "{name}");
    for name in ["exchange", "routing-key", "user-id", "expiration", "timestamp"] {
        same(&format!("{ORIGINAL}{name}"));
    }
    for name in strangers_table().inner().keys().filter(|name| name.as_str() != "d") {
        same(name.as_str());
    }
}

#[test]
fn what_a_transform_changed_replaces_what_the_stranger_wrote() {
    let mut table = FieldTable::default();
    for name in ["Company", "gone", "kept"] {
        table.insert(name.into(), text("theirs"));
    }
    let mut message = read(&BasicProperties::default().with_headers(table), b"");
    message.headers.insert("company", HeaderValue::from_static("ours"));
    message.headers.insert("new", HeaderValue::from_static("1"));
    message.headers.remove("gone");
    let properties = written(&message);
    assert_eq!(header(&properties, "Company"), None);
    assert_eq!(header(&properties, "gone"), None);
    assert_eq!(header(&properties, "kept"), Some(&text("theirs")));
    assert_eq!(header(&properties, "http-company"), Some(&text("ours")));
    assert_eq!(read(&properties, b"").headers, message.headers);
}

#[test]
fn a_header_of_ours_beats_a_strangers_of_the_same_name_and_both_go_on() {
    let mut table = FieldTable::default();
    table.insert("http-company".into(), text("ours"));
    table.insert("Company".into(), text("theirs"));
    let delivered = BasicProperties::default().with_headers(table);
    let message = read(&delivered, b"");
    assert_eq!(message.headers.get_all("company").iter().collect::<Vec<_>>(), ["ours"]);
    let properties = written(&message.again(&source(&delivered, "", "q")));
    assert_eq!(header(&properties, "http-company"), Some(&text("ours")));
    assert_eq!(header(&properties, "Company"), Some(&text("theirs")));
}

#[test]
fn a_request_that_somebody_waited_for_does_not_expire_in_a_dead_letter_store() {
    let mut message = Message::new(MessageId::new("1"), "");
    message.origin = Some(Origin { method: Method::POST, path: "/".into(), query: None, route: "a/b/c".into() });
    message.reply_to =
        Some(ReplyTo { queue: "amq.gen-1".into(), deadline: "2126-11-21T08:00:00.250Z".parse().unwrap() });
    let delivered = written(&message);
    assert!(delivered.expiration().is_some());
    let dead = written(&dead(&delivered, "", "q"));
    assert_eq!((dead.expiration(), header(&dead, DEADLINE)), (&None, None));
    assert_eq!(dead.reply_to().as_ref().map(ShortString::as_str), Some("amq.gen-1"));
    assert_eq!(read(&dead, b"").reply_to, None, "nobody waits any more");
}

#[test]
fn the_bare_form_is_body_id_and_why_it_is_dead() {
    let delivered = strangers_properties();
    let bare = written_in(&dead(&delivered, "", "q"), Form::Bare);
    let names = bare.headers().as_ref().unwrap().inner().keys().map(ShortString::as_str);
    assert!(names.clone().all(|name| name.starts_with(DEATH)), "{:?}", names.collect::<Vec<_>>());
    assert_eq!(bare.message_id().as_ref().map(ShortString::as_str), Some("theirs"));
    assert_eq!((bare.reply_to(), bare.kind(), bare.content_type()), (&None, &None, &None));
}

#[test]
fn entries_of_another_kind_of_store_are_left_alone() {
    let mut message = Message::new(MessageId::new("1"), "");
    message.carried.push("other.thing", vec![1, 2, 3]);
    message.carried.push("amqp.apart:damaged", vec![b'S', 0, 0]);
    message.carried.push("amqp.type", Vec::new());
    assert_eq!(written(&message).headers().as_ref().unwrap().inner().len(), 0);
    assert_eq!(read_back(&message).carried, Carried::default());
}

#[test]
fn a_name_that_is_carried_twice_stands_there_once() {
    let mut message = Message::new(MessageId::new("1"), "");
    let value = |text: &str| [&b"S\0\0\0\x01"[..], text.as_bytes()].concat();
    for kind in ["amqp.apart:a", "amqp.header:b", "amqp.original:c"] {
        message.carried.push(kind, value("1"));
        message.carried.push(kind, value("2"));
    }
    message.headers.append("b", HeaderValue::from_static("2"));
    let bytes = properties(&message, Timestamp::UNIX_EPOCH, Form::Full).unwrap();
    let count = |name: &[u8]| bytes.windows(name.len()).filter(|window| *window == name).count();
    assert_eq!([count(b"\x01aS"), count(b"\x01bS"), count(b"original-cS")], [1; 3]);
    let table = written(&message).headers().clone().unwrap();
    assert!(table.inner().values().all(|value| *value == text("2")), "the last one counts: {table:?}");
}

#[test]
fn everything_a_request_was_comes_back() {
    let mut message = Message::new(MessageId::new("0190-1"), &b"\x00\xff body"[..]);
    message.timestamp = Some("2026-11-21T08:00:00Z".parse().unwrap());
    message.content_type = Some(HeaderValue::from_static("application/pdf"));
    message.content_encoding = Some(HeaderValue::from_static("gzip"));
    message.origin = Some(Origin {
        method: Method::PUT,
        path: "/a/%20b".into(),
        query: Some("x=1&y".into()),
        route: "shop/orders/place".into(),
    });
    message.headers.append("x-a", HeaderValue::from_static("1"));
    message.headers.append("x-a", HeaderValue::from_bytes(b"\xe4\xf6; = ,").unwrap());
    message.headers.append("x-death", HeaderValue::from_static("mine"));
    message.death = Some(Death {
        reason: "MaxRedeliveries".into(),
        attempts: 6,
        last_status: Some(500),
        first_at: Some("2026-11-21T08:00:00.5Z".parse().unwrap()),
        last_at: None,
        last_error: Some("status 500".into()),
        processor: "shop/settle".into(),
        source: "orders".into(),
    });
    assert_eq!(read_back(&message), message);
}

#[test]
fn no_caller_writes_a_header_that_means_something_to_the_broker() {
    let mut message = Message::new(MessageId::new("1"), "");
    for name in ["x-death", "cc", "bcc", "x-delay", "x-stagepost-path"] {
        message.headers.append(name, HeaderValue::from_static("evil"));
    }
    let properties = written(&message);
    for name in properties.headers().as_ref().unwrap().inner().keys() {
        assert!(name.as_str().starts_with("http-"), "{name}");
    }
}

#[test]
fn a_strangers_headers_become_http_headers_where_they_can() {
    let mut table = FieldTable::default();
    table.insert("Company".into(), text("WSO2"));
    table.insert("retries".into(), AMQPValue::LongInt(3));
    table.insert("not a name".into(), text("x"));
    table.insert("Connection".into(), text("close"));
    table.insert("x-death".into(), text("x"));
    table.insert("bad".into(), text("a\r\nb"));
    table.insert("nested".into(), AMQPValue::FieldTable(FieldTable::default()));
    let message = read(&BasicProperties::default().with_headers(table), &[1]);
    assert_eq!(message.id.as_str(), "fallback");
    assert_eq!(message.headers.len(), 2);
    assert_eq!(message.headers["company"], "WSO2");
    assert_eq!(message.headers["retries"], "3");
    assert_eq!(message.origin, None);
}

#[test]
fn what_does_not_fit_a_frame_is_refused_before_it_is_sent() {
    let mut message = Message::new(MessageId::new("1"), "");
    message.headers.append("x-a", HeaderValue::from_str(&"v".repeat(MAX_HEADER_BYTES)).unwrap());
    assert!(matches!(properties(&message, Timestamp::UNIX_EPOCH, Form::Full), Err(WireError::Headers(_))));
    let long_id = Message::new(MessageId::new("i".repeat(256)), "");
    assert!(matches!(properties(&long_id, Timestamp::UNIX_EPOCH, Form::Full), Err(WireError::TooLong { .. })));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), flags in any::<u16>()) {
        for bytes in [bytes.clone(), [&flags.to_be_bytes()[..], &bytes].concat()] {
            if let Some(properties) = Properties::read(&bytes) {
                super::message(&properties, Vec::new(), || MessageId::new("fallback"));
                super::source(&properties, "", "");
                super::returned(&properties);
            }
        }
    }

    #[test]
    fn any_headers_and_body_come_back(
        pairs in proptest::collection::vec(("[a-z][a-z0-9-]{0,20}", proptest::collection::vec(32u8..=255, 0..40)), 0..20),
        body in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut message = Message::new(MessageId::new("1"), Bytes::from(body));
        for (name, value) in pairs {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            if is_not_end_to_end(&name) { continue; }
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                message.headers.append(name, value);
            }
        }
        prop_assert_eq!(read_back(&message), message);
    }
}
