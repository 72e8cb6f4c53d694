//! Templates that try to run, grow or recurse without end. Each runs on a thread with the stack of a worker's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::examples::{render, scope};
use super::*;

/// Runs on the stack that a worker thread has: an overflow would end the test process.
fn on_worker_stack(run: impl FnOnce() + Send + 'static) -> std::thread::JoinHandle<()> {
    std::thread::Builder::new().stack_size(2 * 1024 * 1024).spawn(run).unwrap()
}

/// The time that this thread has worked, so that a busy machine does not matter; else the time of day.
fn worked() -> Duration {
    let worked = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let worked = worked.and_then(|text| text.split(' ').next()?.parse().ok());
    worked.map_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap(), Duration::from_nanos)
}

/// Templates over a body with 1 MiB of text in `s`, `[0,…]` of 100000 in `l`, and 30000 keys in `m`.
pub(super) const ATTACKS: &[&str] = &[
    "{% for a in range(1000000) %}{% for b in range(1000000) %}{% endfor %}{% endfor %}",
    "{% for a in range(1000000) %}{{ body.s }}{% endfor %}",
    "{% for a in range(1000000) %}{{ 1 }}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}",
    "{% for a in range(1000000) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}",
    "{% set ns = namespace(x='xxxxxxxxxxxxxxxx') %}{% for a in range(100) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='xxxxxxxxxxxxxxxx') %}{% for a in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for a in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for a in range(1000000) %}{% set ns.x = [ns.x] %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for a in range(1000000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for a in range(1000000) %}{% set ns.x = ns.x | map('list') %}{% endfor %}",
    "{% set ns = namespace(x={'a':1}) %}{% for a in range(1000000) %}{% set ns.x = {'a': ns.x} | items %}{% endfor %}",
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
    "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns }}",
    "{% set ns = namespace() %}{% for a in range(1000000) %}{% set ns.x = namespace(x=ns.x) %}{% endfor %}",
    "{% set ns = namespace(l=[]) %}{% for a in range(1000000) %}{% set ns.l = ns.l + [body.s ~ a] %}{% endfor %}",
    "{% set ns = namespace(l=[]) %}{% for a in range(1000000) %}{% set ns.l = ns.l + [a] %}{% endfor %}",
    "{% set ns = namespace(m={}) %}{% for a in range(1000000) %}{% set ns.m = ns.m | combine({a: body.s}) %}{% endfor %}",
    "{% for a in range(1000000) %}{% set x = body.m | combine(body.m) %}{% endfor %}",
    "{% set ns = namespace(x={}) %}{% for a in range(1000000) %}{% set ns.x = {} | combine({'a': ns.x}) %}{% endfor %}",
    "{{ 'x' * 10000000000 }}",
    "{{ 10000000000 * 'x' }}",
    "{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' * 1000000 }}",
    "{{ [1] * 10000000000 }}",
    "{{ [body.l] * 1000000 }}",
    "{{ range(100000000000) | list }}",
    "{{ range(9223372036854775807, -9223372036854775807, -1) }}",
    "{{ body.s | replace('x', body.s) }}",
    "{{ body.s | replace('x', 'yyyyyyyyyyyyyyyyyyyyyyyy') | replace('y', 'zzzzzzzzzzzzzzz') }}",
    "{{ body.l | join(body.s) }}",
    "{{ body.s | list | join('yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy') }}",
    "{{ 'a\n' * 1000000 | indent(1000000000) }}",
    "{{ ('a\n' * 1000000) | indent(1000) }}",
    "{{ 1 | zfill(100000000000) }}",
    "{{ 'x' | indent(18446744073709551615) }}",
    "{{ 2 ** 100000000 }}",
    "{{ 10 ** 10 ** 10 ** 10 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(a) %}{{ m(a + 1) }}{{ m(a + 1) }}{% endmacro %}{{ m(1) }}",
    "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{% call m() %}{% endcall %}",
    "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "{% for x in [1] recursive %}{% for y in [1] %}{{ loop([1]) }}{% endfor %}{% endfor %}",
    "{% for a in range(1000000) %}{{ body.l[99999] }}{% endfor %}",
    "{% for a in range(1000000) %}{{ body.s[999999] }}{% endfor %}",
    "{% for a in range(1000000) %}{{ body.s[1:2] }}{% endfor %}",
    "{% for a in range(1000000) %}{{ body.s | length }}{% endfor %}",
    "{% for a in range(1000000) %}{{ body.l | unique | first }}{% endfor %}",
    "{% for a in range(1000000) %}{{ body.l | select('odd') | first }}{% endfor %}",
    "{% for a in range(1000000) %}{{ body.l | map('string') | first }}{% endfor %}",
    "{% for a in range(1000000) %}{{ 'y' in body.l }}{% endfor %}",
    "{% for a in range(1000000) %}{{ body == body }}{% endfor %}",
    "{% for a in range(1000000) %}{% set x %}{{ body.s }}{% endset %}{% endfor %}",
    "{% for a in body.l %}{% for b in body.l %}{% for c in body.l %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in body.s %}{{ a }}{% for b in body.s %}{% endfor %}{% endfor %}",
    "{% for a in range(1000000) %}{% if a in range(1000000) %}{% endif %}{% endfor %}",
    "{% for a in range(1000000) %}{{ headers | items | length }}{{ query_all.x }}{% endfor %}",
    "{% for a in range(1000000) %}{{ body.s | split('x') | length }}{% endfor %}",
    "{% for a in range(1000000) %}{{ body.s | lower | upper | trim | e | b64encode | urlencode | length }}{% endfor %}",
    "{% for a in range(1000000) %}{{ headers['x-499'] }}{{ query.a }}{{ query_all.a | length }}{% endfor %}",
    "{% for a in range(1000000) %}{% for b in headers %}{% for c in query %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in range(1000000) %}{{ headers | items | length }}{{ headers == headers_all }}{% endfor %}",
    "{% for a in range(1000000) %}{{ query | tojson | length }}{{ query_all | tojson | length }}{% endfor %}",
    "{% for a in range(1000000) %}{{ headers is empty }}{{ query | length }}{{ message | items }}{{ path }}{% endfor %}",
];

