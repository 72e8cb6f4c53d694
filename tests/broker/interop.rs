//! Other clients: what they publish is delivered, and what we store they can read, as `docs/wire-format.md` says. The
//! programs in Python are those of that page.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

use super::common::{connected, line, shared, start};
use crate::support::http::once;
use crate::support::{Hit, Recorder, Reply, Setup, manifest, seconds};

const QUEUE: &str = "default.box";
const DEAD: &str = "default.box.dlc";
/// Every byte there is.
const BODY: [u8; 256] = {
    let mut body = [0; 256];
    let mut n = 0;
    while n < 256 {
        body[n] = n.to_le_bytes()[0];
        n += 1;
    }
    body
};

/// A client that knows nothing of us.
struct Client {
    runtime: tokio::runtime::Runtime,
    connection: Connection,
    channel: Channel,
}

impl Client {
    fn connect(uri: &str) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (connection, channel) = runtime.block_on(async {
            let connection = Connection::connect(uri, ConnectionProperties::default()).await.unwrap();
            let channel = connection.create_channel().await.unwrap();
            channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
            (connection, channel)
        });
        Self { runtime, connection, channel }
    }

    fn publish(&self, properties: BasicProperties, body: &[u8]) {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let stored = self.runtime.block_on(async {
            let publish = self.channel.basic_publish(ShortString::default(), QUEUE.into(), options, body, properties);
            publish.await.unwrap().await.unwrap()
        });
        assert!(matches!(stored, Confirmation::Ack(None)), "{stored:?}");
    }

    /// Takes one message out of a queue.
    fn take(&self, queue: &str) -> Delivery {
        self.runtime.block_on(async {
            let channel = self.connection.create_channel().await.unwrap();
            let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
            let consumer = channel.basic_consume(queue.into(), "reader".into(), options, arguments).await.unwrap();
            let mut consumer = Box::pin(consumer);
            let delivery = tokio::time::timeout(seconds(30), consumer.next()).await.expect("a message");
            let delivery = delivery.unwrap().unwrap();
            delivery.acker.ack(lapin::options::BasicAckOptions::default()).await.unwrap();
            channel.close(200, "read".into()).await.unwrap();
            delivery
        })
    }
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.as_bytes().to_vec().into())
}

fn array(values: &[AMQPValue]) -> AMQPValue {
    let mut array = FieldArray::default();
    for value in values {
        array.push(value.clone());
    }
    AMQPValue::FieldArray(array)
}

fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

/// Headers of another client's own, and the values that the target gets of each.
fn foreign() -> Vec<(&'static str, AMQPValue, Vec<&'static [u8]>)> {
    vec![
        ("Company", text("WSO2"), vec![b"WSO2"]),
        ("latin", AMQPValue::LongString(b"gr\xfcn".to_vec().into()), vec![b"gr\xfcn"]),
        ("bytes", AMQPValue::ByteArray(b"raw".to_vec().into()), vec![b"raw"]),
        ("count", AMQPValue::LongInt(-3), vec![b"-3"]),
        ("large", AMQPValue::LongLongInt(i64::MAX), vec![b"9223372036854775807"]),
        ("half", AMQPValue::Double(0.5), vec![b"0.5"]),
        ("yes", AMQPValue::Boolean(true), vec![b"true"]),
        ("when", AMQPValue::Timestamp(1_700_000_000), vec![b"2023-11-14T22:13:20Z"]),
        ("several", array(&[text("1"), text("2"), AMQPValue::Boolean(false)]), vec![b"1", b"2", b"false"]),
        ("http-x-forced", text("a"), vec![]),
        ("not a name", text("x"), vec![]),
        ("split", text("a\r\nX-Evil: 1"), vec![]),
        ("nested", AMQPValue::FieldTable(table(&[("a", text("b"))])), vec![]),
        ("nothing", AMQPValue::Void, vec![]),
        ("price", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 }), vec![]),
        ("Connection", text("close, x-named"), vec![]),
        ("Content-Length", text("1"), vec![]),
        ("Stagepost-Attempt", text("7"), vec![]),
    ]
}

/// Names that the broker or we give a meaning to: they reach neither the target nor a dead letter.
const TAKEN: [&str; 6] =
    ["CC", "BCC", "x-first-death-queue", "x-last-death-reason", "x-stagepost-path", "x-stagepost-mine"];

