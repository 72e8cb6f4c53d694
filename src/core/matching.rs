//! Path patterns: which rules a request's path belongs to, and which paths are refused before any rule is asked.
//!
//! Inputs: patterns as users write them, the path of a request, still percent-encoded. Outputs: the rules whose
//! pattern matches, in the order of the rules, and the segments by name.
//!
//! The meaning of a pattern:
//!
//! - Segments are compared percent-decoded, on both sides: `/caf%C3%A9` and `/café` are the same path.
//! - `{x}` is one segment, never an empty one.
//! - `{*rest}` is everything behind its slash, and may be empty: `/files/{*rest}` matches `/files/` and
//!   `/files/a/b`, but not `/files`.
//! - A trailing slash is significant: `/a` and `/a/` are two paths. No other segment of a pattern is empty.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

/// One segment of a pattern. A trailing slash is a last, empty literal.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    One(String),
    Rest(String),
}

/// A compiled path pattern, see the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    segments: Vec<Segment>,
    text: String,
}

/// Why a text is not a path pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It does not begin with a slash.
    #[error("path pattern `{0}` must begin with `/`")]
    NoLeadingSlash(String),
    /// It holds `?`, `#`, a control character or a blank.
    #[error("path pattern `{0}` holds `{1}`; a pattern is a path only, without query, fragment or blanks")]
    BadCharacter(String, char),
    /// Two slashes in a row.
    #[error("path pattern `{0}` has an empty segment; write one slash instead of two")]
    EmptySegment(String),
    /// No request could have such a path.
    #[error("path pattern `{0}` can never match: {1}")]
    Unmatchable(String, BadPath),
    /// Braces that are not a whole segment.
    #[error("segment `{0}` mixes text and braces; `{{name}}` must be a whole segment")]
    MixedSegment(String),
    /// A name that templates could not use.
    #[error("`{0}` is not a name for a segment; use letters, digits and `_`, not a digit first")]
    BadName(String),
    /// One name twice.
    #[error("the segment name `{0}` is used twice")]
    DuplicateName(String),
    /// `{*rest}` before the end.
    #[error("`{{*{0}}}` must be the last segment")]
    RestNotLast(String),
}

/// Why a request's path is refused with 400 before any rule is asked.
///
/// Everything here is a path that two programs read differently, so that a rule could be matched for one path and
/// the target called with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// Not a path at all.
    #[error("it does not begin with `/`")]
    NoLeadingSlash,
    /// `.` or `..` as a segment, in any encoding, also before path parameters (`..;x`).
    #[error("`.` and `..` are not allowed as segments")]
    DotSegment,
    /// `%2f`.
    #[error("an encoded slash (`%2f`) is not allowed")]
    EncodedSlash,
    /// `\` or `%5c`.
    #[error("a backslash is not allowed")]
    Backslash,
    /// `%00`, or another control character.
    #[error("control characters are not allowed")]
    Control,
    /// A `%` without two hexadecimal digits.
    #[error("`%` must be followed by two hexadecimal digits")]
    BadEscape,
    /// Percent-decoded, it is not UTF-8. Overlong forms of `.` and `/` are among these.
    #[error("decoded, it is not UTF-8")]
    NotUtf8,
}

/// Checks the path of a request, without query: see [`BadPath`].
pub fn check_path(path: &str) -> Result<(), BadPath> {
    let Some(rest) = path.strip_prefix('/') else { return Err(BadPath::NoLeadingSlash) };
    rest.split('/').try_for_each(check_segment)
}

fn check_segment(segment: &str) -> Result<(), BadPath> {
    let decoded = decode(segment)?;
    for byte in decoded.bytes() {
        match byte {
            b'/' => return Err(BadPath::EncodedSlash),
            b'\\' => return Err(BadPath::Backslash),
            0..0x20 | 0x7f => return Err(BadPath::Control),
            _ => {}
        }
    }
    let name = decoded.split_once(';').map_or(&*decoded, |(name, _)| name);
    if name == "." || name == ".." { Err(BadPath::DotSegment) } else { Ok(()) }
}