pub(super) fn large_body() -> String {
    let keys: Vec<String> = (0..30_000).map(|at| format!("\"k{at}\":{at}")).collect();
    format!("{{\"s\":\"{}\",\"l\":[{}0],\"m\":{{{}}}}}", "x".repeat(1024 * 1024), "0,".repeat(100_000), keys.join(","))
}

fn large_scope(body: &str) -> Scope {
    let mut scope = scope(body);
    for at in 0..500 {
        let name = http::HeaderName::from_bytes(format!("x-{at}").as_bytes()).unwrap();
        scope.headers.insert(name, http::HeaderValue::from_static("a value that is not short"));
    }
    scope.query = Some("a=1&".repeat(4000) + &(0..4000).map(|at| format!("k{at}")).collect::<Vec<_>>().join("&"));
    scope
}

#[test]
fn a_template_without_end_is_cut_off() {
    // Builds the shared environment, which is not what is measured.
    let _ = render("{{ body }}", "{}");
    let halves =
        ATTACKS.chunks(ATTACKS.len().div_ceil(2)).map(|half| on_worker_stack(move || half.iter().for_each(attack)));
    halves.collect::<Vec<_>>().into_iter().for_each(|half| half.join().unwrap());
}

fn attack(template: &&str) {
    let compiled = Template::compile(template).unwrap();
    let context = Context::from(large_scope(&large_body()));
    let begun = worked();
    let result = compiled.render_in(&context);
    let took = worked().saturating_sub(begun);
    let error = result.map(|text| text.len()).expect_err(template).to_string();
    assert!(error.starts_with("line ") && error.contains(", column "), "{template}: {error}");
    // A debug build is about fifteen times slower than a release build, where this is 50 ms.
    assert!(took < Duration::from_secs(1), "{template} took {took:?}");
}

#[test]
fn deeply_nested_text_is_refused_or_compiled_but_never_overflows() {
    let worker = on_worker_stack(|| {
        for part in [
            "(",
            "[",
            "{",
            "not ",
            "-",
            "+",
            "~",
            "'a'|upper|",
            "a.",
            "a[",
            "{'a':",
            "f(",
            "x if ",
            "a and ",
            "1 if 1 else ",
        ] {
            let many = part.repeat(16_000 / part.len());
            for text in [format!("{{{{ {many}"), format!("{{{{ {many}1 }}}}"), many.clone()] {
                let _ = Template::compile(&text);
            }
            let _ = Condition::compile(&part.repeat(1000 / part.len()));
        }
        for (open, close) in
            [("(", ")"), ("[", "]"), ("{'a':", "}"), ("f(", ")"), ("-(", ")"), ("not (", ")"), ("a[", "]")]
        {
            let count = 1000 / (open.len() + close.len()) * 16;
            let _ = Template::compile(&format!("{{{{ {}1{} }}}}", open.repeat(count), close.repeat(count)));
        }
        for statement in [
            "{% if x %}",
            "{% if x %}{% else %}",
            "{% for x in y %}",
            "{% with %}",
            "{% macro m() %}",
            "{% set x %}",
            "{% filter upper %}",
            "{% call m() %}",
        ] {
            let _ = Template::compile(&statement.repeat(16_000 / statement.len()));
        }
        let elifs = "{% elif x %}".repeat(1300);
        let _ = Template::compile(&format!("{{% if x %}}{elifs}{{% endif %}}"));
        for chain in [
            "a",
            "a ~ b",
            "a + a",
            "a.b",
            "a[0]",
            "a|upper",
            "a and b",
            "a or b",
            "a if b else c",
            "a == b",
            "a is defined",
        ] {
            let _ = Template::compile(&format!("{{{{ {} }}}}", vec![chain; 16_000 / (chain.len() + 3)].join(" ~ ")));
        }
    });
    worker.join().unwrap();
}

#[test]
fn a_chain_of_many_links_works() {
    let chain = vec!["'a'"; 400].join(" ~ ");
    assert_eq!(render(&format!("{{{{ {chain} }}}}"), ""), Ok("a".repeat(400)));
    let sum = vec!["1"; 400].join(" + ");
    assert_eq!(render(&format!("{{{{ {sum} }}}}"), "").as_deref(), Ok("400"));
    let either = vec!["false"; 140].join(" or ");
    assert_eq!(render(&format!("{{{{ {either} }}}}"), "").as_deref(), Ok("false"));
}

#[test]
fn a_large_message_passes() {
    let body = format!("{{\"s\":\"{}\"}}", "x".repeat(15 * 1024 * 1024));
    assert_eq!(render("{{ body | tojson }}", &body).map(|text| text.len()), Ok(body.len()));
    assert_eq!(render("{{ body.s }}", &body).map(|text| text.len()), Ok(15 * 1024 * 1024));
    assert_eq!(render("{{ body }}", &"x".repeat(15 * 1024 * 1024)).map(|text| text.len()), Ok(15 * 1024 * 1024));
    let lines: Vec<String> = (0..10_000).map(|at| format!("{{\"id\":{at},\"price\":1.10}}")).collect();
    let rendered =
        render("{% for line in body %}{{ line.id }}:{{ line.price }};{% endfor %}", &format!("[{}]", lines.join(",")));
    assert!(rendered.is_ok_and(|text| text.ends_with("9999:1.10;")));
}