fn properties() -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value, _) in foreign() {
        headers.insert(name.into(), value);
    }
    for name in TAKEN {
        let value = if name == "CC" || name == "BCC" { array(&[]) } else { text("theirs") };
        headers.insert(name.into(), value);
    }
    BasicProperties::default()
        .with_message_id("order-4711".into())
        .with_correlation_id("conversation-1".into())
        .with_content_type("application/x-thing; v=1".into())
        .with_content_encoding("gzip".into())
        .with_type("order.created".into())
        .with_reply_to("their.answers".into())
        .with_user_id("guest".into())
        .with_app_id("theirs".into())
        .with_expiration("600000".into())
        .with_timestamp(1_700_000_000)
        .with_priority(3)
        .with_delivery_mode(2)
        .with_headers(headers)
}

fn assert_delivered(hit: &Hit) {
    assert_eq!(hit.body, BODY);
    assert_eq!((hit.method.as_str(), hit.path.as_str()), ("POST", "/"));
    for (name, _, values) in foreign() {
        if name != "Content-Length" && name != "Stagepost-Attempt" {
            assert_eq!(hit.all(name), values, "{name}");
        }
    }
    for name in TAKEN {
        assert_eq!(hit.header(name), None, "{name}");
    }
    assert_eq!(hit.header("x-evil"), None);
    for (name, value) in [
        ("x-forced", "a"),
        ("content-type", "application/x-thing; v=1"),
        ("content-encoding", "gzip"),
        ("content-length", "256"),
        ("stagepost-message-id", "order-4711"),
        ("stagepost-correlation-id", "conversation-1"),
        ("stagepost-attempt", "1"),
        ("idempotency-key", "order-4711"),
    ] {
        assert_eq!(hit.header(name).as_deref(), Some(value), "{name}");
    }
}

fn word(property: Option<&ShortString>) -> Option<&str> {
    property.map(ShortString::as_str)
}

#[test]
fn what_another_client_publishes_is_delivered_and_its_dead_letter_is_what_it_published() {
    let Some(share) = shared() else { return };
    let target = Recorder::answering(|_| Reply::status(422));
    let run = start(&share.uri, &line(&target, "", ""));
    let client = Client::connect(&share.uri);
    client.publish(properties(), &BODY);
    assert_delivered(&target.await_hits(1, seconds(30))[0]);
    run.await_status("ForwardingProcessor", "out", seconds(30), |status| status["deadLettered"] == 1);

    let dead = client.take(DEAD);
    assert_eq!(dead.data, BODY);
    let found = &dead.properties;
    for (property, value) in [
        (found.message_id(), Some("order-4711")),
        (found.correlation_id(), Some("conversation-1")),
        (found.content_type(), Some("application/x-thing; v=1")),
        (found.content_encoding(), Some("gzip")),
        (found.kind(), Some("order.created")),
        (found.reply_to(), Some("their.answers")),
        (found.app_id(), Some("stagepost")),
        (found.user_id(), None),
        (found.expiration(), None),
    ] {
        assert_eq!(word(property.as_ref()), value);
    }
    assert_eq!((found.delivery_mode(), found.priority(), found.timestamp()), (&Some(2), &None, &Some(1_700_000_000)));
    let mut headers: BTreeMap<String, AMQPValue> = BTreeMap::new();
    for (name, value) in found.headers().as_ref().unwrap().inner() {
        headers.insert(name.as_str().to_owned(), value.clone());
    }
    for (name, value, _) in foreign() {
        assert_eq!(headers.remove(name), Some(value), "{name}");
    }
    for name in ["first-at", "last-at", "last-error"] {
        let value = headers.remove(&format!("x-stagepost-death-{name}"));
        assert!(matches!(value, Some(AMQPValue::LongString(_))), "{name}: {value:?}");
    }
    let expected = [
        ("x-stagepost-death-reason", text("Rejected")),
        ("x-stagepost-death-attempts", AMQPValue::LongLongInt(1)),
        ("x-stagepost-death-last-status", AMQPValue::LongLongInt(422)),
        ("x-stagepost-death-processor", text("default/out")),
        ("x-stagepost-death-source", text(QUEUE)),
        ("x-stagepost-original-exchange", text("")),
        ("x-stagepost-original-routing-key", text(QUEUE)),
        ("x-stagepost-original-timestamp", AMQPValue::Timestamp(1_700_000_000)),
        ("x-stagepost-original-user-id", text("guest")),
        ("x-stagepost-original-expiration", text("600000")),
    ];
    for (name, value) in expected {
        assert_eq!(headers.remove(name), Some(value), "{name}");
    }
    assert!(headers.is_empty(), "nothing else: {headers:?}");
}

