//! The examples of `docs/patterns.md`, command by command as their READMEs show them, and what the reader is told to
//! expect.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::curl::{Curl, shell_lines, unlooped};
use crate::support::http::{Answer, once};
use crate::support::{Setup, Stagepost, eventually, millis, seconds};

/// A reader of a README who has started its example and goes through its commands.
struct Reader {
    run: Stagepost,
    sink: SocketAddr,
    readme: String,
    commands: VecDeque<String>,
}

/// What the sink recorded.
#[derive(Debug, Clone)]
struct Hit {
    at: jiff::Timestamp,
    path: String,
    text: String,
    status: u64,
    headers: BTreeMap<String, Vec<String>>,
}

impl Hit {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.first().map(String::as_str)
    }
}

impl Reader {
    fn start(example: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(example);
        let readme = std::fs::read_to_string(folder.join("README.md")).unwrap();
        // What begins with kubectl is for a cluster, to the end.
        let local = shell_lines(&readme).into_iter().take_while(|line| !line.starts_with("kubectl "));
        let mut commands: VecDeque<String> = local.collect();
        let first = commands.pop_front().unwrap_or_default();
        assert!(first.starts_with(&format!("stagepost run examples/{example} --sink 127.0.0.1:")), "{first}");
        let run = Setup::folder(&folder).arg("--sink").arg("127.0.0.1:0").start();
        let line = run.await_log(&["the sink listens on http://"], seconds(5));
        let address = line.split("http://").nth(1).and_then(|rest| rest.split_whitespace().next());
        let sink = address.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{line}"));
        Self { run, sink, readme, commands }
    }

    fn next(&mut self, start: &str) -> String {
        let line = self.commands.pop_front().unwrap_or_default();
        assert!(line.starts_with(start), "`{start}…` was expected, not `{line}`");
        line
    }

    /// The next command: one `curl` line to the route, or a loop of them.
    fn posts(&mut self) -> Vec<Answer> {
        let line = self.commands.pop_front().unwrap_or_default();
        let unlooped = unlooped(&line);
        let send = |line: &String| {
            let curl = Curl::read(line, Path::new(env!("CARGO_MANIFEST_DIR")));
            assert_eq!(curl.host, "127.0.0.1:8080", "{line}");
            curl.send(self.run.listen())
        };
        unlooped.iter().map(send).collect()
    }

    /// The same, each answered so.
    fn posts_are_answered(&mut self, status: u16) -> Vec<Answer> {
        let answers = self.posts();
        for answer in &answers {
            assert_eq!(answer.status, status, "{}", answer.text());
        }
        answers
    }

    /// The next command: a new script for the sink.
    fn script(&mut self) {
        let line = self.next("curl -X PUT http://127.0.0.1:9095/__script ");
        let answer = Curl::read(&line, Path::new(".")).send(self.sink);
        assert!(answer.status < 300, "{line}: {}", answer.text());
    }

    /// What the README leaves to the reader.
    fn script_is(&self, script: &str) {
        let answer = once(self.sink, "PUT", "/__script", &[], script.as_bytes()).unwrap();
        assert!(answer.status < 300, "{}", answer.text());
    }

    /// The next command, again and again until the sink has so many hits; then no more may come.
    fn hits(&mut self, count: usize, within: Duration) -> Vec<Hit> {
        let line = self.next("curl -s http://127.0.0.1:9095/__hits");
        eventually(&format!("the sink has {count} hits"), within, || {
            (self.hits_now(&line).len() >= count).then_some(())
        });
        std::thread::sleep(millis(300));
        let hits = self.hits_now(&line);
        assert_eq!(hits.len(), count, "{hits:#?}");
        hits
    }

    fn hits_now(&self, line: &str) -> Vec<Hit> {
        let hit = |hit: &Value| Hit {
            at: hit["time"].as_str().unwrap().parse().unwrap(),
            path: hit["path"].as_str().unwrap().to_owned(),
            text: hit["body"]["text"].as_str().unwrap_or_default().to_owned(),
            status: hit["status"].as_u64().unwrap(),
            headers: serde_json::from_value(hit["headers"].clone()).unwrap(),
        };
        Curl::read(line, Path::new(".")).send(self.sink).json().as_array().unwrap().iter().map(hit).collect()
    }

