//! TLS 1.2 or later, verified, never anything less.
//!
//! Revocation lists are not consulted: neither the system's roots nor a private CA's bundle come with any.

use std::io;
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::config::{ClientIdentity, TargetConfigError, TlsMaterial};

/// Makes TLS connections of TCP connections.
pub(super) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    pub(super) fn new(host: &str, material: &TlsMaterial) -> Result<Self, TargetConfigError> {
        let name = material.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TargetConfigError::ServerName(name.to_owned()))?;
        let verified = verifier(material.ca.as_deref())?;
        let mut config = match &material.client {
            None => verified.with_no_client_auth(),
            Some(identity) => with_identity(verified, identity)?,
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    pub(super) async fn handshake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.connector.connect(self.name.clone(), stream).await
    }
}

fn verifier(ca: Option<&[u8]>) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TargetConfigError> {
    // Named here rather than taken from the process, so that no other crate's choice can change it.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TargetConfigError::SystemRoots(error.to_string()))?;
    let Some(pem) = ca else {
        return builder.with_platform_verifier().map_err(|error| TargetConfigError::SystemRoots(error.to_string()));
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| TargetConfigError::Ca(error.to_string()))?;
        roots.add(certificate).map_err(|error| TargetConfigError::Ca(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(TargetConfigError::Ca("there is no certificate in it".to_owned()));
    }
    Ok(builder.with_root_certificates(roots))
}

fn with_identity(
    builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    identity: &ClientIdentity,
) -> Result<ClientConfig, TargetConfigError> {
    let wrong = |field, problem: String| TargetConfigError::ClientCertificate { field, problem };
    let chain = CertificateDer::pem_slice_iter(&identity.certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong("tls.crt", error.to_string()))?;
    if chain.is_empty() {
        return Err(wrong("tls.crt", "there is no certificate in it".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(&identity.key).map_err(|error| wrong("tls.key", error.to_string()))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| wrong("tls.key", error.to_string()))
}
