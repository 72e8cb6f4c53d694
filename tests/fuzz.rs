//! No input makes `stagepost check` or the parsers behind it panic, hang or overflow.
//!
//! Each target mutates real inputs for `FUZZ_SECONDS` (1 by default; `make test` gives a minute to all of them). The seed
//! is printed with a failure, and `FUZZ_SEED` repeats it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use stagepost::core::retry::parse_retry_after;
use stagepost::core::schedule::Schedule;
use stagepost::expression::{Condition, Key, Scope, Template};
use stagepost::plan::load::{Options, load_text};

/// No single input may take longer; the slowest honest one takes milliseconds.
const LONGEST: Duration = Duration::from_secs(10);

/// Words that mean something to one of the parsers.
const WORDS: [&str; 38] = [
    "{{",
    "}}",
    "{%",
    "%}",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    ": ",
    "- ",
    "\n",
    "\n  ",
    "&a ",
    "*a",
    "<<",
    "|",
    ">",
    "? ",
    "---\n",
    "'",
    "\"",
    "#",
    "\\",
    "\t",
    "0/2 * * * * ?",
    "L",
    "W",
    "6#3",
    "?",
    "*",
    "-1",
    "999999999999999999999",
    "body.a",
    "not ",
    "range(9)",
    "\u{0}é𝄞",
];

fn corpus() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts = Vec::new();
    let mut folders = vec![root.join("examples"), root.join("tests/invalid")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "yaml") {
                texts.push(String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned());
            }
        }
    }
    texts.sort();
    texts
}

/// Runs a target on mutations of `seeds` until the time is over.
fn fuzz(seeds: &[String], target: impl Fn(&str)) {
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut runs = 0u64;
    while Instant::now() < end {
        let text = mutated(&mut random, seeds);
        let begun = Instant::now();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| target(&text)));
        assert!(outcome.is_ok(), "FUZZ_SEED={seed}, run {runs}: a panic on {text:?}");
        assert!(begun.elapsed() < LONGEST, "FUZZ_SEED={seed}, run {runs}: {:?} for {text:?}", begun.elapsed());
        runs += 1;
    }
    println!("{runs} inputs, FUZZ_SEED={seed}");
}

fn mutated(random: &mut fastrand::Rng, seeds: &[String]) -> String {
    let mut text = seeds[random.usize(..seeds.len())].clone();
    for _ in 0..random.usize(1..6) {
        let mut places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        places.push(text.len());
        let at = places[random.usize(..places.len())];
        let to = places[random.usize(..places.len())];
        let (low, high) = (at.min(to), at.max(to));
        match random.u8(..6) {
            0 => text.replace_range(low..high, ""),
            1 => text.insert_str(at, WORDS[random.usize(..WORDS.len())]),
            2 => text.insert(at, random.char(..)),
            3 => {
                let piece = text[low..high].to_owned();
                text.insert_str(at, &piece);
            }
            4 => text.insert_str(at, &WORDS[random.usize(..WORDS.len())].repeat(random.usize(1..400))),
            _ => {
                let other = &seeds[random.usize(..seeds.len())];
                let cut = other.char_indices().map(|(at, _)| at).nth(random.usize(..other.chars().count().max(1)));
                text.truncate(at);
                text.push_str(&other[cut.unwrap_or(0)..]);
            }
        }
        if !text.is_char_boundary(text.len().min(60_000)) || text.len() > 60_000 {
            text = text.chars().take(20_000).collect();
        }
    }
    text
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn fuzz_manifests() {
    fuzz(&corpus(), |text| {
        let found = load_text("fuzz.yaml", text, &Options::default());
        found.violations.iter().for_each(|violation| assert!(!violation.to_string().is_empty()));
    });
}

#[test]
fn fuzz_templates_and_expressions() {
    let seeds = texts(&[
        "{\"card\":{{ body.cardNo | tojson }},\"fee\":7000}",
        "{% for x in body.items %}{{ loop.index }}: {{ x | upper }}{% else %}none{% endfor %}",
        "{% set a = headers['x-a'] | default('') %}{% if a %}{{ a ~ a }}{% endif %}",
        "body.hospital == 'grand oak' and not (query['x'] is defined) or body.amount > 0",
        "{% macro m(a) %}{{ m(a) }}{% endmacro %}{{ m(1) }}",
        "{{ range(100000) | join(',') }}{{ 'x' * 100 }}",
    ]);
    let scope = Scope {
        body: r#"{"cardNo":"1","amount":1.10,"items":[1,"b",{"c":null}],"hospital":"grand oak"}"#.into(),
        headers: http::HeaderMap::new(),
        method: "POST".to_owned(),
        segments: std::collections::BTreeMap::new(),
        query: Some("x=1&x=2".to_owned()),
        message: stagepost::expression::MessageScope::default(),
    };
    fuzz(&seeds, |text| {
        let _ = Template::compile(text).map(|template| template.render(&scope));
        let _ = Condition::compile(text).map(|condition| condition.evaluate(&scope));
        let _ = Key::compile(text).map(|key| key.evaluate(&scope));
    });
}

#[test]
fn fuzz_schedules() {
    let seeds =
        texts(&["0/2 * * * * ?", "0 15 10 L * ?", "0 0 12 ? * 6#3 2027", "30 2 * * 0-6", "0 0 0 15W 1-3,6 ? *"]);
    let now = "2026-11-21T08:00:00Z".parse().unwrap();
    fuzz(&seeds, |text| {
        let _ = Schedule::parse_cron(text, "Europe/Rome").map(|schedule| schedule.next(now));
        let _ = Schedule::parse_cron("0 0 * * * ?", text);
    });
}

#[test]
fn fuzz_retry_after() {
    let seeds = texts(&[
        "120",
        "Sat, 21 Nov 2026 08:00:30 GMT",
        "-1",
        "1e9",
        "0x10",
        " 5 ",
        "Saturday, 21-Nov-26 08:00:30 GMT",
    ]);
    fuzz(&seeds, |text| {
        let _ = parse_retry_after(text, jiff::Timestamp::UNIX_EPOCH);
    });
}