/// Percent-decodes one segment; borrows if there is nothing to decode.
fn decode(segment: &str) -> Result<Cow<'_, str>, BadPath> {
    if !segment.contains('%') {
        return Ok(Cow::Borrowed(segment));
    }
    let mut bytes = segment.bytes();
    let mut out = Vec::with_capacity(segment.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || bytes.next().and_then(hex).ok_or(BadPath::BadEscape);
            out.push(digit()? << 4 | digit()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).map(Cow::Owned).map_err(|_| BadPath::NotUtf8)
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// As [`decode`], for a path that was checked; what was not checked is taken as it stands.
fn decode_or_keep(segment: &str) -> Cow<'_, str> {
    decode(segment).unwrap_or(Cow::Borrowed(segment))
}

impl PathPattern {
    /// Compiles a pattern.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let Some(rest) = text.strip_prefix('/') else { return Err(PatternError::NoLeadingSlash(text.to_owned())) };
        let bad = |c: &char| matches!(c, '?' | '#') || c.is_control() || c.is_whitespace();
        if let Some(character) = text.chars().find(bad) {
            return Err(PatternError::BadCharacter(text.to_owned(), character));
        }
        let last = rest.split('/').count() - 1;
        let mut segments = Vec::with_capacity(last + 1);
        let mut names = HashSet::new();
        for (at, raw) in rest.split('/').enumerate() {
            if raw.is_empty() && at != last {
                return Err(PatternError::EmptySegment(text.to_owned()));
            }
            let segment = parse_segment(raw, text)?;
            if let Segment::One(name) | Segment::Rest(name) = &segment
                && !names.insert(name.clone())
            {
                return Err(PatternError::DuplicateName(name.clone()));
            }
            if let Segment::Rest(name) = &segment
                && at != last
            {
                return Err(PatternError::RestNotLast(name.clone()));
            }
            segments.push(segment);
        }
        Ok(Self { segments, text: text.to_owned() })
    }

    /// The segments by name if the pattern matches the path, percent-decoded; `None` if it does not match.
    pub fn matches(&self, path: &str) -> Option<BTreeMap<String, String>> {
        let mut rest = path.strip_prefix('/');
        let mut named = BTreeMap::new();
        for segment in &self.segments {
            let whole = rest?;
            let (raw, behind) = match whole.split_once('/') {
                Some((raw, behind)) => (raw, Some(behind)),
                None => (whole, None),
            };
            match segment {
                Segment::Literal(text) if *text == decode_or_keep(raw) => {}
                Segment::One(name) if !raw.is_empty() => {
                    named.insert(name.clone(), decode_or_keep(raw).into_owned());
                }
                Segment::Rest(name) => {
                    named.insert(name.clone(), decode_or_keep(whole).into_owned());
                    return Some(named);
                }
                Segment::Literal(_) | Segment::One(_) => return None,
            }
            rest = behind;
        }
        if rest.is_none() { Some(named) } else { None }
    }

    /// Whether there is a path that both match.
    pub fn overlaps(&self, other: &Self) -> bool {
        let mut ours = self.segments.iter();
        let mut theirs = other.segments.iter();
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) | (Some(Segment::Rest(_)), Some(_)) | (Some(_), Some(Segment::Rest(_))) => return true,
                (None, Some(_)) | (Some(_), None) => return false,
                (Some(Segment::Literal(a)), Some(Segment::Literal(b))) if a != b => return false,
                (Some(Segment::One(_)), Some(Segment::Literal(text)))
                | (Some(Segment::Literal(text)), Some(Segment::One(_)))
                    if text.is_empty() =>
                {
                    return false;
                }
                _ => {}
            }
        }
    }

    /// The names of its segments, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::One(name) | Segment::Rest(name) => Some(name.as_str()),
            Segment::Literal(_) => None,
        })
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for PathPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        Self::parse(text)
    }
}

fn parse_segment(raw: &str, pattern: &str) -> Result<Segment, PatternError> {
    if let Some(name) = raw.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')) {
        return match name.strip_prefix('*') {
            Some(name) => parse_name(name).map(Segment::Rest),
            None => parse_name(name).map(Segment::One),
        };
    }
    if raw.contains(['{', '}']) {
        return Err(PatternError::MixedSegment(raw.to_owned()));
    }
    check_segment(raw).map_err(|reason| PatternError::Unmatchable(pattern.to_owned(), reason))?;
    Ok(Segment::Literal(decode_or_keep(raw).into_owned()))
}

