//! `stagepost render`: what it shows is what a run does, and what it can't show it explains.

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Recorder, Setup, manifest, process, seconds};

/// Renders a message by the objects of one text.
fn render(yaml: &str, message: &[u8], flags: &[&str]) -> process::Done {
    let dir = TempDir::new().unwrap();
    let (objects, body) = (dir.path().join("stagepost.yaml"), dir.path().join("message"));
    std::fs::write(&objects, yaml).unwrap();
    std::fs::write(&body, message).unwrap();
    let files = ["render", objects.to_str().unwrap(), "--message", body.to_str().unwrap()];
    process::run(&[&files, flags].concat())
}

#[track_caller]
fn json(yaml: &str, message: &[u8], flags: &[&str]) -> Value {
    let done = render(yaml, message, &[flags, &["-o", "json"]].concat());
    assert!(done.stderr.is_empty(), "{}", done.stderr);
    serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {}", done.stdout))
}

/// A route with one rule, whose further fields are `rule`.
fn desk(rule: &str) -> String {
    let rule = rule.replace('\n', "\n  ");
    let spec = format!("rules:\n- name: pay\n  path: /desk/{{category}}\n  storeRef: {{name: box}}\n  {rule}");
    [manifest::store("box", ""), manifest::object("IngressRoute", "desk", &spec)].concat()
}

