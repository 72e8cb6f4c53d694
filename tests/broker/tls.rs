//! Brokers that speak TLS: verified by CA and name, shown a client certificate, and never spoken to in plain text.

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use super::common::{condition, is};
use crate::rabbitmq::{self, Rabbit};
use crate::support::{Recorder, Setup, Stagepost, manifest, quiet_port, seconds};

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // Not the name of what it issues: Erlang takes a certificate whose issuer has its own name for its own issuer.
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate and its key.
    fn issue(&self, name: &str, purpose: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// A broker with a TLS port beside its plain one.
struct Secured {
    broker: Rabbit,
    port: u16,
    authority: Authority,
}

impl Secured {
    /// Its certificate is for `name`.
    fn start(name: &str, wants_certificate: bool) -> Option<Self> {
        let version = rabbitmq::version()?;
        let authority = Authority::new();
        let (certificate, key) = authority.issue(name, ExtendedKeyUsagePurpose::ServerAuth);
        let files = [
            ("ca.pem", authority.pem.clone().into_bytes()),
            ("server.pem", certificate.into_bytes()),
            ("server.key", key.into_bytes()),
        ];
        let port = quiet_port();
        let verify = if wants_certificate { "verify_peer" } else { "verify_none" };
        let broker = Rabbit::with_files(&version, &files, |folder| {
            format!(
                "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {folder}/ca.pem\n\
                 ssl_options.certfile = {folder}/server.pem\nssl_options.keyfile = {folder}/server.key\n\
                 ssl_options.verify = {verify}\nssl_options.fail_if_no_peer_cert = {wants_certificate}\n"
            )
        });
        Some(Self { broker, port, authority })
    }

    fn uri(&self) -> String {
        format!("amqps://guest:guest@localhost:{}/%2f", self.port)
    }
}

/// A Secret's manifest with these keys.
fn secret(name: &str, keys: &[(&str, &str)]) -> String {
    let mut lines = Vec::new();
    for (key, value) in keys {
        lines.push(format!("  {key}: |"));
        lines.extend(value.lines().map(|line| format!("    {line}")));
    }
    let keys = lines.join("\n");
    format!("---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\nstringData:\n{keys}\n")
}

fn run(target: &Recorder, keys: &[(&str, &str)], broker: &str) -> Stagepost {
    let spec = format!("broker: {{secretRef: {{name: rabbitmq}}{broker}}}\nqueue: {{}}");
    let yaml = [
        secret("rabbitmq", keys),
        manifest::object("MessageStore", "box", &spec),
        manifest::route("in", "/in", "box"),
        manifest::processor("out", "box", &target.url(), ""),
    ];
    Setup::manifests(yaml.concat()).start()
}

#[track_caller]
fn delivers(run: &Stagepost, target: &Recorder) {
    run.await_status("MessageStore", "box", seconds(30), |status| is(status, "BrokerConnected", "True"));
    let before = target.count();
    assert_eq!(run.post("/in", &[], "secret").status, 202);
    target.await_hits(before + 1, seconds(10));
}

#[track_caller]
fn fails_with(run: &Stagepost, reason: &str) {
    let status = run.await_status("MessageStore", "box", seconds(30), |status| is(status, "BrokerConnected", "False"));
    let found = condition(&status, "BrokerConnected");
    assert_eq!(found["reason"], reason, "{status:#}");
    assert_eq!(run.post("/in", &[], "secret").status, 503);
}

#[test]
fn a_broker_is_verified_by_the_ca_and_the_name_that_the_manifests_give() {
    let Some(secured) = Secured::start("localhost", false) else { return };
    let (uri, target) = (secured.uri(), Recorder::start());
    let ca = secured.authority.pem.as_str();
    delivers(&run(&target, &[("uri", &uri), ("ca.crt", ca)], ""), &target);
    // The same by separate keys, where the CA says that TLS is wanted.
    let port = secured.port.to_string();
    let keys = [("host", "localhost"), ("port", &port), ("username", "guest"), ("password", "guest"), ("ca.crt", ca)];
    delivers(&run(&target, &keys, ""), &target);
    // Not the system's CAs, not another one, not another name.
    fails_with(&run(&target, &[("uri", &uri)], ""), "TlsFailed");
    let other = Authority::new().pem;
    fails_with(&run(&target, &[("uri", &uri), ("ca.crt", &other)], ""), "TlsFailed");
    let by_address = uri.replace("localhost", "127.0.0.1");
    let keys = [("uri", by_address.as_str()), ("ca.crt", ca)];
    fails_with(&run(&target, &keys, ""), "TlsFailed");
    delivers(&run(&target, &keys, ", tls: {serverName: localhost}"), &target);
    fails_with(&run(&target, &keys, ", tls: {serverName: elsewhere}"), "TlsFailed");
}

#[test]
fn a_ca_of_a_reference_stands_alone_and_is_taken_up_when_it_comes() {
    let Some(secured) = Secured::start("localhost", false) else { return };
    let (uri, target) = (secured.uri(), Recorder::start());
    let reference = ", tls: {caRef: {kind: Secret, name: pinned, key: ca.crt}}";
    let run = run(&target, &[("uri", &uri), ("ca.crt", &secured.authority.pem)], reference);
    fails_with(&run, "InvalidSecret");
    run.write("pinned.yaml", &secret("pinned", &[("ca.crt", &secured.authority.pem)]));
    delivers(&run, &target);
}

#[test]
fn a_broker_that_wants_a_client_certificate_gets_the_one_of_the_secret() {
    let Some(secured) = Secured::start("localhost", true) else { return };
    let (uri, target) = (secured.uri(), Recorder::start());
    let ca = secured.authority.pem.as_str();
    let (certificate, key) = secured.authority.issue("stagepost", ExtendedKeyUsagePurpose::ClientAuth);
    let keys = [("uri", uri.as_str()), ("ca.crt", ca), ("tls.crt", &certificate), ("tls.key", &key)];
    delivers(&run(&target, &keys, ""), &target);
    fails_with(&run(&target, &keys[..2], ""), "TlsFailed");
    let half = run(&target, &keys[..3], "");
    fails_with(&half, "InvalidSecret");
}

#[test]
fn tls_is_never_given_up_for_plain_text() {
    let Some(secured) = Secured::start("localhost", false) else { return };
    let target = Recorder::start();
    let ca = secured.authority.pem.as_str();
    let tls_port = format!("amqp://guest:guest@localhost:{}/%2f", secured.port);
    fails_with(&run(&target, &[("uri", &tls_port)], ""), "Refused");
    // Said by the manifests, and not by the URL.
    let run = run(&target, &[("uri", &secured.broker.uri()), ("ca.crt", ca)], "");
    fails_with(&run, "InvalidSecret");
    let message = condition(&run.status("MessageStore", "box"), "BrokerConnected")["message"].to_string();
    assert!(message.contains("amqps://"), "{message}");
}