#[test]
fn a_message_with_nothing_but_a_body_is_delivered_and_one_with_a_path_goes_there() {
    let Some(share) = shared() else { return };
    let target = Recorder::start();
    let yaml = [
        manifest::store("box", ""),
        manifest::object(
            "ForwardingProcessor",
            "out",
            &format!(
                "storeRef: {{name: box}}\ntarget: {{url: \"{}\", method: Preserve, appendPath: true}}",
                target.url()
            ),
        ),
    ];
    let _run = start(&share.uri, &yaml.concat());
    let client = Client::connect(&share.uri);
    client.publish(BasicProperties::default(), b"");
    client.publish(
        BasicProperties::default().with_message_id("2".into()).with_headers(table(&[
            ("x-stagepost-method", text("PUT")),
            ("x-stagepost-path", text("/orders/%20x")),
            ("x-stagepost-query", text("a=1")),
            ("x-stagepost-route", text("theirs")),
            ("http-x-sent", text("yes")),
            ("x-not-sent", text("no")),
        ])),
        b"two",
    );
    let hits = target.await_hits(2, seconds(30));
    assert_eq!((hits[0].method.as_str(), &hits[0].body[..]), ("POST", &b""[..]));
    let id = hits[0].header("stagepost-message-id").unwrap();
    assert_eq!(hits[0].header("idempotency-key"), Some(id.clone()));
    assert_eq!(id.len(), 36, "one of ours: {id}");
    assert_eq!((hits[1].method.as_str(), &hits[1].body[..]), ("PUT", &b"two"[..]));
    assert!(hits[1].path.ends_with("/orders/%20x?a=1"), "{}", hits[1].path);
    assert_eq!(hits[1].header("x-sent").as_deref(), Some("yes"));
    assert_eq!(hits[1].header("x-not-sent"), None);
}

#[test]
fn what_we_store_is_read_as_documented() {
    let Some(share) = shared() else { return };
    let run = Setup::manifests([manifest::store("box", ""), manifest::route("in", "/in", "box")].concat());
    let run = run.arg("--amqp").arg(&share.uri).start();
    connected(&run, "box");
    let headers: [(&str, &[u8]); 10] = [
        ("Content-Type", b"application/pdf"),
        ("Content-Encoding", b"gzip"),
        ("X-One", b"1"),
        ("X-Two", b"a"),
        ("X-Two", b"gr\xfcn"),
        ("X-Death", b"mine"),
        ("CC", b"elsewhere"),
        ("X-Stagepost-Path", b"/evil"),
        ("Idempotency-Key", b"key"),
        ("Authorization", b"secret"),
    ];
    let answer = once(run.listen(), "POST", "/in?a=%201&b", &headers, &BODY).unwrap();
    assert_eq!(answer.status, 202);
    let id = answer.header("stagepost-message-id").unwrap().clone();
    let read = Client::connect(&share.uri).take(QUEUE);
    assert_eq!(read.data, BODY);
    let found = &read.properties;
    for (property, value) in [
        (found.message_id(), Some(id.as_str())),
        (found.correlation_id(), Some(id.as_str())),
        (found.content_type(), Some("application/pdf")),
        (found.content_encoding(), Some("gzip")),
        (found.app_id(), Some("stagepost")),
        (found.reply_to(), None),
        (found.expiration(), None),
        (found.user_id(), None),
    ] {
        assert_eq!(word(property.as_ref()), value);
    }
    assert_eq!(found.delivery_mode(), &Some(2));
    assert!(found.timestamp().is_some_and(|at| at > 1_700_000_000));
    let mut expected = table(&[
        ("http-x-one", text("1")),
        ("http-x-two", array(&[text("a"), AMQPValue::LongString(b"gr\xfcn".to_vec().into())])),
        ("http-x-death", text("mine")),
        ("http-cc", text("elsewhere")),
        ("http-idempotency-key", text("key")),
        ("x-stagepost-method", text("POST")),
        ("x-stagepost-path", text("/in")),
        ("x-stagepost-query", text("a=%201&b")),
        ("x-stagepost-route", text("default/in/post")),
    ]);
    let found = found.headers().clone().unwrap();
    // Whatever else our HTTP client sends.
    for (name, value) in found.inner().iter().filter(|(name, _)| name.as_str() == "http-user-agent") {
        expected.insert(name.clone(), value.clone());
    }
    assert_eq!(found, expected);
}

