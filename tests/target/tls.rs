//! C8: each way in which TLS fails is a failed handshake with a reason of its own, and never plain text.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ResolvesServerCertUsingSni, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use stagepost::core::outcome::Outcome;
use stagepost::target::http::{ClientIdentity, HttpTarget, HttpTargetConfig, TargetConfigError, TlsMaterial};
use stagepost::target::{Answer as Sent, AnswerBody, Target as _};

use super::backend::{Answer, Backend, Hit, Options};
use super::{attempt, config, status};

/// A certificate authority.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
struct Leaf {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        Self::named(&format!("authority {}", MADE.fetch_add(1, Ordering::Relaxed)))
    }

    fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self { certificate: params.self_signed(&key).unwrap(), issuer: Issuer::new(params, key) }
    }

    fn pem(&self) -> Vec<u8> {
        self.certificate.pem().into_bytes()
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        roots
    }

    fn issue(&self, name: &str, purpose: ExtendedKeyUsagePurpose, expired: bool) -> Leaf {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![purpose];
        if expired {
            (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        }
        let key = KeyPair::generate().unwrap();
        Leaf { certificate: params.signed_by(&key, &self.issuer).unwrap(), key }
    }

    fn server(&self, name: &str) -> Leaf {
        self.issue(name, ExtendedKeyUsagePurpose::ServerAuth, false)
    }
}

impl Leaf {
    fn self_signed(name: &str, is_ca: IsCa) -> Self {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.is_ca = is_ca;
        let key = KeyPair::generate().unwrap();
        Self { certificate: params.self_signed(&key).unwrap(), key }
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.der().clone()]
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).unwrap()
    }

    fn identity(&self) -> ClientIdentity {
        ClientIdentity { certificate: self.certificate.pem().into_bytes(), key: self.key.serialize_pem().into_bytes() }
    }

    fn server_config(&self) -> ServerConfig {
        builder(rustls::ALL_VERSIONS).with_no_client_auth().with_single_cert(self.chain(), self.private_key()).unwrap()
    }
}

fn builder(
    versions: &[&'static SupportedProtocolVersion],
) -> rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap()
}

async fn backend(config: ServerConfig) -> Backend {
    let options = Options { tls: Some(Arc::new(config)), ..Options::default() };
    Backend::start_with(options, |_| Answer::full(200, &[], b"secret")).await
}

fn trusting(authority: &Authority) -> TlsMaterial {
    TlsMaterial { ca: Some(authority.pem()), ..TlsMaterial::default() }
}

fn target(url: String, tls: TlsMaterial) -> HttpTarget {
    HttpTarget::new(&HttpTargetConfig { tls, ..config(url) }).unwrap()
}

async fn send_to(backend: &Backend, tls: TlsMaterial) -> Sent {
    target(format!("https://127.0.0.1:{}/", backend.port()), tls).send(attempt("m")).await
}

fn tls_reason(answer: &Sent) -> &str {
    match &answer.outcome {
        Outcome::Tls(reason) => reason,
        other => panic!("not Tls: {other:?}"),
    }
}

#[tokio::test]
async fn c8_a_certificate_of_the_given_authority_is_trusted_and_its_connection_reused() {
    let authority = Authority::new();
    let backend = backend(authority.server("127.0.0.1").server_config()).await;
    let target = target(format!("https://127.0.0.1:{}/x", backend.port()), trusting(&authority));
    for _ in 0..5 {
        let answer = target.send(attempt("m")).await;
        assert_eq!((status(&answer), answer.body), (200, AnswerBody::Complete("secret".into())));
    }
    assert_eq!(backend.accepted(), 1);
    assert_eq!(backend.hits()[0].header("host"), Some(backend.address().to_string()));
}

#[tokio::test]
async fn c8_a_large_body_goes_through_tls_unchanged() {
    let authority = Authority::new();
    let backend = backend(authority.server("127.0.0.1").server_config()).await;
    let target = target(format!("https://127.0.0.1:{}/", backend.port()), trusting(&authority));
    let body: Vec<u8> = (0..3_000_000u32).map(|index| index.to_le_bytes()[0]).collect();
    assert_eq!(status(&target.send(attempt(body.clone())).await), 200);
    assert!(backend.hits()[0].body == body);
}