/// A topic, two queues bound to it, and a processor of each: one calls `url`, one moves into a third store.
fn bus(url: &str) -> String {
    let exchange = |more: &str| format!("exchange: {{name: events, type: Topic}}\n{more}");
    let rules = "rules:
- name: audits
  path: /orders/{region}
  when: body.audit
  storeRef: {name: events}
  routingKey: audit
- name: orders
  path: /orders/{region}
  body: Json
  storeRef: {name: events}
  routingKey: \"orders.{{ path.region }}.{{ query.kind }}\"
  transform:
  - setHeader: {name: X-Region, value: \"{{ path.region | upper }}\"}
  - setBody: {template: \"{{ body | combine({'fee': 7000}) | tojson }}\"}
  response:
    accepted: {status: 201, headers: {X-Order: \"{{ body.id }}\"}, body: '{\"order\":{{ body.id }}}'}";
    let call = "ordering: PerKey
concurrency: 4
orderingKey: body.customer
transform:
- filter: {when: body.fee > 0}
- removeHeader: {name: x-trace}";
    let set = "target:
  url: \"URL/base?from=desk\"
  method: Preserve
  appendPath: true
  headers: {set: {X-Try: \"{{ message.attempt }} of {{ body.id }} by {{ message.route }}\"}, remove: [X-Debug]}"
        .replace("URL", url.trim_end_matches('/'));
    [
        manifest::store("events", &exchange("routingKey: nobody.asked")),
        manifest::store("eu", &exchange("queue: {}\nbindings: [\"orders.eu.*\"]")),
        manifest::store("all", &exchange("queue: {}\nbindings: [\"orders.#\"]")),
        manifest::store("us", &exchange("queue: {}\nbindings: [\"orders.us.*\"]")),
        manifest::store("moved", ""),
        manifest::object("IngressRoute", "desk", rules),
        manifest::object("ForwardingProcessor", "call", &format!("storeRef: {{name: eu}}\n{call}\n{set}")),
        manifest::object("ForwardingProcessor", "move", "storeRef: {name: all}\ntarget: {storeRef: {name: moved}}"),
        manifest::object("ForwardingProcessor", "last", &format!("storeRef: {{name: moved}}\ntransform:\n- filter: {{when: \"body.fee < 0\"}}\ntarget: {{url: \"{url}\"}}")),
        manifest::object("ForwardingProcessor", "never", &format!("storeRef: {{name: us}}\ntarget: {{url: \"{url}\"}}")),
    ]
    .concat()
}

const ORDER: &str = r#"{"z":1.10,"id":12345678901234567890123,"audit":false,"customer":"c-7","fee":1,"a":-0}"#;

#[test]
fn what_it_shows_is_what_a_run_does() {
    let target = Recorder::start();
    let yaml = bus(&target.url());
    let flags = [
        "--path",
        "/orders/eu?kind=created",
        "--method",
        "POST",
        "-H",
        "X-Trace: 1",
        "-H",
        "X-Debug: 2",
        "-H",
        "X-A: 3",
    ];
    let shown = json(&yaml, ORDER.as_bytes(), &flags);

    let run = Setup::manifests(yaml).start();
    let headers = [("X-Trace", "1"), ("X-Debug", "2"), ("X-A", "3"), ("Content-Type", "application/json")];
    let answer = run.post("/orders/eu?kind=created", &headers, ORDER);
    let hit = target.await_hits(1, seconds(10)).remove(0);
    run.await_status("ForwardingProcessor", "last", seconds(10), |status| status["filtered"] == 1);
    assert_eq!(target.hits().len(), 1);

    let route = &shown["route"];
    assert_eq!(
        (&route["name"], &route["rule"], &route["store"]),
        (&"default/desk".into(), &"orders".into(), &"events".into())
    );
    assert_eq!(route["routingKey"], "orders.eu.created");
    assert_eq!(route["answer"]["status"], answer.status);
    assert_eq!(route["answer"]["body"]["text"], answer.text());
    for name in ["x-order", "content-type"] {
        assert_eq!(route["answer"]["headers"][name][0].as_str(), answer.header(name).as_deref(), "{name}");
    }
    assert_eq!(route["passedOver"][0]["path"], "spec.rules[0].when");
    let names: Vec<&str> =
        shown["processors"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["call", "move", "last"]);
    assert_eq!(shown["processors"][2]["filtered"], true);
    assert_eq!(shown["processors"][1]["targetStore"], "moved");

    let call = &shown["processors"][0];
    assert_eq!(call["orderingKey"], "c-7");
    let request = &call["request"];
    assert_eq!(request["url"], format!("{}{}", target.url().trim_end_matches('/'), hit.path));
    assert_eq!(request["method"], hit.method);
    assert_eq!(request["body"]["text"], hit.text());
    assert_eq!(hit.text(), ORDER.replace("\"fee\":1,", "\"fee\":7000,"));
    // Lengths are added when a request is written, and a message has an id of its own each time.
    let own = ["content-length", "stagepost-message-id", "idempotency-key"];
    let mut sent: Vec<(String, String)> = hit
        .headers
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), String::from_utf8_lossy(value).into_owned()))
        .filter(|(name, _)| !own.contains(&name.as_str()))
        .collect();
    let shown = request["headers"].as_object().unwrap().iter();
    let mut shown: Vec<(String, String)> = shown
        .flat_map(|(name, values)| {
            values.as_array().unwrap().iter().map(|value| (name.clone(), value.as_str().unwrap().to_owned()))
        })
        .filter(|(name, _)| !own.contains(&name.as_str()))
        .collect();
    sent.sort();
    shown.sort();
    assert_eq!(shown, sent);
}

#[test]
fn people_get_parts_with_headings_and_the_body_as_it_is() {
    let yaml =
        [desk("response: {accepted: {body: thanks}}"), manifest::processor("out", "box", "http://there:81/in", "")];
    let body = "<a>\n  <b>1.10</b>\n</a>\n";
    let done = render(&yaml.concat(), body.as_bytes(), &["--path", "/desk/x"]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    let parts = [
        "# request\nPOST /desk/x\ncontent-type: text/plain; charset=utf-8\n",
        "# IngressRoute/desk, rule pay: into MessageStore/box\n",
        "# answer to the caller\n202 Accepted\n",
        "# ForwardingProcessor/out, from MessageStore/box\nPOST http://there:81/in\n",
    ];
    let at: Vec<usize> =
        parts.iter().map(|part| done.stdout.find(part).unwrap_or_else(|| panic!("{}", done.stdout))).collect();
    assert!(at.is_sorted(), "{}", done.stdout);
    assert_eq!(done.stdout.matches(&format!("\n\n{body}")).count(), 3, "{}", done.stdout);
}

#[test]
fn bytes_that_are_no_text_go_through() {
    let yaml = [desk(""), manifest::processor("out", "box", "http://there:81/in", "")].concat();
    let shown = json(&yaml, b"\xff\xfe\x00", &["--path", "/desk/x"]);
    for body in
        [&shown["request"]["body"], &shown["route"]["message"]["body"], &shown["processors"][0]["request"]["body"]]
    {
        assert_eq!((&body["base64"], &body["text"]), (&"//4A".into(), &Value::Null));
    }
    let done = render(&yaml, b"\xff\xfe\x00", &["--path", "/desk/x"]);
    assert_eq!(done.code, 0);
    assert!(done.stdout.contains("(3 bytes that are not text; see them with -o json)"), "{}", done.stdout);
}

#[test]
fn a_failing_expression_is_named_with_file_object_field_step_line_and_column() {
    let out = |spec: &str| [desk(""), manifest::processor("out", "box", "http://there/", spec)].concat();
    let transform =
        "transform:\n- log: {template: \"{{ body.a }}\"}\n- setBody:\n    template: |-\n      a\n      {{ body.b }}";
    let undefined = "`body.b` is undefined; give it a value by default() or test it by `is defined`";
    let headers = "{ set: {X-Card: \"{{ body.b }}\"} }";
    let with_headers = desk("")
        + &manifest::object(
            "ForwardingProcessor",
            "out",
            &format!("storeRef: {{name: box}}\ntarget: {{url: \"http://there/\", headers: {headers}}}"),
        );
    for (yaml, expected, status) in [
        (
            desk("when: body.a > 'x'"),
            "IngressRoute/desk: spec.rules[0].when: the rule's condition failed: line 1, column 1: ".to_owned(),
            Some(400),
        ),
        (
            desk("routingKey: \"{{ body.b }}\"")
                .replace("queue: {}", "queue: {}\n  exchange: {name: e, type: Topic}\n  bindings: [\"#\"]"),
            format!(
                "IngressRoute/desk: spec.rules[0].routingKey: the routing key failed: line 1, column 4: {undefined}"
            ),
            Some(400),
        ),
        (
            desk(transform),
            format!(
                "IngressRoute/desk: spec.rules[0].transform[1].setBody: transform step 2 (setBody): line 2, column 4: {undefined}"
            ),
            Some(400),
        ),
        (
            desk("response: {accepted: {body: \"{{ body.b }}\"}, invalid: {status: 422, body: own}}"),
            format!(
                "IngressRoute/desk: spec.rules[0].response.accepted: the answer's template failed: line 1, column 4: {undefined}"
            ),
            Some(422),
        ),
        (
            desk("schema: {required: [b]}"),
            "IngressRoute/desk: spec.rules[0].schema: the body does not follow the schema of its rule: ".to_owned(),
            Some(400),
        ),
        (
            out(&format!("{transform}\nonFailure: {{action: Drop}}")),
            format!(
                "ForwardingProcessor/out: spec.transform[1].setBody: transform step 2 (setBody): line 2, column 4: {undefined}"
            ),
            None,
        ),
        (
            with_headers,
            format!(
                "ForwardingProcessor/out: spec.target.headers.set.X-Card: target.headers.set.x-card: line 1, column 4: {undefined}"
            ),
            None,
        ),
        (
            out("ordering: PerKey\norderingKey: body.a > 'x'"),
            "ForwardingProcessor/out: spec.orderingKey: orderingKey: line 1, column 1: ".to_owned(),
            None,
        ),
    ] {
        let done = render(&yaml, br#"{"a":1}"#, &["--path", "/desk/x"]);
        assert_eq!(done.code, 1, "{expected}\n{}\n{}", done.stdout, done.stderr);
        let errors: Vec<&str> = done.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && errors[0].contains(&expected), "{expected}\n{}", done.stderr);
        let place =
            errors[0].split("stagepost.yaml:").nth(1).and_then(|rest| rest.split(':').next()?.parse::<usize>().ok());
        assert!(place.is_some_and(|line| line > 1), "{}", errors[0]);
        match status {
            Some(status) => {
                assert!(done.stdout.contains(&format!("# answer to the caller\n{status} ")), "{}", done.stdout);
            }
            None => assert!(done.stdout.contains("TransformFailed"), "{}", done.stdout),
        }
    }
    let dead = render(&out(transform), br#"{"a":1}"#, &["--path", "/desk/x"]).stdout;
    assert!(dead.contains("fails (dead-letter: TransformFailed, into MessageStore/box.dlc)"), "{dead}");
}

#[test]
fn a_message_that_no_rule_takes_says_why_of_each() {
    let spec = "rules:
- {name: path, path: /elsewhere, storeRef: {name: box}}
- {name: method, path: /in, methods: [PUT], storeRef: {name: box}}
- {name: media, path: /in, consumes: [application/xml], storeRef: {name: box}}
- {name: false, path: /in, when: body.n > 5, storeRef: {name: box}}
- {name: undefined, path: /in, when: \"body.missing != 1\", storeRef: {name: box}}"
        .replace("name: false", "name: \"no\"");
    let yaml = [manifest::store("box", ""), manifest::object("IngressRoute", "in", &spec)].concat();
    let done = render(&yaml, br#"{"n":5}"#, &["--path", "/in"]);
    assert_eq!(done.code, 1, "{}", done.stdout);
    for expected in [
        "spec.rules[0].path: `/elsewhere` does not match",
        "spec.rules[1].methods: PUT is not POST",
        "spec.rules[2].consumes: application/xml does not take application/json",
        "spec.rules[3].when: it is false",
        "spec.rules[4].when: it is false: line 1, column 1: `body.missing",
        "404 Not Found",
    ] {
        assert!(done.stdout.contains(expected), "{expected}\n{}", done.stdout);
    }
    assert!(done.stderr.contains("error: request: no rule of this path takes this request"), "{}", done.stderr);
    let done = render(&yaml, b"x", &["--path", "/in", "-H", "content-type: text/plain", "--method", "DELETE"]);
    assert!(
        done.stdout.contains("405 Method Not Allowed\n") && done.stdout.contains("allow: POST, PUT"),
        "{}",
        done.stdout
    );
    let done = render(&yaml, &vec![b' '; 2 * 1024 * 1024], &["--path", "/in"]);
    assert!(done.code == 1 && done.stdout.contains("\n413 "), "{}", done.stderr);
}

#[test]
fn an_object_can_be_tried_alone() {
    let yaml = bus("http://there:81/");
    let call =
        json(&yaml, ORDER.as_bytes(), &["--object", "ForwardingProcessor/call", "--path", "/p", "--method", "PUT"]);
    assert_eq!((&call["route"], call["processors"].as_array().unwrap().len()), (&Value::Null, 1));
    let request = &call["processors"][0]["request"];
    assert_eq!(
        (request["method"].as_str(), request["url"].as_str()),
        (Some("PUT"), Some("http://there:81/base/p?from=desk"))
    );
    let store = json(&yaml, ORDER.as_bytes(), &["--object", "messagestore/default/moved"]);
    assert_eq!(store["processors"][0]["name"], "last");
    let unbound = json(&yaml, ORDER.as_bytes(), &["--object", "IngressRoute/desk", "--path", "/orders/?kind=x"]);
    assert_eq!(unbound["route"]["answer"]["status"], 404);
    let unbound = json(&yaml, br#"{"audit":true}"#, &["--path", "/orders/eu"]);
    assert_eq!(
        (&unbound["route"]["routingKey"], &unbound["unroutable"][0]["store"]),
        (&"audit".into(), &"events".into())
    );

    // Without a route the only processor is meant, and without a placeholder the only path.
    let alone = manifest::store("box", "") + &manifest::processor("out", "box", "http://there/", "");
    assert_eq!(json(&alone, b"x", &[])["processors"][0]["name"], "out");
    assert_eq!(json(&manifest::line("http://there/", ""), b"x", &[])["request"]["path"], "/in");
}

#[test]
fn a_caller_who_waits_for_the_reply_is_told_so() {
    let yaml = [desk("reply: {timeout: 7s}"), manifest::processor("out", "box", "http://there/", "")].concat();
    let done = render(&yaml, b"x", &["--path", "/desk/x"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout.contains("# answer to the caller: the target's, awaited for 7s\n"), "{}", done.stdout);
    let shown = json(&yaml, b"x", &["--path", "/desk/x"]);
    assert_eq!((&shown["route"]["answer"], &shown["route"]["reply"]), (&Value::Null, &"7s".into()));
}

#[test]
fn credentials_are_named_and_never_shown() {
    let secret =
        "---\napiVersion: v1\nkind: Secret\nmetadata: {name: pay}\nstringData: {username: u, password: hunter2}\n";
    let spec = "storeRef: {name: box}\ntarget: {url: \"http://there/\", auth: {basic: {secretRef: {name: pay}}}}";
    let yaml = [&manifest::store("box", ""), secret, &manifest::object("ForwardingProcessor", "out", spec)].concat();
    let done = render(&yaml, b"x", &["-H", "Authorization: Bearer theirs"]);
    assert!(done.stdout.contains("authorization: (of Secret/pay)\n"), "{}", done.stdout);
    assert!(!done.stdout.contains("hunter2") && !done.stdout.contains("theirs"), "{}", done.stdout);
}

#[test]
fn wrong_usage_is_2_and_invalid_manifests_are_1() {
    let line = manifest::line("http://there/", "");
    for (yaml, flags, said) in [
        (line.as_str(), &["--object", "Pod/x"][..], "the kinds are"),
        (&line, &["--object", "IngressRoute/x"], "`x` is not among the objects"),
        (&line, &["--path", "in"], "must begin with `/`"),
        (&line, &["-H", "x"], "NAME: VALUE"),
        (&desk(""), &[], "give the path of the request with --path"),
        (&manifest::store("box", ""), &[], "say with --object KIND/NAME"),
        (&(line.clone() + &manifest::route("two", "/in", "box")), &[], "choose one with --object"),
        (&line, &["--message", "/nowhere.json"], "/nowhere.json"),
    ] {
        // Of a flag that is given twice, the last counts.
        let done = render(yaml, b"x", flags);
        assert_eq!(done.code, 2, "{flags:?}\n{}", done.stderr);
        assert!(done.stderr.contains(said), "{said}\n{}", done.stderr);
    }
    let done = render(&manifest::line("http://there/", "concurrency: 5"), b"x", &[]);
    assert!(done.code == 1 && done.stderr.contains("spec.concurrency") && done.stdout.is_empty(), "{}", done.stderr);
}