fn parse_name(name: &str) -> Result<String, PatternError> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    if first && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        Ok(name.to_owned())
    } else {
        Err(PatternError::BadName(name.to_owned()))
    }
}

/// An index over patterns: finds all that match a path without asking each.
///
/// A tree by segment. A lookup visits a node at most once, and only nodes whose patterns agree with the path so far.
#[derive(Debug, Clone, Default)]
pub struct PathTable {
    root: Node,
}

#[derive(Debug, Clone, Default)]
struct Node {
    literals: HashMap<String, Node>,
    one: Option<Box<Node>>,
    /// Patterns that end here.
    ends: Vec<usize>,
    /// Patterns whose `{*rest}` begins here.
    rests: Vec<usize>,
}

impl PathTable {
    /// Indexes patterns; a pattern's number is its place in the iteration.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a PathPattern>) -> Self {
        let mut root = Node::default();
        for (number, pattern) in patterns.into_iter().enumerate() {
            root.insert(&pattern.segments, number);
        }
        Self { root }
    }

    /// The numbers of all patterns that match, ascending: the first is the one that wins.
    pub fn find(&self, path: &str) -> Vec<usize> {
        let mut found = Vec::new();
        if let Some(rest) = path.strip_prefix('/') {
            self.root.find(Some(rest), &mut found);
        }
        found.sort_unstable();
        found
    }
}

impl Node {
    fn insert(&mut self, segments: &[Segment], number: usize) {
        let mut node = self;
        for segment in segments {
            node = match segment {
                Segment::Literal(text) => node.literals.entry(text.clone()).or_default(),
                Segment::One(_) => node.one.get_or_insert_default(),
                Segment::Rest(_) => {
                    node.rests.push(number);
                    return;
                }
            };
        }
        node.ends.push(number);
    }