    /// The next command, `stagepost status`: its cells, by the first and by the heading of the column.
    fn status(&mut self) -> BTreeMap<(String, String), String> {
        let line = self.next("stagepost status");
        let done = self.run.command(&line.split(' ').skip(1).collect::<Vec<_>>());
        assert_eq!(done.code, 0, "{}", done.stderr);
        let (mut cells, mut heads) = (BTreeMap::new(), Vec::new());
        for line in done.stdout.lines() {
            let row: Vec<&str> = line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
            if row.first() == Some(&"NAME") {
                heads.clone_from(&row);
            } else if let Some(name) = row.first() {
                let column =
                    |(head, cell): (&&str, &&str)| (((*name).to_owned(), (*head).to_owned()), (*cell).to_owned());
                cells.extend(heads.iter().zip(&row).map(column));
            }
        }
        cells
    }

    /// The next command, `stagepost status NAME -o json`: the status of that object, when it is as told.
    fn status_of(&mut self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let line = self.next(&format!("stagepost status {name} -o json"));
        eventually(&format!("{line} shows what it should"), seconds(10), || {
            let done = self.run.command(&line.split(' ').skip(1).collect::<Vec<_>>());
            let all: Value = serde_json::from_str(&done.stdout).unwrap();
            let status = all["items"][0]["status"].clone();
            wanted(&status).then_some(status)
        })
    }

    /// The reader edits the manifest as the README says, which shows the new text.
    fn edits(&self, from: &str, to: &str) {
        assert!(self.readme.contains(to), "the README does not say `{to}`");
        self.run.edit("stagepost.yaml", from, to);
    }

    /// Nothing is left to do.
    fn ends(self) {
        assert!(self.commands.is_empty(), "{:?}", self.commands);
    }
}

fn texts(hits: &[Hit], path: &str) -> Vec<String> {
    hits.iter().filter(|hit| hit.path == path).map(|hit| hit.text.clone()).collect()
}

fn milliseconds_between(one: &Hit, other: &Hit) -> i64 {
    other.at.as_millisecond() - one.at.as_millisecond()
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().find(|one| one["type"] == kind).unwrap_or(&Value::Null)
}

