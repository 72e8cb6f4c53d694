//! Runs the program in callgrind, and reads what it counted.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Instructions by function, each without those it calls.
pub(super) type Costs = BTreeMap<String, i64>;

/// The words before `run` for a build that is to be counted.
pub(super) fn program(counted: &str, out: &Path) -> Vec<String> {
    let out = format!("--callgrind-out-file={}", out.display());
    // Threads take turns by the clock of the valgrind, not by that of the machine.
    ["valgrind", "--quiet", "--tool=callgrind", "--fair-sched=yes", &out, counted].map(str::to_owned).to_vec()
}

/// Reads a profile: `fn=` begins a function, lines of a position and a number are its own cost, and the line behind
/// `calls=` is the cost of a call, which belongs to the called.
pub(super) fn read(profile: &str) -> Costs {
    let mut names: HashMap<&str, String> = HashMap::new();
    let mut costs = Costs::new();
    let (mut current, mut called) = (String::new(), false);
    for line in profile.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            current = full(name, &mut names);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            full(name, &mut names);
        } else if line.starts_with("calls=") {
            called = true;
        } else if line.starts_with(['+', '-', '*']) || line.starts_with(|sign: char| sign.is_ascii_digit()) {
            let cost = line.split(' ').nth(1).and_then(|cost| cost.parse::<i64>().ok());
            if !std::mem::take(&mut called) {
                *costs.entry(current.clone()).or_default() += cost.unwrap_or(0);
            }
        }
    }
    costs
}

/// A name stands in full where it comes first, as `(7) name`, and later as `(7)`.
fn full<'a>(text: &'a str, names: &mut HashMap<&'a str, String>) -> String {
    let (number, name) = text.split_once(' ').unwrap_or((text, ""));
    if !name.is_empty() {
        names.insert(number, plain(name));
    }
    names.get(number).cloned().unwrap_or_default()
}

/// Without what differs between builds or says little: hashes, type parameters, the mark of a recursion.
fn plain(name: &str) -> String {
    let name = name.split('\'').next().unwrap_or(name);
    let name = match name.rfind("::h") {
        Some(at) if name.len() == at + 19 => &name[..at],
        _ => name,
    };
    let (mut text, mut depth) = (String::new(), 0_u32);
    for (at, sign) in name.char_indices() {
        match sign {
            // `<T as Trait>::method` begins with one that says much.
            '<' if depth > 0 || (at > 0 && !name[..at].ends_with(['<', ' ', '&'])) => depth += 1,
            '>' if depth > 0 && !name[..at].ends_with('-') => depth -= 1,
            _ if depth == 0 => text.push(sign),
            _ => {}
        }
    }
    text.replace("::::", "::").trim_end_matches("::").to_owned()
}

#[test]
fn a_profile_is_read() {
    let profile = "events: Ir\nfl=(1) a.rs\nfn=(1) one::h0123456789abcdef\n12 5\n+3 7\ncfn=(2) two<u8>\ncalls=1 9\n* 100\n\
                   fn=(2)\n9 100\nfn=(1)\n-2 1\ntotals: 113\n";
    assert_eq!(read(profile), BTreeMap::from([("one".to_owned(), 13), ("two".to_owned(), 100)]));
    assert_eq!(plain("<hyper::Conn<T> as core::Future>::poll"), "<hyper::Conn as core::Future>::poll");
    assert_eq!(plain("a::b<c::d<e>>::f::h0123456789abcdef"), "a::b::f");
}
