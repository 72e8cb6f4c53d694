//! From an attempt to the request that goes out.

use ::http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use ::http::uri::PathAndQuery;
use ::http::{HeaderMap, HeaderValue, Method, Request, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::Full;

use super::Outgoing;
use super::config::{Credentials, TargetConfigError, TargetUrl};
use crate::target::Attempt;

/// Headers that belong to one connection, or that we set: never taken over from a message. `Expect` is among them
/// because whoever wanted a `100 Continue` got it when the message was accepted.
const NOT_FORWARDED: [HeaderName; 10] = [
    HOST,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    CONNECTION,
    TE,
    TRAILER,
    UPGRADE,
    EXPECT,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Makes the requests of one target.
pub(super) struct Requests {
    /// Path and query as they stand in the URL.
    base: Uri,
    path: String,
    query: Option<String>,
    host: HeaderValue,
    authorization: Option<HeaderValue>,
    display: String,
}

impl Requests {
    pub(super) fn new(url: &TargetUrl, credentials: Option<&Credentials>) -> Result<Self, TargetConfigError> {
        let text = match &url.query {
            Some(query) => format!("{}?{query}", url.path),
            None => url.path.clone(),
        };
        let base = origin_form(&text).map_err(TargetConfigError::Url)?;
        let host = HeaderValue::from_str(&url.authority)
            .map_err(|_| TargetConfigError::Url("the host has characters that no header can carry".to_owned()))?;
        let scheme = if url.secure { "https" } else { "http" };
        Ok(Self {
            base,
            path: url.path.clone(),
            query: url.query.clone(),
            host,
            authorization: credentials.map(authorization).transpose()?,
            display: format!("{scheme}://{}{}", url.authority, url.path),
        })
    }

    /// The URL without its query.
    pub(super) fn display(&self) -> &str {
        &self.display
    }

    /// The request. An error means that no request can be made of this message, now or later.
    pub(super) fn build(&self, attempt: Attempt) -> Result<Outgoing, String> {
        let Attempt { method, append, headers, body, .. } = attempt;
        let uri = match append.as_deref() {
            None | Some("") => self.base.clone(),
            Some(append) => origin_form(&join(&self.path, self.query.as_deref(), append))?,
        };
        let headers = self.headers(headers, &method, body.is_empty());
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        Ok(request)
    }

    fn headers(&self, mut headers: HeaderMap, method: &Method, empty: bool) -> HeaderMap {
        for name in &NOT_FORWARDED {
            headers.remove(name);
        }
        headers.insert(HOST, self.host.clone());
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        // A body's length is added when it is written. Without one, methods that expect a body say so; RFC 9110, 8.6.
        if empty && matches!(*method, Method::POST | Method::PUT | Method::PATCH) {
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        headers
    }
}

/// `Authorization` for these credentials, kept out of logs.
fn authorization(credentials: &Credentials) -> Result<HeaderValue, TargetConfigError> {
    let text = match credentials {
        Credentials::Basic { username, .. } if username.contains(':') => {
            return Err(TargetConfigError::Credentials(
                "username: basic authentication cannot carry a colon in it; use another user",
            ));
        }
        Credentials::Basic { username, password } => {
            format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
        }
        Credentials::Bearer(token) => format!("Bearer {}", token.trim()),
    };
    let mut value = HeaderValue::from_str(&text).map_err(|_| {
        TargetConfigError::Credentials("the bearer token has characters that no header can carry; check the Secret")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// A stored path and query behind the target's: one slash between the paths, `&` between the queries.
fn join(path: &str, query: Option<&str>, append: &str) -> String {
    let (more_path, more_query) = match append.split_once('?') {
        Some((more_path, more_query)) => (more_path, Some(more_query)),
        None => (append, None),
    };
    let mut text = String::with_capacity(path.len() + query.map_or(0, str::len) + append.len() + 3);
    if more_path.is_empty() {
        text.push_str(path);
    } else {
        text.push_str(path.strip_suffix('/').unwrap_or(path));
        if !more_path.starts_with('/') {
            text.push('/');
        }
        text.push_str(more_path);
    }
    let mut separator = '?';
    for part in [query, more_query].into_iter().flatten().filter(|part| !part.is_empty()) {
        text.push(separator);
        text.push_str(part);
        separator = '&';
    }
    text
}

/// A path and query as a request line carries it. What a URI cannot hold (blanks, controls, non-ASCII of a message
/// that did not come in over HTTP) is percent-encoded; everything else stays as it was stored.
fn origin_form(text: &str) -> Result<Uri, String> {
    let path = if text.bytes().all(is_uri_byte) {
        PathAndQuery::try_from(text)
    } else {
        let mut encoded = String::with_capacity(text.len() + 16);
        for byte in text.bytes() {
            if is_uri_byte(byte) {
                encoded.push(char::from(byte));
            } else {
                encoded.push('%');
                encoded.push(char::from(b"0123456789ABCDEF"[usize::from(byte >> 4)]));
                encoded.push(char::from(b"0123456789ABCDEF"[usize::from(byte & 15)]));
            }
        }
        PathAndQuery::try_from(encoded)
    };
    path.map(Uri::from).map_err(|error| format!("no request can be made: path and query: {error}"))
}

fn is_uri_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'#' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::config::parse_url;
    use super::*;
    use crate::core::message::{Message, MessageId};

    fn requests(url: &str, credentials: Option<&Credentials>) -> Requests {
        Requests::new(&parse_url(url).unwrap(), credentials).unwrap()
    }

    fn attempt(method: Method, append: Option<&str>, body: &'static str) -> Attempt {
        Attempt {
            message: Arc::new(Message::new(MessageId::new("1"), body)),
            method,
            append: append.map(str::to_owned),
            headers: HeaderMap::new(),
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    fn uri(url: &str, append: Option<&str>) -> String {
        requests(url, None).build(attempt(Method::POST, append, "")).unwrap().uri().to_string()
    }

    #[test]
    fn the_stored_path_follows_the_targets_with_one_slash_and_queries_are_joined() {
        assert_eq!(uri("http://t/a/", Some("/b?x=1")), "/a/b?x=1");
        assert_eq!(uri("http://t/a", Some("/b")), "/a/b");
        assert_eq!(uri("http://t", Some("/b")), "/b");
        assert_eq!(uri("http://t/a", Some("/")), "/a/");
        assert_eq!(uri("http://t/a?k=1", Some("/b?x=1")), "/a/b?k=1&x=1");
        assert_eq!(uri("http://t/a?k=1", Some("/b")), "/a/b?k=1");
        assert_eq!(uri("http://t/a", Some("?x=1")), "/a?x=1");
        assert_eq!(uri("http://t/a?k=1", None), "/a?k=1");
        assert_eq!(uri("http://t", None), "/");
    }

    #[test]
    fn what_is_percent_encoded_stays_and_what_no_uri_holds_is_encoded() {
        assert_eq!(uri("http://t", Some("/a%20b?q=%C3%A4")), "/a%20b?q=%C3%A4");
        assert_eq!(uri("http://t", Some("/a b#c?d=\u{e4}")), "/a%20b%23c?d=%C3%A4");
    }

    #[test]
    fn the_host_is_the_targets_without_the_schemes_own_port() {
        let host = |url: &str| {
            let request = requests(url, None).build(attempt(Method::GET, None, "")).unwrap();
            request.headers()[HOST].to_str().unwrap().to_owned()
        };
        assert_eq!(host("http://settle:8080/x"), "settle:8080");
        assert_eq!(host("http://settle:80/x"), "settle");
        assert_eq!(host("https://settle:443"), "settle");
        assert_eq!(host("https://settle:80"), "settle:80");
        assert_eq!(host("http://[::1]:8080"), "[::1]:8080");
    }

    #[test]
    fn headers_of_a_connection_never_come_from_a_message() {
        let mut sent = attempt(Method::POST, None, "x");
        for name in ["host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade", "expect"]
        {
            sent.headers.insert(HeaderName::from_static(name), HeaderValue::from_static("evil"));
        }
        sent.headers.append("x-kept", HeaderValue::from_static("1"));
        sent.headers.append("x-kept", HeaderValue::from_bytes(b"caf\xe9").unwrap());
        let request = requests("http://t", None).build(sent).unwrap();
        assert_eq!(request.headers()[HOST], "t");
        assert_eq!(request.headers().get_all("x-kept").iter().count(), 2);
        assert_eq!(request.headers().len(), 3);
    }

    #[test]
    fn an_empty_post_says_so_and_an_empty_get_does_not() {
        let length = |method| {
            let request = requests("http://t", None).build(attempt(method, None, "")).unwrap();
            request.headers().get(CONTENT_LENGTH).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(length(Method::POST).as_deref(), Some("0"));
        assert_eq!(length(Method::PUT).as_deref(), Some("0"));
        assert_eq!(length(Method::PATCH).as_deref(), Some("0"));
        assert_eq!(length(Method::GET), None);
        assert_eq!(length(Method::DELETE), None);
    }

    #[test]
    fn credentials_replace_a_stored_authorization() {
        let basic = Credentials::Basic { username: "käthe".into(), password: "p:ä\u{1f600} ".into() };
        let mut sent = attempt(Method::POST, None, "");
        sent.headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer stored"));
        sent.headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer too"));
        let request = requests("http://t", Some(&basic)).build(sent).unwrap();
        let values: Vec<_> = request.headers().get_all(AUTHORIZATION).iter().collect();
        let expected = format!("Basic {}", STANDARD.encode("käthe:p:ä\u{1f600} "));
        assert_eq!(values, [expected.as_str()]);
        assert!(values[0].is_sensitive());

        let bearer = Credentials::Bearer("abc.def\n".into());
        let request = requests("http://t", Some(&bearer)).build(attempt(Method::POST, None, "")).unwrap();
        assert_eq!(request.headers()[AUTHORIZATION], "Bearer abc.def");
    }

    #[test]
    fn credentials_that_no_header_can_carry_are_refused_without_showing_them() {
        let url = parse_url("http://t").unwrap();
        let colon = Credentials::Basic { username: "a:b".into(), password: "secret".into() };
        let newline = Credentials::Bearer("secret\nx".into());
        for credentials in [colon, newline] {
            let error = Requests::new(&url, Some(&credentials)).err().unwrap();
            assert!(!error.to_string().contains("secret"), "{error}");
            assert!(!format!("{credentials:?}").contains("secret"));
        }
    }

    #[test]
    fn urls_that_cannot_be_called_are_refused() {
        for url in
            ["", "settle", "/x", "ftp://t/", "http://", "http://u:p@t/", "http://t:99999/", "http://t:0/", "http:// t"]
        {
            assert!(parse_url(url).is_err(), "{url}");
        }
    }

    proptest! {
        #[test]
        fn any_stored_path_makes_a_request_line_without_blanks_or_controls(append in "/\\PC{0,60}|/.{0,60}") {
            let target = uri("http://t/base?k=1", Some(&append));
            prop_assert!(target.bytes().all(|byte| byte.is_ascii_graphic()), "{}", target);
            prop_assert!(target.starts_with("/base/"), "{}", target);
        }
    }
}
