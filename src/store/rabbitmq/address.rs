//! Where a broker is and who we are to it: read from the keys of a connection Secret, anew before each connect.

use std::fmt;

use percent_encoding::percent_decode_str;

const PLAIN_PORT: u16 = 5672;
const TLS_PORT: u16 = 5671;

/// Everything needed to open a connection.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// Nodes of one cluster, tried in turn.
    pub hosts: Vec<(String, u16)>,
    /// The virtual host.
    pub virtual_host: String,
    /// The user.
    pub username: String,
    /// The password.
    pub password: String,
    /// Present with `amqps`. Never given up for plain text.
    pub tls: Option<Tls>,
}

/// How the broker's certificate is verified, and ours shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM; absent: the system's certificates.
    pub ca: Option<Vec<u8>>,
    /// PEM certificate chain and key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Verified instead of the host.
    pub server_name: Option<String>,
}

impl fmt::Debug for Tls {
    /// Without key and certificates.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// What a MessageStore says beyond its Secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Instead of the Secret's virtual host.
    pub virtual_host: Option<String>,
    /// How TLS is done. Present: TLS is wanted.
    pub tls: Option<TlsOverrides>,
}

/// What a MessageStore says of TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsOverrides {
    /// Instead of the Secret's `ca.crt`.
    pub ca: Option<Ca>,
    /// Verified instead of the host.
    pub server_name: Option<String>,
}

/// A CA that a MessageStore names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ca {
    /// Its PEM.
    Pem(Vec<u8>),
    /// It is not there; this is its name. Never replaced by other CAs: they would open a door that was to be closed.
    Missing(String),
}

impl Address {
    /// With hosts that a process of another namespace finds: one without a dot is a Service of `namespace`. Certificates
    /// are still verified by the name that was written.
    #[must_use]
    pub fn within(mut self, namespace: &str) -> Self {
        let is_service = |host: &str| !host.contains(['.', ':']) && host != "localhost";
        if let (Some(tls), Some((host, _))) = (&mut self.tls, self.hosts.iter().find(|(host, _)| is_service(host))) {
            tls.server_name.get_or_insert_with(|| host.clone());
        }
        for (host, _) in self.hosts.iter_mut().filter(|(host, _)| is_service(host)) {
            *host = format!("{host}.{namespace}");
        }
        self
    }
}

impl fmt::Debug for Address {
    /// Without the password: this is what logs show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "amqps" } else { "amqp" };
        write!(f, "{scheme}://{}@", self.username)?;
        for (index, (host, port)) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}:{port}", if index == 0 { "" } else { "," })?;
        }
        write!(f, " virtual host {}", self.virtual_host)
    }
}

