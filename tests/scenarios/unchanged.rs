//! M9: what arrives at the target is what was sent: every value, every byte.

use crate::support::{Connection, Recorder, Setup, manifest, seconds};

/// Sends raw headers and a body, and returns what the target got.
fn through(headers: &[(&str, &[u8])], body: &[u8]) -> crate::support::Hit {
    let target = Recorder::start();
    let run = Setup::manifests(manifest::line(&target.url(), "")).start();
    let mut connection = Connection::open(run.listen()).unwrap();
    let answer = connection.request("POST", "/in", headers, body).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
    target.await_hits(1, seconds(3)).remove(0)
}

#[test]
fn m9_header_values_arrive_one_by_one_and_unchanged() {
    let hit = through(
        &[
            ("X-A", b"1"),
            ("X-A", b"2"),
            ("X-Signs", b"a=b; c=\"d,e\"; f:g"),
            ("X-Text", "gr\u{fc}\u{df}e \u{2713}".as_bytes()),
            ("Content-Type", b"application/json; charset=utf-8; x=\"a;b\""),
            ("Accept-Language", b"de, en;q=0.5"),
            ("Idempotency-Key", b"mine-1"),
            ("Stagepost-Attempt", b"77"),
            ("X-Stagepost-Path", b"/evil"),
            ("Authorization", b"Bearer secret"),
            ("Cookie", b"a=b"),
            ("Te", b"trailers"),
        ],
        b"{}",
    );
    assert_eq!(hit.all("x-a"), [b"1", b"2"]);
    assert_eq!(hit.all("x-signs"), [b"a=b; c=\"d,e\"; f:g"]);
    assert_eq!(hit.all("x-text"), ["gr\u{fc}\u{df}e \u{2713}".as_bytes()]);
    assert_eq!(hit.all("content-type"), [b"application/json; charset=utf-8; x=\"a;b\""]);
    assert_eq!(hit.all("accept-language"), [b"de, en;q=0.5"]);
    assert_eq!(hit.all("idempotency-key"), [b"mine-1"]);
    assert_eq!(hit.all("stagepost-attempt"), [b"1"]);
    for gone in ["x-stagepost-path", "authorization", "cookie", "te"] {
        assert!(hit.all(gone).is_empty(), "{gone} is not the target's business");
    }
    assert_eq!(hit.path, "/", "the target's path is the user's");
}

#[test]
fn m9_bodies_arrive_byte_by_byte() {
    let utf8 = "{\"name\": \"J\u{f6}rg \u{1f600}\", \"amount\": 1.10, \"big\": 12345678901234567890}\n".as_bytes();
    let every_byte: Vec<u8> = (0..=255_u8).cycle().take(70_000).collect();
    let pdf = [b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", every_byte.as_slice()].concat();
    for (content_type, body) in [("application/json", utf8), ("application/pdf", &pdf), ("text/plain", b"")] {
        let hit = through(&[("Content-Type", content_type.as_bytes())], body);
        assert!(hit.body == body, "{content_type}: {} bytes became {}", body.len(), hit.body.len());
        assert_eq!(hit.all("content-type"), [content_type.as_bytes()]);
        assert_eq!(hit.all("content-length"), [body.len().to_string().as_bytes()]);
    }
}

#[test]
fn m9_a_compressed_body_is_carried_as_it_is() {
    // A gzip head and noise: whoever tried to decompress it would fail.
    let body = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xde\xad\xbe\xef";
    let hit = through(&[("Content-Encoding", b"gzip"), ("Content-Type", b"application/json")], body);
    assert_eq!(hit.body, body);
    assert_eq!(hit.all("content-encoding"), [b"gzip"]);
}

#[test]
fn method_path_and_query_are_preserved_and_appended_when_the_user_wants_it() {
    let target = Recorder::start();
    let rules = "rules:\n- name: all\n  path: /shop/{*rest}\n  methods: [PUT, DELETE]\n  storeRef: {name: box}";
    let send = format!(
        "storeRef: {{name: box}}\ntarget: {{url: \"{}/base\", method: Preserve, appendPath: true}}",
        target.url()
    );
    let yaml = [
        manifest::store("box", ""),
        manifest::object("IngressRoute", "in", rules),
        manifest::object("ForwardingProcessor", "out", &send),
    ];
    let run = Setup::manifests(yaml.concat()).start();
    let mut connection = Connection::open(run.listen()).unwrap();
    let path = "/shop/a%20b/c;d?x=1&x=%C3%BC&empty=";
    assert_eq!(connection.request("PUT", path, &[], b"new").unwrap().status, 202);
    assert_eq!(connection.request("DELETE", "/shop/a", &[], b"").unwrap().status, 202);
    let refused = connection.request("GET", "/shop/a", &[], b"").unwrap();
    assert_eq!(refused.status, 405);
    assert_eq!(connection.request("PUT", "/shop/../etc", &[], b"").unwrap().status, 400);
    let hits = target.await_hits(2, seconds(3));
    assert_eq!((hits[0].method.as_str(), hits[0].path.as_str()), ("PUT", format!("/base{path}").as_str()));
    assert_eq!((hits[1].method.as_str(), hits[1].path.as_str()), ("DELETE", "/base/shop/a"));
}
