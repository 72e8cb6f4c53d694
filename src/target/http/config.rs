//! What an HTTP target is made of, checked before anything is dialled.

use std::fmt;
use std::time::Duration;

use ::http::Uri;
use ::http::uri::Scheme;

/// Everything an [`super::HttpTarget`] needs. A changed Secret makes a new target.
#[derive(Debug, Clone)]
pub struct HttpTargetConfig {
    /// `http` or `https`, without user info. Its path and query are those of each request.
    pub url: String,
    /// For one connection: name, connect and TLS handshake together.
    pub connect_timeout: Duration,
    /// For one attempt up to the complete response head, and again for its body.
    pub timeout: Duration,
    /// Whether the bodies of all answers are wanted, or of those only that a caller waits for.
    pub reads_bodies: bool,
    /// Bytes of an answer's body that are kept; a longer one is unusable.
    pub max_body: usize,
    /// Idle connections that are kept: the attempts that can be in flight at once.
    pub max_idle: usize,
    /// Whether loopback addresses are refused, as in a cluster.
    pub refuse_loopback: bool,
    /// TLS beyond the defaults; only used with `https`.
    pub tls: TlsMaterial,
    /// Replaces an `Authorization` header that the message brings.
    pub credentials: Option<Credentials>,
}

impl HttpTargetConfig {
    /// A target with the product's defaults: connect 5 s, time-out 30 s, one connection, no body wanted.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(30),
            reads_bodies: false,
            max_body: 1 << 20,
            max_idle: 1,
            refuse_loopback: false,
            tls: TlsMaterial::default(),
            credentials: None,
        }
    }
}

/// How a TLS target is verified, and what we show it.
#[derive(Debug, Clone, Default)]
pub struct TlsMaterial {
    /// CA certificates (PEM). Present: only these are trusted; absent: those of the system.
    pub ca: Option<Vec<u8>>,
    /// The certificate we show.
    pub client: Option<ClientIdentity>,
    /// The name to ask for and to verify instead of the URL's host.
    pub server_name: Option<String>,
}

/// A client certificate with its key. Its `Debug` shows neither.
#[derive(Clone)]
pub struct ClientIdentity {
    /// `tls.crt`: the certificate and its chain (PEM).
    pub certificate: Vec<u8>,
    /// `tls.key`: the private key (PEM).
    pub key: Vec<u8>,
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientIdentity(…)")
    }
}

/// What goes into `Authorization`. Its `Debug` shows no secret.
#[derive(Clone)]
pub enum Credentials {
    /// RFC 7617, in UTF-8.
    Basic {
        /// Any character but a colon, which the scheme cannot carry.
        username: String,
        /// Any characters.
        password: String,
    },
    /// RFC 6750. White space around the token (a Secret's last newline) is not part of it.
    Bearer(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(…)",
            Self::Bearer(_) => "Bearer(…)",
        })
    }
}

/// Why no target can be made of a configuration. Never holds a secret or a query.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetConfigError {
    /// The URL cannot be called.
    #[error("url: {0}")]
    Url(String),
    /// The CA bundle holds no usable certificate.
    #[error("tls ca: {0}; give one or more certificates in PEM")]
    Ca(String),
    /// No CA was given, and the system has none.
    #[error("tls: the system's CA certificates cannot be loaded ({0}); set tls.caRef, or install them")]
    SystemRoots(String),
    /// The client certificate cannot be used.
    #[error("tls client certificate: {field}: {problem}; give certificate and key in PEM that belong together")]
    ClientCertificate {
        /// The key of the Secret.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The server name is no name.
    #[error("tls serverName: `{0}` is neither a host name nor an address")]
    ServerName(String),
    /// The credentials cannot be put into a header.
    #[error("auth: {0}")]
    Credentials(&'static str),
}

/// A URL that can be called, in parts.
#[derive(Debug, Clone)]
pub(super) struct TargetUrl {
    /// Whether it is `https`.
    pub(super) secure: bool,
    /// Without the brackets of an IPv6 literal.
    pub(super) host: String,
    pub(super) port: u16,
    /// Host and port for the `Host` header; the port left out if it is the scheme's own.
    pub(super) authority: String,
    /// Begins with `/`.
    pub(super) path: String,
    pub(super) query: Option<String>,
}

/// Takes a target's URL apart.
pub(super) fn parse_url(text: &str) -> Result<TargetUrl, TargetConfigError> {
    let wrong = |problem: String| TargetConfigError::Url(problem);
    let uri: Uri = text.parse().map_err(|error| wrong(format!("{error}; write it like http://host:8080/path")))?;
    let secure = match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => false,
        Some(scheme) if *scheme == Scheme::HTTPS => true,
        Some(scheme) => return Err(wrong(format!("scheme `{scheme}` is not supported; use http or https"))),
        None => return Err(wrong("no scheme; write it like http://host:8080/path".to_owned())),
    };
    let authority = uri.authority().ok_or_else(|| wrong("no host; write it like http://host:8080/path".to_owned()))?;
    if authority.as_str().contains('@') {
        return Err(wrong("user info does not belong into a URL; use auth.basic".to_owned()));
    }
    let bracketed = authority.host();
    let host = bracketed.trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.is_empty() {
        return Err(wrong("no host; write it like http://host:8080/path".to_owned()));
    }
    let own_port = if secure { 443 } else { 80 };
    let port = match authority.port() {
        Some(port) => port.as_u16(),
        // `host:` with an empty port is the scheme's own, as RFC 3986 has it.
        None if authority.as_str().len() <= bracketed.len() + 1 => own_port,
        None => return Err(wrong("the port is not a number up to 65535".to_owned())),
    };
    if port == 0 {
        return Err(wrong("port 0 cannot be called".to_owned()));
    }
    let authority = if port == own_port { bracketed.to_owned() } else { format!("{bracketed}:{port}") };
    let path = if uri.path().is_empty() { "/" } else { uri.path() }.to_owned();
    Ok(TargetUrl { secure, host, port, authority, path, query: uri.query().map(str::to_owned) })
}
