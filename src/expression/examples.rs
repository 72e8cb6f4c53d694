//! The language by examples: what users type and what comes out. The bounds are tested in `bounds.rs`.

use super::*;
use http::header::{HeaderName, HeaderValue};
use proptest::prelude::*;

pub(super) fn scope(body: &str) -> Scope {
    let mut headers = HeaderMap::new();
    for (name, value) in [("content-type", "application/json"), ("x-a", "one"), ("x-a", "two")] {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    Scope {
        body: Bytes::copy_from_slice(body.as_bytes()),
        headers,
        method: "POST".to_owned(),
        segments: BTreeMap::from([("category".to_owned(), "surgery".to_owned())]),
        query: Some("x=a%20b+c&y=1&x=2&e=%zz%C3%A9".to_owned()),
        message: MessageScope { id: "0190".to_owned(), attempt: Some(2), ..MessageScope::default() },
    }
}

pub(super) fn render(template: &str, body: &str) -> Result<String, String> {
    let template = Template::compile(template).map_err(|error| format!("compile: {error}"))?;
    template.render(&scope(body)).map_err(|error| error.to_string())
}

fn holds(condition: &str, body: &str) -> bool {
    let condition = Condition::compile(condition).unwrap_or_else(|error| panic!("{condition}: {error}"));
    condition.evaluate(&scope(body)).unwrap_or_else(|error| panic!("{error}"))
}

const ORDER: &str = r#"{"hospital":"x","amount":1.10,"n":3,"s":"12","zero":0.00,"big":12345678901234567890123,
    "huge":1e400,"list":[1,2.50,"c"],"o":{"b":1,"a":null},"t":true,"empty":"","html":"<&'\">","u":"\u00e9\ud83d\ude00"}"#;