    /// `rest` is what follows the slash behind this node; none: the path ends here. The depth of the recursion is
    /// bounded by the longest pattern, not by the path.
    fn find(&self, rest: Option<&str>, found: &mut Vec<usize>) {
        let Some(rest) = rest else {
            found.extend_from_slice(&self.ends);
            return;
        };
        found.extend_from_slice(&self.rests);
        let (raw, behind) = match rest.split_once('/') {
            Some((raw, behind)) => (raw, Some(behind)),
            None => (rest, None),
        };
        if let Some(node) = self.literals.get(&*decode_or_keep(raw)) {
            node.find(behind, found);
        }
        if let Some(node) = &self.one
            && !raw.is_empty()
        {
            node.find(behind, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> PathPattern {
        PathPattern::parse(text).unwrap()
    }

    fn named(text: &str, path: &str) -> Option<Vec<(String, String)>> {
        pattern(text).matches(path).map(|names| names.into_iter().collect())
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_literal_matches_itself_in_any_encoding() {
        assert_eq!(named("/orders/new", "/orders/new"), Some(pairs(&[])));
        assert_eq!(named("/orders", "/%6frders"), Some(pairs(&[])));
        assert_eq!(named("/café", "/caf%C3%A9"), Some(pairs(&[])));
        assert_eq!(named("/caf%c3%a9", "/café"), Some(pairs(&[])));
        assert_eq!(named("/orders", "/Orders"), None);
        assert_eq!(named("/orders", "/orders/new"), None);
        assert_eq!(named("/", "/"), Some(pairs(&[])));
        assert_eq!(named("/", "*"), None);
    }

    #[test]
    fn a_named_segment_is_one_decoded_segment() {
        let text = "/healthcare/categories/{category}/reserve";
        assert_eq!(named(text, "/healthcare/categories/surgery/reserve"), Some(pairs(&[("category", "surgery")])));
        assert_eq!(named(text, "/healthcare/categories/a%20b/reserve"), Some(pairs(&[("category", "a b")])));
        assert_eq!(named(text, "/healthcare/categories//reserve"), None);
        assert_eq!(named(text, "/healthcare/categories/a/b/reserve"), None);
    }

    #[test]
    fn the_remainder_may_be_empty_but_needs_its_slash() {
        assert_eq!(named("/files/{*rest}", "/files/"), Some(pairs(&[("rest", "")])));
        assert_eq!(named("/files/{*rest}", "/files/a/b%20c"), Some(pairs(&[("rest", "a/b c")])));
        assert_eq!(named("/files/{*rest}", "/files"), None);
        assert_eq!(named("/{*rest}", "/"), Some(pairs(&[("rest", "")])));
        assert_eq!(named("/{a}/{*rest}", "/x/y"), Some(pairs(&[("a", "x"), ("rest", "y")])));
    }

    #[test]
    fn a_trailing_slash_is_significant() {
        assert_eq!(named("/a", "/a/"), None);
        assert_eq!(named("/a/", "/a"), None);
        assert_eq!(named("/a/", "/a/"), Some(pairs(&[])));
        assert_eq!(named("/{x}", "/a/"), None);
        assert_eq!(named("/{x}/", "/a/"), Some(pairs(&[("x", "a")])));
    }

    #[test]
    fn a_pattern_that_could_not_work_is_refused_with_the_reason() {
        use PatternError as E;
        let error = |text: &str| PathPattern::parse(text).unwrap_err();
        assert_eq!(error("orders"), E::NoLeadingSlash("orders".into()));
        assert_eq!(error(""), E::NoLeadingSlash(String::new()));
        assert_eq!(error("/a?b=c"), E::BadCharacter("/a?b=c".into(), '?'));
        assert_eq!(error("/a b"), E::BadCharacter("/a b".into(), ' '));
        assert_eq!(error("/a//b"), E::EmptySegment("/a//b".into()));
        assert_eq!(error("//"), E::EmptySegment("//".into()));
        assert_eq!(error("/a/../b"), E::Unmatchable("/a/../b".into(), BadPath::DotSegment));
        assert_eq!(error("/a%2fb"), E::Unmatchable("/a%2fb".into(), BadPath::EncodedSlash));
        assert_eq!(error("/a%zz"), E::Unmatchable("/a%zz".into(), BadPath::BadEscape));
        assert_eq!(error("/v{n}"), E::MixedSegment("v{n}".into()));
        assert_eq!(error("/{a}{b}"), E::BadName("a}{b".into()));
        assert_eq!(error("/{}"), E::BadName(String::new()));
        assert_eq!(error("/{1a}"), E::BadName("1a".into()));
        assert_eq!(error("/{a}/{a}"), E::DuplicateName("a".into()));
        assert_eq!(error("/{*a}/b"), E::RestNotLast("a".into()));
    }

    #[test]
    fn a_path_that_two_programs_read_differently_is_refused() {
        for (path, reason) in [
            ("orders", BadPath::NoLeadingSlash),
            ("*", BadPath::NoLeadingSlash),
            ("/a/../b", BadPath::DotSegment),
            ("/a/..", BadPath::DotSegment),
            ("/./a", BadPath::DotSegment),
            ("/a/%2e%2e/b", BadPath::DotSegment),
            ("/a/.%2E/b", BadPath::DotSegment),
            ("/a/..;x=1/b", BadPath::DotSegment),
            ("/a%2fb", BadPath::EncodedSlash),
            ("/a%2Fb", BadPath::EncodedSlash),
            ("/a\\b", BadPath::Backslash),
            ("/a%5cb", BadPath::Backslash),
            ("/a%00", BadPath::Control),
            ("/a%0d%0aX:1", BadPath::Control),
            ("/a%", BadPath::BadEscape),
            ("/a%2", BadPath::BadEscape),
            ("/a%+1", BadPath::BadEscape),
            ("/%c0%ae%c0%ae/", BadPath::NotUtf8),
        ] {
            assert_eq!(check_path(path), Err(reason), "{path}");
        }
        for path in ["/", "/a/", "/a//b", "/...", "/a.b", "/%7Euser", "/a;b=c", "/%252e%252e"] {
            assert_eq!(check_path(path), Ok(()), "{path}");
        }
    }

    #[test]
    fn overlap_means_that_one_path_matches_both() {
        let overlap = |a: &str, b: &str| {
            let (a, b) = (pattern(a), pattern(b));
            assert_eq!(a.overlaps(&b), b.overlaps(&a));
            a.overlaps(&b)
        };
        assert!(overlap("/a/{x}", "/{y}/b"));
        assert!(overlap("/a/{x}", "/{*rest}"));
        assert!(overlap("/a/", "/a/{*rest}"));
        assert!(overlap("/%61", "/a"));
        assert!(!overlap("/a/{x}", "/b/{x}"));
        assert!(!overlap("/a/", "/a/{x}"));
        assert!(!overlap("/a", "/a/{*rest}"));
        assert!(!overlap("/a", "/a/"));
    }

    #[test]
    fn the_first_of_the_rules_comes_first() {
        let patterns: Vec<_> = ["/{*all}", "/a/{x}", "/a/b", "/{x}/b", "/c"].iter().map(|text| pattern(text)).collect();
        let table = PathTable::new(&patterns);
        assert_eq!(table.find("/a/b"), [0, 1, 2, 3]);
        assert_eq!(table.find("/a/c"), [0, 1]);
        assert_eq!(table.find("/c"), [0, 4]);
        assert_eq!(table.find("*"), Vec::<usize>::new());
    }

    fn segment_text() -> impl Strategy<Value = String> {
        prop::sample::select(vec!["a", "b", "%61", "c%20d", "é", "..."]).prop_map(str::to_owned)
    }

    fn pattern_text() -> impl Strategy<Value = String> {
        let body = prop::collection::vec(prop_oneof![3 => segment_text().prop_map(Some), 1 => Just(None)], 0..5);
        (body, 0..3).prop_map(|(segments, end)| {
            let mut text = String::new();
            for (at, segment) in segments.iter().enumerate() {
                text.push('/');
                text.push_str(&segment.clone().unwrap_or_else(|| format!("{{s{at}}}")));
            }
            match end {
                0 => text.push('/'),
                1 => text.push_str("/{*rest}"),
                _ if text.is_empty() => text.push('/'),
                _ => {}
            }
            text
        })
    }

    fn request_path() -> impl Strategy<Value = String> {
        (prop::collection::vec(prop_oneof![4 => segment_text(), 1 => Just(String::new())], 0..6))
            .prop_map(|segments| format!("/{}", segments.join("/")))
    }

    proptest! {
        #[test]
        fn the_table_finds_what_each_pattern_alone_would(
            texts in prop::collection::vec(pattern_text(), 0..40), path in request_path()
        ) {
            let patterns: Vec<_> = texts.iter().map(|text| pattern(text)).collect();
            let alone: Vec<_> = (0..patterns.len()).filter(|&at| patterns[at].matches(&path).is_some()).collect();
            prop_assert_eq!(PathTable::new(&patterns).find(&path), alone);
        }

        #[test]
        fn patterns_that_match_one_path_overlap(a in pattern_text(), b in pattern_text(), path in request_path()) {
            let (a, b) = (pattern(&a), pattern(&b));
            if a.matches(&path).is_some() && b.matches(&path).is_some() {
                prop_assert!(a.overlaps(&b) && b.overlaps(&a));
            }
            prop_assert!(a.overlaps(&a));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[/{}*%a-c.;\\\\\u{e9}\u{0}-\u{20}]{0,30}", path in ".*") {
            let _ = check_path(&text);
            let _ = check_path(&path);
            if let Ok(pattern) = PathPattern::parse(&text) {
                let _ = pattern.matches(&path);
            }
        }

        #[test]
        fn a_checked_path_has_no_segment_that_climbs(path in "/[./%2eE5cCf;a-b]{0,20}") {
            if check_path(&path).is_ok() {
                for segment in path.split('/') {
                    let plain = decode(segment).unwrap();
                    prop_assert!(&*plain != ".." && &*plain != "." && !plain.contains(['/', '\\']));
                }
            }
        }
    }
}