/// Why a Secret names no broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither form is complete.
    #[error("the Secret needs `uri`, or `host`, `username` and `password`; `{0}` is missing")]
    Missing(&'static str),
    /// The URI can't be read.
    #[error("the Secret's uri is not an amqp:// or amqps:// URL: {0}")]
    Uri(&'static str),
    /// A key is not text.
    #[error("the Secret's `{0}` is not UTF-8 text")]
    NotText(&'static str),
    /// Not a number from 1 to 65535. Not repeated: what stands there may be part of a password.
    #[error("the Secret's port is not a number from 1 to 65535; percent-encode `@`, `/`, `:`, `?` and `#` in a URL")]
    Port,
    /// TLS is configured, and the URL asks for none.
    #[error("{0} is given, and the Secret's uri begins with amqp://, which is plain text; write amqps://")]
    PlainText(&'static str),
    /// The store names a CA that is not there.
    #[error("`broker.tls.caRef` names `{0}`, which does not exist; create it, or correct the reference")]
    MissingCa(String),
    /// A certificate without its key, or the reverse.
    #[error("the Secret has only one of `tls.crt` and `tls.key`; a client certificate needs both")]
    HalfIdentity,
}

impl Address {
    /// Reads the keys of a connection Secret.
    pub fn read(get: impl Fn(&str) -> Option<Vec<u8>>, overrides: &Overrides) -> Result<Self, AddressError> {
        let text = |key: &'static str| -> Result<Option<String>, AddressError> {
            let Some(bytes) = get(key) else { return Ok(None) };
            let text = String::from_utf8(bytes).map_err(|_| AddressError::NotText(key))?;
            // A trailing newline is how `echo` and editors end a value; no name or password contains one.
            Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
        };
        let mut address =
            if let Some(uri) = text("uri")?.map_or_else(|| text("connection_string"), |uri| Ok(Some(uri)))? {
                Self::parse(&uri)?
            } else {
                let port = text("port")?.map(|port| port.trim().to_owned());
                // With separate keys TLS is asked for by its port, or by saying how it is to be done.
                let tls = port.as_deref() == Some("5671") || get("ca.crt").is_some() || overrides.tls.is_some();
                let default = if tls { TLS_PORT } else { PLAIN_PORT }.to_string();
                Self {
                    hosts: parse_hosts(
                        &text("host")?.ok_or(AddressError::Missing("host"))?,
                        port.as_deref().unwrap_or(&default),
                    )?,
                    virtual_host: text("vhost")?.filter(|name| !name.is_empty()).unwrap_or_else(|| "/".to_owned()),
                    username: text("username")?.ok_or(AddressError::Missing("username"))?,
                    password: text("password")?.ok_or(AddressError::Missing("password"))?,
                    tls: tls.then(Tls::default),
                }
            };
        match &mut address.tls {
            Some(tls) => {
                tls.ca = get("ca.crt");
                tls.identity = match (get("tls.crt"), get("tls.key")) {
                    (Some(certificate), Some(key)) => Some((certificate, key)),
                    (None, None) => None,
                    _ => return Err(AddressError::HalfIdentity),
                };
            }
            None if get("ca.crt").is_some() => return Err(AddressError::PlainText("`ca.crt` in the Secret")),
            None => {}
        }
        address.with(overrides)
    }

    /// The same address with what a MessageStore says beyond it.
    pub fn with(mut self, overrides: &Overrides) -> Result<Self, AddressError> {
        if let Some(name) = &overrides.virtual_host {
            self.virtual_host.clone_from(name);
        }
        let Some(wanted) = &overrides.tls else { return Ok(self) };
        let tls = self.tls.as_mut().ok_or(AddressError::PlainText("`broker.tls`"))?;
        match &wanted.ca {
            Some(Ca::Pem(pem)) => tls.ca = Some(pem.clone()),
            Some(Ca::Missing(name)) => return Err(AddressError::MissingCa(name.clone())),
            None => {}
        }
        tls.server_name.clone_from(&wanted.server_name);
        Ok(self)
    }

    /// Whether it leads to the same nodes and virtual host, as the same user.
    pub(super) fn is_same_place(&self, other: &Self) -> bool {
        (&self.hosts, &self.virtual_host, &self.username, self.tls.is_some())
            == (&other.hosts, &other.virtual_host, &other.username, other.tls.is_some())
    }

    /// Reads `amqp[s]://user:password@host:port[,host:port]/virtual%20host`. User, password and virtual host are
    /// percent-encoded; what is not encoded is taken as it stands.
    pub fn parse(uri: &str) -> Result<Self, AddressError> {
        let (scheme, rest) = uri.trim().split_once("://").ok_or(AddressError::Uri("it has no scheme"))?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "amqp" => None,
            "amqps" => Some(Tls::default()),
            _ => return Err(AddressError::Uri("its scheme is neither amqp nor amqps")),
        };
        // The last @ ends the user info, and only after it does a query begin: passwords may hold anything.
        let (user_info, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (hosts, virtual_host) = rest.split_once('/').unwrap_or((rest, ""));
        let (username, password) = match user_info.split_once(':') {
            Some((username, password)) => (decode(username)?, decode(password)?),
            None if user_info.is_empty() => ("guest".to_owned(), "guest".to_owned()),
            None => (decode(user_info)?, String::new()),
        };
        let port = if tls.is_some() { TLS_PORT } else { PLAIN_PORT }.to_string();
        let virtual_host = decode(virtual_host)?;
        Ok(Self {
            hosts: parse_hosts(hosts, &port)?,
            virtual_host: if virtual_host.is_empty() { "/".to_owned() } else { virtual_host },
            username,
            password,
            tls,
        })
    }
}

fn decode(text: &str) -> Result<String, AddressError> {
    percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| AddressError::Uri("a percent-encoded part is not UTF-8"))
}

/// `a,b:5673,[::1]:5672`; a port of its own wins over `port`.
fn parse_hosts(hosts: &str, port: &str) -> Result<Vec<(String, u16)>, AddressError> {
    let parse_port = |text: &str| match text.trim().parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(AddressError::Port),
    };
    let default = parse_port(port)?;
    let parsed: Vec<(String, u16)> = hosts
        .split(',')
        .map(str::trim)
        .filter(|host| !host.is_empty())
        .map(|host| match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, "")) => Ok((address.to_owned(), default)),
            Some((address, port)) => Ok((address.to_owned(), parse_port(port.trim_start_matches(':'))?)),
            // More than one colon is an IPv6 address without brackets.
            None => match host.split_once(':') {
                Some((name, port)) if !port.contains(':') => Ok((name.to_owned(), parse_port(port)?)),
                _ => Ok((host.to_owned(), default)),
            },
        })
        .collect::<Result<_, _>>()?;
    if parsed.is_empty() { Err(AddressError::Missing("host")) } else { Ok(parsed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secret<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<Vec<u8>> + 'a {
        move |key| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| value.as_bytes().to_vec())
    }

    #[test]
    fn a_uri_says_all() {
        let address = Address::parse("amqps://us%40er:p%2Fa:ss@rabbit.shop.svc:5673/sh%2Fop?heartbeat=5").unwrap();
        assert_eq!(address.hosts, [("rabbit.shop.svc".to_owned(), 5673)]);
        assert_eq!((address.username.as_str(), address.password.as_str()), ("us@er", "p/a:ss"));
        assert_eq!(address.virtual_host, "sh/op");
        assert_eq!(address.tls, Some(Tls::default()));
    }

    #[test]
    fn defaults_are_those_of_the_broker() {
        let address = Address::parse("amqp://rabbit").unwrap();
        assert_eq!(address.hosts, [("rabbit".to_owned(), 5672)]);
        assert_eq!(address.virtual_host, "/");
        assert_eq!(address.username, "guest");
        assert_eq!(Address::parse("amqp://rabbit/").unwrap().virtual_host, "/");
    }

    #[test]
    fn separate_keys_name_a_cluster() {
        let get = secret(&[("host", "a, b:5673,[::1]"), ("username", "u"), ("password", "p@ss\n"), ("vhost", "shop")]);
        let address = Address::read(get, &Overrides::default()).unwrap();
        assert_eq!(address.hosts, [("a".into(), 5672), ("b".into(), 5673), ("::1".into(), 5672)]);
        assert_eq!(address.password, "p@ss");
        assert_eq!(address.virtual_host, "shop");
        assert_eq!(address.tls, None);
    }

    #[test]
    fn nothing_that_says_tls_ends_in_plain_text() {
        let pairs = [("host", "a"), ("username", "u"), ("password", "p")];
        let with = |more: &[(&'static str, &'static str)], tls: Option<TlsOverrides>| {
            let pairs = [&pairs[..], more].concat();
            Address::read(secret(&pairs), &Overrides { virtual_host: None, tls })
        };
        let hosts = |address: Result<Address, AddressError>| address.map(|a| (a.hosts[0].1, a.tls.is_some())).unwrap();
        assert_eq!(hosts(with(&[], None)), (5672, false));
        assert_eq!(hosts(with(&[("port", "5671 ")], None)), (5671, true));
        assert_eq!(hosts(with(&[("ca.crt", "x")], None)), (5671, true));
        assert_eq!(hosts(with(&[("port", "7000")], Some(TlsOverrides::default()))), (7000, true));
        let plain = Address::read(secret(&[("uri", "amqp://a"), ("ca.crt", "x")]), &Overrides::default());
        assert!(matches!(plain, Err(AddressError::PlainText(_))));
        let wanted = Overrides { virtual_host: None, tls: Some(TlsOverrides::default()) };
        assert_eq!(Address::parse("amqp://a").unwrap().with(&wanted), Err(AddressError::PlainText("`broker.tls`")));
        let ca = Some(Ca::Missing("Secret/ca".to_owned()));
        let missing = with(&[("ca.crt", "x")], Some(TlsOverrides { ca, server_name: None }));
        assert_eq!(missing, Err(AddressError::MissingCa("Secret/ca".to_owned())));
    }

    #[test]
    fn no_part_of_a_password_is_in_an_error() {
        let address = Address::parse("amqp://u:sec#r?et@h").unwrap();
        assert_eq!((address.password.as_str(), address.hosts[0].0.as_str()), ("sec#r?et", "h"));
        let error = Address::parse("amqp://u:secret").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let missing = Address::read(secret(&[("host", "a")]), &Overrides::default());
        assert_eq!(missing, Err(AddressError::Missing("username")));
        let half = secret(&[("uri", "amqps://a"), ("tls.crt", "x")]);
        assert_eq!(Address::read(half, &Overrides::default()), Err(AddressError::HalfIdentity));
    }

    #[test]
    fn a_password_is_never_shown() {
        let address = Address::parse("amqp://user:secret@a,b/shop").unwrap();
        assert_eq!(format!("{address:?}"), "amqp://user@a:5672,b:5672 virtual host shop");
    }

    proptest! {
        #[test]
        fn no_uri_panics(text in ".*") {
            let _ = Address::parse(&text);
        }

        #[test]
        fn any_password_can_be_written(password in ".*") {
            let encoded = percent_encoding::utf8_percent_encode(&password, percent_encoding::NON_ALPHANUMERIC);
            let address = Address::parse(&format!("amqp://u:{encoded}@host/v")).unwrap();
            prop_assert_eq!(address.password, password);
        }
    }
}
