//! What the flags `--route NAME=ADDR` and `--service NAME=URL` say, and which object they mean.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use http::Uri;

use crate::core::duration::{self, InvalidDuration};

/// A name as a user types it: `NAME`, or `NAMESPACE/NAME` where it is ambiguous.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    namespace: Option<String>,
    name: String,
}

impl Wanted {
    /// Whether the object of this namespace and name is meant.
    pub fn is(&self, namespace: &str, name: &str) -> bool {
        self.name == name && self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
    }

    /// The namespace, if one was given, and the name.
    pub fn parts(&self) -> (Option<&str>, &str) {
        (self.namespace.as_deref(), &self.name)
    }

    /// The one of `objects` (namespace and name) that is meant.
    pub fn find<'a>(&self, objects: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(&'a str, &'a str), Which> {
        let mut found = objects.into_iter().filter(|(namespace, name)| self.is(namespace, name));
        let Some(first) = found.next() else { return Err(Which::None(self.to_string())) };
        match found.next() {
            None => Ok(first),
            Some(second) => Err(Which::Several {
                wanted: self.to_string(),
                first: format!("{}/{}", first.0, first.1),
                second: format!("{}/{}", second.0, second.1),
            }),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl FromStr for Wanted {
    type Err = InvalidFlag;

    fn from_str(text: &str) -> Result<Self, InvalidFlag> {
        let valid = |part: &str| !part.is_empty() && !part.contains(['/', '=']);
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        if !valid(name) || !namespace.is_none_or(valid) {
            return Err(InvalidFlag::Name(text.to_owned()));
        }
        Ok(Self { namespace: namespace.map(str::to_owned), name: name.to_owned() })
    }
}

/// Why a name does not mean exactly one object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Which {
    /// No such object.
    #[error("`{0}` is not among the objects")]
    None(String),
    /// More than one.
    #[error("`{wanted}` is ambiguous: it may be {first} or {second}; write NAMESPACE/NAME")]
    Several {
        /// As typed.
        wanted: String,
        /// One that it may be.
        first: String,
        /// Another.
        second: String,
    },
}

/// `NAME=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment<T> {
    /// The object.
    pub name: Wanted,
    /// What it gets.
    pub value: T,
}

fn divide(text: &str) -> Result<(Wanted, &str), InvalidFlag> {
    let (name, value) = text.split_once('=').ok_or_else(|| InvalidFlag::NoValue(text.to_owned()))?;
    Ok((name.parse()?, value))
}

/// `NAME=ADDR`.
pub fn route(text: &str) -> Result<Assignment<SocketAddr>, InvalidFlag> {
    let (name, value) = divide(text)?;
    Ok(Assignment { name, value: address(value)? })
}

/// `NAME=URL`.
pub fn service(text: &str) -> Result<Assignment<Uri>, InvalidFlag> {
    let (name, value) = divide(text)?;
    Ok(Assignment { name, value: base_url(value)? })
}

/// `IP:PORT` or `localhost:PORT`; host names are not resolved, so that nothing listens where nobody expects it.
pub fn address(text: &str) -> Result<SocketAddr, InvalidFlag> {
    let invalid = || InvalidFlag::Address(text.to_owned());
    match text.strip_prefix("localhost:") {
        Some(port) => Ok(SocketAddr::from(([127, 0, 0, 1], port.parse().map_err(|_| invalid())?))),
        None => text.parse().map_err(|_| invalid()),
    }
}

/// `250ms`, `3s`, `1m30s`, `24h`.
pub fn duration(text: &str) -> Result<Duration, InvalidDuration> {
    duration::parse(text)
}

/// `http://HOST[:PORT][/PATH]`, or https; no user info, no query.
pub fn base_url(text: &str) -> Result<Uri, InvalidFlag> {
    let invalid = || InvalidFlag::Url(text.to_owned());
    let url: Uri = text.parse().map_err(|_| invalid())?;
    let authority = url.authority().ok_or_else(invalid)?;
    let scheme = url.scheme_str().ok_or_else(invalid)?;
    let plain = matches!(scheme, "http" | "https") && !authority.as_str().contains('@');
    if !plain || url.query().is_some() || authority.host().is_empty() {
        return Err(invalid());
    }
    Ok(url)
}

/// A flag's value that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFlag {
    /// No `=`.
    #[error("`{0}` has no `=`; write NAME=VALUE")]
    NoValue(String),
    /// Not a name.
    #[error("`{0}` is not the name of an object; write NAME or NAMESPACE/NAME")]
    Name(String),
    /// Not an address.
    #[error("`{0}` is not an address; write IP:PORT, as 127.0.0.1:8080 (port 0 takes any free one)")]
    Address(String),
    /// Not a URL.
    #[error("`{0}` is not the URL of a service; write http://HOST:PORT, without user info and query")]
    Url(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_gets_an_address_of_its_own() {
        let flag = route("shop/orders=127.0.0.1:0").unwrap();
        assert!(flag.name.is("shop", "orders") && !flag.name.is("default", "orders"));
        assert_eq!(flag.value, "127.0.0.1:0".parse().unwrap());
        assert_eq!(route("orders=localhost:81").unwrap().value, "127.0.0.1:81".parse().unwrap());
    }

    #[test]
    fn a_service_gets_a_url() {
        let flag = service("settle=http://127.0.0.1:9000/base").unwrap();
        assert!(flag.name.is("any", "settle"));
        assert_eq!(flag.value.to_string(), "http://127.0.0.1:9000/base");
    }

    #[test]
    fn what_can_not_be_read_is_refused_with_a_remedy() {
        for text in ["orders", "=127.0.0.1:1", "a/b/c=127.0.0.1:1", "/a=127.0.0.1:1", "a=127.0.0.1", "a=host:80", "a="]
        {
            assert!(route(text).unwrap_err().to_string().contains("; write "), "{text}");
        }
        for text in ["a=host:80", "a=ftp://host", "a=http://user@host", "a=http://host/?q=1", "a=/path", "a="] {
            assert!(service(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bare_name_must_mean_one_object() {
        let objects = [("a", "orders"), ("b", "orders"), ("b", "bills")];
        let find = |text: &str| text.parse::<Wanted>().unwrap().find(objects);
        assert_eq!(find("bills"), Ok(("b", "bills")));
        assert_eq!(find("a/orders"), Ok(("a", "orders")));
        assert!(matches!(find("orders"), Err(Which::Several { .. })));
        assert!(matches!(find("others"), Err(Which::None(_))));
    }
}