/// Python with pika, in a folder of its own; `None`, and said so, where that can't be had.
fn python() -> Option<&'static PathBuf> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = PYTHON.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("pika");
        let python = folder.join("bin/python");
        let works = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let imports = || works(Command::new(&python).args(["-c", "import pika"]));
        let installed = imports()
            || works(Command::new("python3").args(["-m", "venv"]).arg(&folder))
                && works(Command::new(&python).args(["-m", "pip", "install", "--quiet", "pika<2"]))
                && imports();
        installed.then_some(python)
    });
    if found.is_none() {
        let why = "`python3 -m venv` and `pip install pika` do not work here";
        let _ = writeln!(std::io::stderr(), "left out: a client in Python; {why}");
    }
    found.as_ref()
}

/// Runs a program of the documentation, named in its first line.
fn documented(python: &PathBuf, name: &str, arguments: [&str; 2]) -> String {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/wire-format.md")).unwrap();
    let program = page
        .split("```python\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .find(|program| program.starts_with(&format!("# {name}")))
        .expect("the page has it");
    let Output { status, stdout, stderr } =
        Command::new(python).args(["-c", program]).args(arguments).output().unwrap();
    assert!(status.success(), "{name}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

#[test]
fn the_programs_in_python_of_the_documentation_do_what_it_says() {
    let Some(share) = shared() else { return };
    let Some(python) = python() else { return };
    let target = Recorder::answering(|_| Reply::status(422));
    let run = start(&share.uri, &line(&target, "", ""));
    let printed = documented(python, "publish.py", [&share.uri, QUEUE]);
    let id = printed.trim().strip_prefix("stored ").unwrap();
    let hit = &target.await_hits(1, seconds(30))[0];
    assert_eq!(hit.text(), r#"{"sku": "blue-1", "count": 2}"#);
    assert_eq!(hit.header("stagepost-message-id").as_deref(), Some(id));
    assert_eq!(hit.header("content-type").as_deref(), Some("application/json"));
    assert_eq!((hit.all("x-customer"), hit.all("x-retries")), (vec![b"4711".to_vec()], vec![b"3".to_vec()]));
    assert_eq!(hit.all("x-tags"), [b"new", &b"eu"[..]]);
    // And one of ours beside it.
    let ours = run.post("/in?q=1", &[("X-Two", "a"), ("X-Two", "b"), ("Content-Type", "text/plain")], "hello");
    assert_eq!(ours.status, 202);
    run.await_status("ForwardingProcessor", "out", seconds(30), |status| status["deadLettered"] == 2);
    // But for what the broker itself counts.
    let read = || {
        let printed = documented(python, "read.py", [&share.uri, DEAD]);
        let lines = printed.lines().filter(|line| !line.starts_with("  x-delivery-count"));
        lines.filter(|line| !line.starts_with("  x-acquired-count")).collect::<Vec<_>>().join("\n")
    };
    let printed = read();
    for line in [
        &format!("message {id} application/json b'{{\"sku\": \"blue-1\", \"count\": 2}}'"),
        "  x-customer = 4711",
        "  x-retries = 3",
        "  x-tags = ['new', 'eu']",
        "  x-stagepost-death-reason = Rejected",
        "  x-stagepost-death-last-status = 422",
        "  x-stagepost-original-routing-key = default.box",
        &format!("message {} text/plain b'hello'", ours.header("stagepost-message-id").unwrap()),
        "  http-x-two = ['a', 'b']",
        "  x-stagepost-query = q=1",
    ] {
        assert!(printed.lines().any(|printed| printed == line), "`{line}` is not in\n{printed}");
    }
    assert_eq!(read(), printed, "it left everything where it was");
}