#[test]
fn pub_sub() {
    let mut reader = Reader::start("pub-sub");
    reader.posts_are_answered(202);
    reader.posts_are_answered(202);
    let hits = reader.hits(3, seconds(10));
    assert_eq!(texts(&hits, "/archive"), ["order 1 is created", "order 1 is cancelled"]);
    assert_eq!(texts(&hits, "/invoices"), ["order 1 is created"]);
    let ids: BTreeSet<_> = hits
        .iter()
        .filter(|hit| hit.text == "order 1 is created")
        .map(|hit| hit.header("stagepost-message-id").unwrap())
        .collect();
    assert_eq!(ids.len(), 1, "both copies have one id");
    let refused = reader.posts_are_answered(503).remove(0);
    assert!(refused.text().contains("no queue takes it"), "{}", refused.text());
    reader.edits(r#"bindings: ["orders.*.*"]"#, r#"bindings: ["orders.#"]"#);
    let run = &reader.run;
    eventually("the archive takes any number of words", seconds(15), || {
        (run.post("/orders/eu/created/late", &[], "order 2").status == 202).then_some(())
    });
    reader.ends();
}

#[test]
fn request_reply() {
    let mut reader = Reader::start("request-reply");
    reader.script();
    let answer = reader.posts_are_answered(200).remove(0);
    assert_eq!(answer.text(), r#"{"price": 42}"#);
    reader.script();
    let begun = std::time::Instant::now();
    reader.posts_are_answered(422);
    assert!(begun.elapsed() < seconds(3), "{:?}", begun.elapsed());
    let run = &reader.run;
    let json = [("Content-Type", "application/json")];
    reader.script_is("[500]");
    assert_eq!(run.post("/quotes", &json, "{}").status, 500);
    reader.ends();
}

#[test]
fn competing_consumers() {
    let mut reader = Reader::start("competing-consumers");
    assert_eq!(reader.posts_are_answered(202).len(), 8);
    let hits = reader.hits(8, seconds(10));
    let jobs: BTreeSet<String> = hits.iter().map(|hit| hit.text.clone()).collect();
    assert_eq!(jobs.len(), 8, "each once");
    let halls: BTreeSet<&str> = hits.iter().map(|hit| hit.path.as_str()).collect();
    assert_eq!(halls, BTreeSet::from(["/hall-a", "/hall-b"]));
    let cells = reader.status();
    let delivered = |hall: &str| {
        let cell = &cells[&(format!("print-in-hall-{hall}"), "DELIVERED".to_owned())];
        cell.parse::<u32>().unwrap()
    };
    assert_eq!(delivered("a") + delivered("b"), 8);
    reader.ends();
}

#[test]
fn serial_parallel() {
    let mut reader = Reader::start("serial-parallel");
    reader.script();
    assert_eq!(reader.posts_are_answered(202).len(), 5);
    let hits = reader.hits(10, seconds(20));
    let of = |path: &str| hits.iter().filter(|hit| hit.path == path).cloned().collect::<Vec<_>>();
    let (ledger, mails) = (of("/ledger"), of("/mails"));
    let bookings: Vec<String> = (1..6).map(|number| format!("booking {number}")).collect();
    assert_eq!(ledger.iter().map(|hit| hit.text.clone()).collect::<Vec<_>>(), bookings);
    for pair in ledger.windows(2) {
        assert!(milliseconds_between(&pair[0], &pair[1]) >= 950, "{pair:?}");
    }
    assert_eq!(mails.iter().map(|hit| hit.text.clone()).collect::<BTreeSet<_>>(), bookings.into_iter().collect());
    // One after the other they would take more than four.
    assert!(milliseconds_between(&mails[0], &mails[4]) < 3000, "{mails:?}");
    reader.ends();
}

#[test]
fn content_router() {
    let mut reader = Reader::start("content-router");
    for _ in 0..4 {
        reader.posts_are_answered(202);
    }
    let hits = reader.hits(5, seconds(10));
    let ids = |path: &str| {
        let numbers = texts(&hits, path).into_iter().map(|text| serde_json::from_str::<Value>(&text).unwrap());
        numbers.map(|order| order["id"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!((ids("/express"), ids("/ordinary"), ids("/review")), (vec![1, 2], vec![3, 4], vec![4]));
    let customs: Vec<_> = hits.iter().filter_map(|hit| hit.header("x-customs")).collect();
    assert_eq!(customs, ["FR"]);
    assert_eq!(reader.status()[&("pick-large".to_owned(), "DELIVERED".to_owned())], "1");
    reader.status_of("pick-large", |status| status["filtered"] == 1);
    let run = &reader.run;
    assert_eq!(run.post("/orders", &[], "no JSON").status, 202);
    run.await_status("ForwardingProcessor", "ship", seconds(5), |status| status["delivered"] == 3);
    reader.ends();
}

#[test]
fn responses() {
    let mut reader = Reader::start("responses");
    reader.script();
    let id = reader.posts_are_answered(202)[0].header("stagepost-message-id").unwrap();
    let hits = reader.hits(2, seconds(10));
    assert_eq!(texts(&hits, "/supplier"), [r#"{"part": "blue-1"}"#]);
    assert_eq!(texts(&hits, "/mail"), [r#"{"price": 42}"#]);
    let mail = hits.iter().find(|hit| hit.path == "/mail").unwrap();
    assert_eq!(mail.header("stagepost-correlation-id"), Some(id.as_str()));
    reader.ends();
}

#[test]
fn failover_and_drain() {
    let mut reader = Reader::start("failover-and-drain");
    reader.posts_are_answered(202);
    let run = &reader.run;
    run.await_status("ForwardingProcessor", "deliver-orders", seconds(10), |status| status["delivered"] == 1);
    reader.edits("suspend: false", "suspend: true");
    reader.run.await_state("deliver-orders", "Suspended", seconds(10));
    assert_eq!(reader.posts_are_answered(202).len(), 8);
    let run = &reader.run;
    let full = run.await_status("ForwardingProcessor", "drain-failover", seconds(10), |status| {
        condition(status, "TargetReachable")["status"] == "False"
    });
    assert!(condition(&full, "TargetReachable")["message"].as_str().unwrap().contains("full"), "{full:#}");
    let cells = reader.status();
    let number = |name: &str, column: &str| cells[&(name.to_owned(), column.to_owned())].parse::<u32>().unwrap();
    let (first, second) = (number("orders", "MESSAGES"), number("drain-failover", "BACKLOG"));
    assert!((3..=5).contains(&first), "{cells:#?}");
    assert_eq!(first + second, 8, "{cells:#?}");
    reader.edits("suspend: true", "suspend: false");
    let hits = reader.hits(9, seconds(30));
    let orders: Vec<String> = hits.iter().map(|hit| hit.text.clone()).collect();
    let inside = usize::try_from(first).unwrap();
    let in_order: Vec<String> = (0..=inside).map(|number| format!("order {number}")).collect();
    assert_eq!(orders[..=inside], in_order);
    assert_eq!(orders.into_iter().collect::<BTreeSet<_>>(), (0..9).map(|number| format!("order {number}")).collect());
    reader.ends();
}

#[test]
fn throttled_legacy_backend() {
    let mut reader = Reader::start("throttled-legacy-backend");
    assert_eq!(reader.posts_are_answered(202).len(), 10);
    let cells = reader.status();
    let waiting = &cells[&("book-on-mainframe".to_owned(), "BACKLOG".to_owned())];
    assert!(waiting.parse::<u32>().unwrap() > 0, "{cells:#?}");
    let hits = reader.hits(10, seconds(15));
    assert!(milliseconds_between(&hits[0], &hits[9]) >= 1700, "ten at five a second: {hits:?}");

    reader.script();
    reader.posts_are_answered(202);
    let run = &reader.run;
    let delivered = |count: u64| {
        run.await_status("ForwardingProcessor", "book-on-mainframe", seconds(30), |status| {
            status["delivered"].as_u64() >= Some(count)
        });
    };
    delivered(13);
    let hits = reader.hits_now("curl http://sink/__hits");
    assert_eq!(hits[10].status, 503);
    assert!(milliseconds_between(&hits[10], &hits[11]) >= 2900, "rest: {hits:?}");
    assert_eq!(hits[11..].iter().map(|hit| hit.status).collect::<Vec<_>>(), [200, 200, 200]);

    reader.script();
    reader.posts_are_answered(202);
    reader.status_of("book-on-mainframe", |status| condition(status, "Delivering")["reason"] == "BreakerOpen");
    let failures = reader.hits_now("curl http://sink/__hits").len() - 14;
    assert!(failures >= 4, "{failures}");
    reader.script();
    let run = &reader.run;
    run.await_status("ForwardingProcessor", "book-on-mainframe", seconds(60), |status| status["delivered"] == 20);
    let failed = run.processor("book-on-mainframe")["failedAttempts"].as_u64().unwrap();
    assert!(failed <= 8, "four, and one call every five seconds: {failed}");
    reader.ends();
}

#[test]
fn nightly_batch() {
    let mut reader = Reader::start("nightly-batch");
    reader.posts_are_answered(202);
    let cells = reader.status();
    assert_eq!(cells[&("run-payroll".to_owned(), "BACKLOG".to_owned())], "4");
    let status = reader.status_of("run-payroll", |status| status["nextTick"].is_string());
    let tick: jiff::Timestamp = status["nextTick"].as_str().unwrap().parse().unwrap();
    let rome = tick.in_tz("Europe/Rome").unwrap();
    assert_eq!((rome.hour(), rome.minute(), rome.second()), (2, 0, 0));
    reader.edits(r#"cron: "0 0 2 * * ?""#, r#"cron: "0/10 * * * * ?""#);
    let hits = reader.hits(4, seconds(25));
    assert_eq!(texts(&hits, "/timesheets"), ["sheet 1", "sheet 2", "sheet 3", "sheet 4"]);
    for pair in hits.windows(2) {
        assert!(milliseconds_between(&pair[0], &pair[1]) >= 490, "{pair:?}");
    }
    reader.ends();
}
