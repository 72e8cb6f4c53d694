//! Which headers of a request are stored.
//!
//! Everything end to end, with all its values, bytes unchanged. What belongs to one connection, to the length of
//! one body, or to us is left out: a client can never write a header that we, the broker or the target would read
//! as ours.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// What a request's headers come to.
#[derive(Debug, Default)]
pub(super) struct Stored {
    pub(super) content_type: Option<HeaderValue>,
    pub(super) content_encoding: Option<HeaderValue>,
    pub(super) headers: HeaderMap,
}

/// Takes the headers of a request apart. The caller's credentials are kept only if they are to be forwarded.
pub(super) fn stored(mut headers: HeaderMap, forward_credentials: bool) -> Stored {
    let content_type = headers.remove(header::CONTENT_TYPE);
    // Several encodings in several lines are one list.
    let content_encoding = joined(&headers, &header::CONTENT_ENCODING);
    let connection = connection_options(&headers);
    let kept = only(headers, |name| !is_left_out(name, forward_credentials) && !connection.contains(name));
    Stored { content_type, content_encoding, headers: kept }
}

/// The headers of a reply that are for the caller.
pub(super) fn end_to_end(headers: HeaderMap) -> HeaderMap {
    only(headers, |name| !is_left_out(name, true))
}

/// Those whose names are wanted, with all their values.
fn only(headers: HeaderMap, is_wanted: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(headers.len());
    let mut current = None;
    for (name, value) in headers {
        // A name comes with its first value only.
        if let Some(name) = name {
            current = is_wanted(&name).then_some(name);
        }
        if let Some(name) = &current {
            kept.append(name.clone(), value);
        }
    }
    kept
}

/// An HTTP/2 client may send each cookie as a field of its own; for everybody else they are one field, joined as
/// RFC 9113 (8.2.3) says.
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    if let Some(cookies) = joined_with(headers, &header::COOKIE, b"; ") {
        headers.insert(header::COOKIE, cookies);
    }
}

/// The value of a list header, its lines joined.
pub(super) fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    joined_with(headers, name, b", ")
}

fn joined_with(headers: &HeaderMap, name: &HeaderName, separator: &[u8]) -> Option<HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let mut more = values.peekable();
    if more.peek().is_none() {
        return Some(first.clone());
    }
    let mut bytes = first.as_bytes().to_vec();
    for value in more {
        bytes.extend_from_slice(separator);
        bytes.extend_from_slice(value.as_bytes());
    }
    HeaderValue::from_bytes(&bytes).ok()
}

/// The headers that `Connection` names: they are for this connection only.
fn connection_options(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter();
    values
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        // Such a header would be unusual, and removing these would change what the message is.
        .filter(|name| !matches!(*name, header::CONTENT_TYPE | header::CONTENT_ENCODING))
        .collect()
}

/// For the proxy before us.
const PROXY_HOP: [&str; 4] =
    ["proxy-connection", "proxy-authorization", "proxy-authenticate", "proxy-authentication-info"];

fn is_left_out(name: &HeaderName, forward_credentials: bool) -> bool {
    let text = name.as_str();
    match text {
        "connection" | "host" | "content-length" | "content-encoding" | "transfer-encoding" | "te" | "trailer"
        | "upgrade" | "keep-alive" | "expect" | "http2-settings" => true,
        // Others that begin so (`Proxy-Status`) are end to end.
        name if name.starts_with("proxy-") => PROXY_HOP.contains(&name),
        "authorization" | "cookie" => !forward_credentials,
        _ => text.starts_with("stagepost-") || text.starts_with("x-stagepost-"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(lines: &[(&str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    fn kept(lines: &[(&str, &[u8])], forward_credentials: bool) -> Vec<(String, Vec<u8>)> {
        let stored = stored(request(lines), forward_credentials);
        stored.headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect()
    }

    #[test]
    fn end_to_end_headers_keep_their_order_values_and_bytes() {
        let lines: [(&str, &[u8]); 6] = [
            ("x-b", b"1"),
            ("accept", b"*/*"),
            ("x-a", b"= ; , :"),
            ("x-a", b"\xc3\xa4\xff"),
            ("x-a", b""),
            ("idempotency-key", b"k"),
        ];
        let expected: Vec<_> = lines.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect();
        assert_eq!(kept(&lines, false), expected);
    }

    #[test]
    fn what_belongs_to_the_connection_is_left_out() {
        let lines: [(&str, &[u8]); 13] = [
            ("connection", b"close, X-Secret"),
            ("connection", b"x-other"),
            ("x-secret", b"1"),
            ("x-other", b"1"),
            ("keep-alive", b"timeout=5"),
            ("transfer-encoding", b"chunked"),
            ("te", b"trailers"),
            ("trailer", b"x"),
            ("upgrade", b"h2c"),
            ("host", b"a"),
            ("content-length", b"3"),
            ("expect", b"100-continue"),
            ("x-end", b"1"),
        ];
        assert_eq!(kept(&lines, true), [("x-end".to_owned(), b"1".to_vec())]);
    }

    #[test]
    fn of_a_proxys_headers_only_those_for_one_hop_are_left_out() {
        let lines: [(&str, &[u8]); 6] = [
            ("proxy-connection", b"keep-alive"),
            ("proxy-authorization", b"Basic eA=="),
            ("proxy-authenticate", b"Basic"),
            ("proxy-authentication-info", b"x"),
            ("proxy-status", b"cache; hit"),
            ("proxy-features", b"x"),
        ];
        let names: Vec<_> = kept(&lines, true).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["proxy-status", "proxy-features"]);
    }

    #[test]
    fn our_own_names_cannot_be_written_by_a_client() {
        let lines: [(&str, &[u8]); 4] = [
            ("stagepost-attempt", b"7"),
            ("x-stagepost-path", b"/admin"),
            ("x-death", b"stays, under a name of ours"),
            ("stagepostal", b"1"),
        ];
        let names: Vec<_> = kept(&lines, true).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["x-death", "stagepostal"]);
    }

    #[test]
    fn credentials_are_kept_only_if_they_are_forwarded_and_a_proxys_never() {
        let lines: [(&str, &[u8]); 3] =
            [("authorization", b"Basic eA=="), ("cookie", b"a=b"), ("proxy-authorization", b"Basic eA==")];
        assert!(kept(&lines, false).is_empty());
        let names: Vec<_> = kept(&lines, true).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["authorization", "cookie"]);
    }

    #[test]
    fn content_type_and_encoding_have_fields_of_their_own() {
        let lines: [(&str, &[u8]); 3] =
            [("content-type", b"a/b; c=\"d\""), ("content-encoding", b"gzip"), ("content-encoding", b"br")];
        let stored = stored(request(&lines), false);
        assert_eq!(stored.content_type.unwrap(), "a/b; c=\"d\"");
        assert_eq!(stored.content_encoding.unwrap(), "gzip, br");
        assert!(stored.headers.is_empty());
    }
}