#[test]
fn every_name_of_the_scope_is_there() {
    for (template, expected) in [
        ("{{ body.hospital }} {{ body['hospital'] }}", "x x"),
        ("{{ headers['x-a'] }} {{ headers['X-A'] }} {{ headers['Content-Type'] }}", "one one application/json"),
        ("{{ headers_all['x-a'] | join(',') }}", "one,two"),
        ("{{ method }} {{ path.category }}", "POST surgery"),
        ("{{ query['x'] }}|{{ query.y }}|{{ query_all.x | tojson }}|{{ query.e }}", r#"a b c|1|["a b c","2"]|%zzé"#),
        ("{{ message.id }} {{ message.attempt }} {{ message.route | default('none') }}", "0190 2 none"),
        ("{{ headers | length }} {% for name in headers %}{{ name }} {% endfor %}", "2 content-type x-a "),
    ] {
        assert_eq!(render(template, ORDER).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn what_passes_through_keeps_its_text() {
    for (template, expected) in [
        ("{{ body.amount }} {{ body.amount | tojson }}", "1.10 1.10"),
        ("{{ body.big }} {{ body.huge }} {{ body.zero }}", "12345678901234567890123 1e400 0.00"),
        ("{{ body.o | tojson }} {{ body.o }}", r#"{"b":1,"a":null} {"b":1,"a":null}"#),
        ("{{ body.list }}", r#"[1,2.50,"c"]"#),
        ("{{ body.html | tojson }}", r#""<&'\">""#),
        ("{{ body.u }}", "é😀"),
        ("{{ [body.amount, {'k': body.big, 'a': 'b'}] | tojson }}", r#"[1.10,{"k":12345678901234567890123,"a":"b"}]"#),
        ("{% for x in body.list %}{{ x }}{% if not loop.last %};{% endif %}{% endfor %}", "1;2.50;c"),
        ("{% for k, v in body.o | items %}{{ k }}={{ v }} {% endfor %}", "b=1 a=null "),
        ("{% for k in body.o %}{{ k }}{% endfor %}", "ba"),
        ("{% set x = body.amount %}{{ x }}{{ [x] | first }}{{ '%' ~ x }}", "1.101.10%1.10"),
    ] {
        assert_eq!(render(template, ORDER).as_deref(), Ok(expected), "{template}");
    }
    assert_eq!(render("{{ body | tojson }}", ORDER).as_deref(), Ok(ORDER));
    assert_eq!(render("{{ body.a }}", r#"{"a":1,"a":2}"#).as_deref(), Ok("2"));
}

#[test]
fn one_field_is_changed_and_the_others_keep_their_texts_and_their_order() {
    let body = r#"{"z":1.10,"id":12345678901234567890123,"a":1e400,"n":-0,"max":18446744073709551615,"fee":1,"m":9007199254740993,"d":0.10000000000000000001,"o":{"y":1.0,"x":[-0.0, 1E5]}}"#;
    assert_eq!(
        render("{{ body | combine({'fee': 7000}) | tojson }}", body),
        Ok(body.replace("\"fee\":1,", "\"fee\":7000,"))
    );
    assert_eq!(
        render("{{ body | combine({'new': 1}) | tojson }}", body),
        Ok(format!("{},\"new\":1}}", body.strip_suffix('}').unwrap()))
    );
    let nested = "{{ body | combine({'o': body.o | combine({'y': 2})}) | tojson }}";
    assert_eq!(render(nested, body), Ok(body.replace("\"y\":1.0", "\"y\":2")));
    assert!(render("{{ body | combine([1]) }}", body).unwrap_err().contains("a list is not a mapping"));
}

#[test]
fn numbers_calculate_and_compare_by_value() {
    for (template, expected) in [
        ("{{ body.amount * 2 }}", "2.2"),
        ("{{ body.n + 1 }} {{ body.n / 2 }} {{ body.n // 2 }} {{ body.n % 2 }} {{ body.n ** 2 }}", "4 1.5 1 1 9"),
        ("{{ -body.amount }} {{ (body.amount * 100) | int }} {{ body.amount | round(1) }}", "-1.1 110 1.1"),
        ("{{ 2 + 3 * 4 - 1 }} {{ (2 + 3) * 4 }} {{ 10 - 2 - 3 }} {{ 2 ** 3 ** 2 }}", "13 20 5 64"),
        ("{{ [3, 1.5, 2] | sort | join(' ') }} {{ [3, 1] | sum }} {{ body.list[:2] | max }}", "1.5 2 3 4 2.50"),
        ("{{ body.s | int + 1 }} {{ '1.5' | float * 2 }} {{ 'x' | int(0) }}", "13 3.0 0"),
        ("{{ body.big - 1 }}", "12345678901234567890122"),
        ("{{ range(3) | list }} {{ range(5, 0, -2) | join(',') }} {{ 1 if body.zero else 0 }}", "[0,1,2] 5,3,1 0"),
    ] {
        assert_eq!(render(template, ORDER).as_deref(), Ok(expected), "{template}");
    }
    for condition in [
        "body.amount > 1",
        "body.amount == 1.1",
        "body.amount <= 1.10",
        "1 < body.amount < 2",
        "body.big > body.n",
        "body.huge > body.big",
        "body.list == [1, 2.5, 'c']",
        "body.o == {'a': none, 'b': 1.0}",
        "2.5 in body.list",
        "'b' in body.o",
        "'c' not in 'abd'",
        "body.amount is number",
        "body.n is integer",
        "body.amount is float",
        "body.hospital is string",
        "body.o is mapping",
        "body.list is sequence",
        "body.o.a is none",
        "body.t is true",
        "not body.zero",
        "body.t and not body.empty",
        "body.list | length == 3",
        "body.n is odd",
        "body.o | length == 2",
        "body.list | select('number') | list | length == 2",
        "'1.10' == body.amount | string",
        "body.n != '3'",
        "body.hospital in ['x', 'y']",
        "body.missing is not defined",
        "body.missing | default('d') == 'd'",
        "body.a.b.c | default('d') == 'd'",
        "headers['x-none'] | default('') == ''",
        "body.list[-1] == 'c'",
        "body.list[0:2] | length == 2",
        "body.hospital | upper == 'X'",
        "body.list is containing(1)",
        "body.o.get('zz', 5) == 5",
        "body.missing is undefined or body.missing > 3",
        "body.html is startingwith '<'",
    ] {
        assert!(holds(condition, ORDER), "{condition}");
    }
}

#[test]
fn a_condition_that_meets_an_undefined_name_is_false_as_a_whole() {
    for condition in [
        "body.missing",
        "body.missing == 1",
        "body.missing != 1",
        "not body.missing",
        "not (body.missing == 1)",
        "body.missing is not string",
        "body.missing not in [1]",
        "1 not in body.missing",
        "body.a.b != 1",
        "missing != 1",
        "true and body.missing != 1",
        "body.missing or true",
        "[body.missing] != [1]",
        "body.missing | length == 0",
        "(body.missing | upper) != 'X'",
        "headers['x-none'] != 'a'",
        "-body.missing != 1",
        "'a' ~ body.missing != 'b'",
        "body.list[9] != 1",
        "1 if body.missing else 1",
        "body.missing is none",
        "body.list | select('gt', body.missing) | list | length == 0 and false",
    ] {
        assert!(!holds(condition, ORDER), "{condition}");
    }
    let text = Condition::compile("body.x != 'a'").unwrap();
    let mut binary = scope("");
    binary.body = Bytes::from_static(b"\xff\xfe");
    assert_eq!(text.evaluate(&binary), Ok(false));
}

#[test]
fn a_template_that_meets_an_undefined_name_says_which_and_where() {
    for (template, expected) in [
        ("a\n {{ body.missing }}", "line 2, column 5: `body.missing` is undefined; "),
        ("{{ 1 + nothing }}", "line 1, column 4: `1 + nothing` is undefined; "),
        ("{% for x in body.none %}{% endfor %}", "line 1, column 13: `body.none` is undefined; "),
        ("{% if body.none %}{% endif %}", "line 1, column 7: `body.none` is undefined; "),
        ("{{ body.none | upper }}", "line 1, column 4: `body.none | upper` is undefined; "),
    ] {
        let error = render(template, ORDER).unwrap_err();
        assert!(error.starts_with(expected), "{template}: {error}");
        assert!(error.ends_with("default() or test it by `is defined`"), "{error}");
    }
    assert_eq!(render("{{ body.missing | default('') }}{{ body.a.b | d('x') }}", ORDER).as_deref(), Ok("x"));
}

#[test]
fn bodies_that_are_not_json_are_text() {
    assert_eq!(render("{{ body }}!", "<a>1</a>").as_deref(), Ok("<a>1</a>!"));
    assert_eq!(render("{{ body }}", "").as_deref(), Ok(""));
    assert_eq!(render("{{ body + 1 }}", " 41 ").as_deref(), Ok("42"));
    assert_eq!(render("{{ body }}", "\"a\\nb\"").as_deref(), Ok("a\nb"));
    assert_eq!(render("{{ body | length }}", &"[".repeat(100_000)).as_deref(), Ok("100000"));
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(render("{{ body is string }}", &nested).as_deref(), Ok("true"));
    let lone = r#"{"a":"\ud800x"}"#;
    assert_eq!(render("{{ body.a }} {{ body | tojson }}", lone), Ok(format!("\u{FFFD}x {lone}")));
}

#[test]
fn filters_do_what_their_names_say() {
    for (template, expected) in [
        ("{{ ' aB ' | trim | lower }} {{ 'ab' | upper | replace('A', 'x') }}", "ab xB"),
        ("{{ 'a,b' | split(',') | join('-') }} {{ 'é' | b64encode }} {{ 'w6k=' | b64decode }}", "a-b w6k= é"),
        ("{{ 'a b/é' | urlencode }} {{ 'a%20b' | urldecode }} {{ '<a>' | e }}", "a%20b%2F%C3%A9 a b &lt;a&gt;"),
        ("{{ ('{\"a\": 1.10}' | fromjson).a }} {{ 'a\\nb' | lines | length }}", "1.10 2"),
        ("{{ 'abc' | first }}{{ 'abc' | last }}{{ [1,2] | last }}{{ 'abc' | reverse }}", "ac2cba"),
        ("{{ 2.5 | round }} {{ 2.345 | round(2) }} {{ 7 | abs }} {{ '7' | zfill(3) }}", "3.0 2.35 7 007"),
        ("{{ [{'p': 2, 'n': 'b'}, {'p': 1, 'n': 'a'}] | sort(attribute='p') | map(attribute='n') | join }}", "ab"),
        ("{{ [1, 2, 3] | select('gt', 1) | list }} {{ [1, 1.0, 2] | unique | list }}", "[2,3] [1,2]"),
        ("{{ [{'a': 1}, {'b': 2}] | selectattr('a', 'defined') | list | length }}", "1"),
        ("{{ ['a', 'b'] | map('upper') | join }} {{ {'b': 1, 'a': 2} | dictsort | first | first }}", "AB a"),
        ("{{ 'a\nb' | indent(2) }} {{ 'abcdef' | truncate(4, '.') }} {{ 'a b' | wordcount }}", "a\n  b abc. 2"),
        ("{{ 'abc'[1] }}{{ 'abc'[-1] }}{{ 'abcdef'[1:4] }}{{ 'abc'[::-1] }}{{ 'é' * 2 }}", "bcbcdcbaéé"),
        ("{{ {'a': 1, 'b': 2} | combine({'a': 3, 'c': 4}, {'b': 5}) }}", r#"{"a":3,"b":5,"c":4}"#),
        ("{{ 'x' if body.n > 2 else 'y' }} {{ 'a' ~ 1 ~ none ~ true }}", "x a1nulltrue"),
    ] {
        assert_eq!(render(template, ORDER).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn every_filter_and_test_is_documented() {
    let page = include_str!("../../docs/expressions.md");
    for name in filters::NAMES.iter().chain(&predicates::NAMES) {
        assert!(page.contains(&format!("`{name}`")), "docs/expressions.md does not name `{name}`");
    }
}

#[test]
fn statements_work_as_in_jinja() {
    for (template, expected) in [
        ("{% if body.n == 1 %}a{% elif body.n == 3 %}b{% else %}c{% endif %}", "b"),
        ("{% set ns = namespace(t=0) %}{% for x in [1,2] %}{% set ns.t = ns.t + x %}{% endfor %}{{ ns.t }}", "3"),
        ("{% macro m(a, b=2) %}{{ a }}-{{ b }};{% endmacro %}{{ m(1) }}{{ m(1, b=3) }}", "1-2;1-3;"),
        ("{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}x{% endcall %}", "[x]"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x | upper }}{% filter upper %}b{% endfilter %}", "A1B"),
        ("{% for x in [] %}{% else %}none{% endfor %}{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}", "none3"),
        (
            "{% for x in [[1], 2] recursive %}{% if x is sequence %}{{ loop(x) }}{% else %}{{ x }}{% endif %}{% endfor %}",
            "12",
        ),
        ("{% for x in [1,2,3] if x != 2 %}{{ loop.index }}{{ loop.cycle('a','b') }}{% endfor %}", "1a2b"),
        ("a {#- c -#} b{% raw %}{{ x }}{% endraw %}\n", "ab{{ x }}"),
        ("\"\\ {{ '\"' }}\r\n\t{{ 1 -}}   x", "\"\\ \"\r\n\t1x"),
        ("{% for (a, b), c in [[[1, 2], 3]] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "123"),
        ("{{ dict(a=1, b=body.amount) | tojson }}{{ (1, 2) | tojson }}", r#"{"a":1,"b":1.10}[1,2]"#),
    ] {
        assert_eq!(render(template, ORDER).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn what_does_not_compile_says_where_and_what_to_do() {
    for (template, expected) in [
        ("x\n{{ a | nope }}", "line 2, column 8: unknown filter `nope`; there are abs, "),
        ("{{ a is nope }}", "line 1, column 9: unknown test `nope`; there are defined, "),
        ("{% include 'x' %}", "line 1, column 4: include is not supported"),
        ("{% extends 'x' %}", "line 1, column 4: extends is not supported"),
        ("{% import 'x' as y %}", "line 1, column 4: import is not supported"),
        ("{% from 'x' import y %}", "line 1, column 4: import is not supported"),
        ("{{ __x }}", "line 1, column 4: `__x`: names that begin with __ are reserved"),
        ("{{ f(*a) }}", "line 1, column 4: arguments cannot be unpacked"),
        ("{{ 1 +", "line 1, column 6: unexpected end of input"),
        ("{% if x %}", "line 1, column 9: unexpected end of input"),
    ] {
        let error = Template::compile(template).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.starts_with(expected), "{template}: {error}");
    }
    assert!(Template::compile(&"x".repeat(16 * 1024 + 1)).is_err());
    assert!(Condition::compile(&"x".repeat(1025)).is_err());
}

#[test]
fn texts_and_numbers_have_no_order() {
    let error = Condition::compile("body.s > 3").unwrap().evaluate(&scope(ORDER)).unwrap_err();
    assert!(error.to_string().contains("convert one of them"), "{error}");
}

#[test]
fn a_key_is_absent_when_undefined_null_or_empty() {
    let key = |key: &str| Key::compile(key).unwrap().evaluate(&scope(ORDER)).unwrap();
    assert_eq!(key("headers['x-a']").as_deref(), Some("one"));
    assert_eq!(key("body.n").as_deref(), Some("3"));
    for absent in ["headers['x-none']", "body.o.a", "body.empty", "body.x.y"] {
        assert_eq!(key(absent), None, "{absent}");
    }
}

fn json() -> impl Strategy<Value = String> {
    let number = "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?";
    let text = prop_oneof![
        "[a-z<>&' ]{0,8}".prop_map(|text| serde_json::to_string(&text).unwrap()),
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap())
    ];
    let leaf = prop_oneof![number.prop_map(|n| n), text, Just("null".to_owned()), Just("true".to_owned())];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(|items| format!("[{}]", items.join(", "))),
            prop::collection::vec(("[a-z\\\\\"]{0,4}", inner), 0..6).prop_map(|pairs| {
                let member =
                    |(key, value): &(String, String)| format!("{} : {value}", serde_json::to_string(key).unwrap());
                format!("{{{}}}", pairs.iter().map(member).collect::<Vec<_>>().join(","))
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_json_comes_out_as_it_went_in(body in json()) {
        if body.starts_with(['{', '[']) {
            prop_assert_eq!(render("{{ body | tojson }}", &body), Ok(body.clone()));
        }
        // Built anew from its parts it is the same JSON, with the same texts of numbers.
        let copy = "{% macro copy(v) %}{% if v is mapping %}{ {%- for k, x in v | items %}{{ k | tojson }}:{{ copy(x) }}\
            {% if not loop.last %},{% endif %}{% endfor -%} }{% elif v is sequence %}[{% for x in v %}{{ copy(x) }}\
            {% if not loop.last %},{% endif %}{% endfor %}]{% else %}{{ v | tojson }}{% endif %}{% endmacro %}{{ copy(body) }}";
        let copied = render(copy, &body);
        prop_assert!(copied.is_ok(), "{:?}", copied);
        let copied = copied.unwrap();
        let numbers = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
        if !body.contains('"') {
            prop_assert_eq!(numbers(&copied), numbers(&body));
        }
        prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(&copied).is_ok(), "{}", copied);
    }

    #[test]
    fn no_text_panics(text in ".{0,60}", body in ".{0,60}") {
        let _ = render(&text, &body);
        let _ = Condition::compile(&text).map(|condition| condition.evaluate(&scope(&body)));
    }

    #[test]
    fn no_template_like_text_panics(
        parts in prop::collection::vec(prop::sample::select(vec![
            "{{", "}}", "{%", "%}", " if ", " else ", " for x in ", " endif ", " endfor ", " set x = ", "body", ".a", "[0]", "[1:]",
            "(", ")", "[", "]", "{", "}", ":", ",", " not ", "-", "+", "*", "**", "/", "//", "%", "~", "|", "upper", "tojson",
            " is ", "defined", "1", "1.5", "'x'", "\"", " in ", " and ", " or ", "==", "<", " macro m(a) ", " endmacro ", "m(1)",
            "range(3)", " recursive", "loop", "namespace()", ".b = ", "{#", "#}", "\n", "é", "|join", "|sort", "|first", "|int",
        ]), 0..24),
        body in json(),
    ) {
        let text = parts.concat();
        let _ = render(&text, &body);
        let _ = render(&format!("{{{{ {text} }}}}"), &body);
        let _ = Condition::compile(&text).map(|condition| condition.evaluate(&scope(&body)));
    }
}