#[tokio::test]
async fn c8_an_expired_certificate() {
    let authority = Authority::new();
    let leaf = authority.issue("127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth, true);
    let backend = backend(leaf.server_config()).await;
    assert_eq!(tls_reason(&send_to(&backend, trusting(&authority)).await), "certificate expired");
    assert!(backend.hits().is_empty());
}

#[tokio::test]
async fn c8_a_certificate_for_another_host() {
    let authority = Authority::new();
    let backend = backend(authority.server("other.example").server_config()).await;
    let answer = send_to(&backend, trusting(&authority)).await;
    assert_eq!(tls_reason(&answer), "certificate is for another host than `127.0.0.1`");
    assert!(backend.hits().is_empty());
}

#[tokio::test]
async fn c8_a_certificate_of_an_unknown_issuer() {
    let backend = backend(Authority::new().server("127.0.0.1").server_config()).await;
    let answer = send_to(&backend, trusting(&Authority::new())).await;
    assert_eq!(tls_reason(&answer), "certificate has an unknown issuer; set tls.caRef");
    assert!(backend.hits().is_empty());
}

#[tokio::test]
async fn c8_a_certificate_of_an_authority_that_was_replaced_under_its_name() {
    let backend = backend(Authority::named("ours").server("127.0.0.1").server_config()).await;
    let answer = send_to(&backend, trusting(&Authority::named("ours"))).await;
    assert_eq!(tls_reason(&answer), "certificate has a bad signature: its issuer has the name, not the key, of ours");
}

#[tokio::test]
async fn c8_a_self_signed_certificate() {
    for is_ca in [IsCa::NoCa, IsCa::Ca(BasicConstraints::Unconstrained)] {
        let backend = backend(Leaf::self_signed("127.0.0.1", is_ca).server_config()).await;
        let answer = send_to(&backend, trusting(&Authority::new())).await;
        assert!(tls_reason(&answer).starts_with("certificate "), "{:?}", answer.outcome);
        assert!(tls_reason(&answer).ends_with("set tls.caRef"), "{:?}", answer.outcome);
        assert!(backend.hits().is_empty());
    }
}

#[tokio::test]
async fn c8_a_certificate_for_another_purpose() {
    let authority = Authority::new();
    let leaf = authority.issue("127.0.0.1", ExtendedKeyUsagePurpose::ClientAuth, false);
    let backend = backend(leaf.server_config()).await;
    let answer = send_to(&backend, trusting(&authority)).await;
    assert!(tls_reason(&answer).starts_with("certificate: "), "{:?}", answer.outcome);
}

#[tokio::test]
async fn c8_the_server_name_is_asked_for_and_verified_instead_of_the_host() {
    let authority = Authority::new();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let leaf = authority.server("settle.internal");
    let key = CertifiedKey::from_der(leaf.chain(), leaf.private_key(), &provider).unwrap();
    let mut by_name = ResolvesServerCertUsingSni::new();
    by_name.add("settle.internal", key).unwrap();
    let config = builder(rustls::ALL_VERSIONS).with_no_client_auth().with_cert_resolver(Arc::new(by_name));
    let backend = backend(config).await;

    let named = TlsMaterial { server_name: Some("settle.internal".into()), ..trusting(&authority) };
    assert_eq!(status(&send_to(&backend, named).await), 200);
    assert_eq!(backend.hits()[0].header("host"), Some(backend.address().to_string()));

    let mismatch = TlsMaterial { server_name: Some("other.internal".into()), ..trusting(&authority) };
    let answer = send_to(&backend, mismatch).await;
    assert!(tls_reason(&answer).starts_with("refused by the target: "), "{:?}", answer.outcome);
    assert_eq!(backend.hits().len(), 1);
}

#[tokio::test]
async fn c8_a_client_certificate_is_shown_and_each_fault_of_it_is_told() {
    let authority = Authority::new();
    let client = |expired| authority.issue("stagepost", ExtendedKeyUsagePurpose::ClientAuth, expired).identity();
    let stranger = Authority::new().issue("stagepost", ExtendedKeyUsagePurpose::ClientAuth, false).identity();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(authority.roots()), provider).build().unwrap();
        let leaf = authority.server("127.0.0.1");
        let config = builder(&[version])
            .with_client_cert_verifier(verifier)
            .with_single_cert(leaf.chain(), leaf.private_key())
            .unwrap();
        let backend = backend(config).await;
        let showing = |client| TlsMaterial { client, ..trusting(&authority) };

        assert_eq!(status(&send_to(&backend, showing(Some(client(false)))).await), 200, "{version:?}");
        for (shown, reason) in [
            (None, "refused by the target: it requires a client certificate"),
            (Some(client(true)), "refused by the target: our client certificate expired"),
            (Some(stranger.clone()), "refused by the target: it does not know the issuer of our client certificate"),
        ] {
            let answer = send_to(&backend, showing(shown)).await;
            assert_eq!(tls_reason(&answer), reason, "{version:?}");
        }
        assert_eq!(backend.hits().len(), 1);
    }
}

#[tokio::test]
async fn c8_a_target_that_speaks_no_tls_never_gets_the_request_in_plain_text() {
    for said in ["HTTP/1.1 400 Bad Request\r\n\r\n", "hello, this is a mail server\r\n"] {
        let options = Options { at_accept: Some(Answer::raw(said)), ..Options::default() };
        let backend = Backend::start_with(options, |_| Answer::status(200)).await;
        let answer = send_to(&backend, trusting(&Authority::new())).await;
        assert_eq!(tls_reason(&answer), "the target does not speak TLS on this port");
        assert!(backend.hits().is_empty());
    }
}

#[tokio::test]
async fn c8_a_target_that_speaks_only_tls_gives_no_response_to_plain_text() {
    let backend = backend(Authority::new().server("127.0.0.1").server_config()).await;
    let answer = super::target(backend.url("/")).send(attempt("m")).await;
    assert!(matches!(answer.outcome, Outcome::NoResponse(_)), "{:?}", answer.outcome);
}

#[tokio::test]
async fn c8_a_target_with_nothing_newer_than_tls_1_1() {
    // A fatal alert: protocol_version.
    let alert = Answer::raw([0x15, 3, 1, 0, 2, 2, 70]).then_hang();
    let options = Options { at_accept: Some(alert), ..Options::default() };
    let backend = Backend::start_with(options, |_| Answer::status(200)).await;
    let answer = send_to(&backend, trusting(&Authority::new())).await;
    assert_eq!(tls_reason(&answer), "refused by the target: it does not speak TLS 1.2 or later");
    assert!(backend.hits().is_empty());
}

#[tokio::test]
async fn c8_a_handshake_that_hangs_ends_at_the_connect_timeout() {
    let options = Options { at_accept: Some(Answer::nothing().then_hang()), ..Options::default() };
    let backend = Backend::start_with(options, |_| Answer::status(200)).await;
    let url = format!("https://127.0.0.1:{}/", backend.port());
    let tls = trusting(&Authority::new());
    let config = HttpTargetConfig { tls, connect_timeout: Duration::from_millis(200), ..config(url) };
    let answer = HttpTarget::new(&config).unwrap().send(attempt("m")).await;
    assert_eq!(tls_reason(&answer), "handshake timed out after 200ms");
    backend.until_open(0).await;
}

#[tokio::test]
async fn c8_a_close_or_reset_during_the_handshake() {
    for (end, reason) in [
        (Answer::nothing().then_close(), "connection closed during the handshake"),
        (Answer::nothing().then_pause(Duration::from_millis(50)).then_reset(), "connection reset during the handshake"),
    ] {
        let options = Options { at_accept: Some(end), ..Options::default() };
        let backend = Backend::start_with(options, |_| Answer::status(200)).await;
        let answer = send_to(&backend, trusting(&Authority::new())).await;
        assert_eq!(tls_reason(&answer), reason);
    }
}

#[tokio::test]
async fn c11_a_tls_connection_that_is_closed_under_the_request_gets_one_fresh_try() {
    let authority = Authority::new();
    let options = Options { tls: Some(Arc::new(authority.server("127.0.0.1").server_config())), ..Options::default() };
    let backend = Backend::start_with(options, |hit: &Hit| match hit.on_connection {
        1 => Answer::status(200),
        _ => Answer::nothing().then_close(),
    })
    .await;
    let target = target(format!("https://127.0.0.1:{}/", backend.port()), trusting(&authority));
    assert!(!target.send(attempt("1")).await.repeated);
    let answer = target.send(attempt("2")).await;
    assert_eq!((status(&answer), answer.repeated), (200, true));
}

#[test]
fn c8_material_that_cannot_be_used_is_refused_with_the_key_and_the_remedy() {
    let authority = Authority::new();
    let good = authority.issue("stagepost", ExtendedKeyUsagePurpose::ClientAuth, false).identity();
    let other = authority.issue("stagepost", ExtendedKeyUsagePurpose::ClientAuth, false).identity();
    let build = |tls| HttpTarget::new(&HttpTargetConfig { tls, ..config("https://settle/") }).err();
    let text = |tls| build(tls).map(|error: TargetConfigError| error.to_string()).unwrap_or_default();
    let client = |certificate: &[u8], key: &[u8]| TlsMaterial {
        client: Some(ClientIdentity { certificate: certificate.to_vec(), key: key.to_vec() }),
        ..trusting(&authority)
    };

    assert_eq!(build(client(&good.certificate, &good.key)), None);
    for ca in [b"".as_slice(), b"no certificate", &good.key] {
        let error = text(TlsMaterial { ca: Some(ca.to_vec()), ..TlsMaterial::default() });
        assert!(error.starts_with("tls ca: ") && error.ends_with("in PEM"), "{error}");
    }
    let broken = b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
    assert!(text(TlsMaterial { ca: Some(broken.to_vec()), ..TlsMaterial::default() }).starts_with("tls ca: "));
    for (certificate, key, field) in [
        (b"".as_slice(), good.key.as_slice(), "tls.crt"),
        (b"nothing", &good.key, "tls.crt"),
        (&good.certificate, b"nothing", "tls.key"),
        (&good.certificate, &other.key, "tls.key"),
    ] {
        let error = text(client(certificate, key));
        assert!(error.starts_with(&format!("tls client certificate: {field}: ")), "{error}");
        assert!(error.ends_with("give certificate and key in PEM that belong together"), "{error}");
    }
    let name = TlsMaterial { server_name: Some("not a name".into()), ..trusting(&authority) };
    assert_eq!(text(name), "tls serverName: `not a name` is neither a host name nor an address");
}
