//! The committed figures, and what is held to them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use super::profile::Costs;

/// In percent.
const MOST_GROWTH: i64 = 10;
/// Functions that cost less than this are not listed, in parts of a path's whole.
const LEAST_SHARE: i64 = 400;
/// So many functions are named when a path has grown.
const NAMED: usize = 8;

/// By path: the whole, and its functions.
type Figures = BTreeMap<String, (i64, Costs)>;

/// Says it beside the tests' own output, which shows only with failures.
pub(super) fn leave_out(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// Fails if a path costs more than a tenth above its figure.
pub(super) fn hold(found: &[(&str, Costs)]) {
    if std::env::var("UPDATE").is_ok_and(|update| update == "1") {
        std::fs::write(file(), written(found)).unwrap();
    }
    let text = std::fs::read_to_string(file()).unwrap_or_default();
    let committed = read(&text);
    let comparable = made_with(&text) == tools();
    if !comparable {
        leave_out(&format!(
            "LEFT OUT: the comparison of instruction counts; the figures were made with: {}",
            made_with(&text)
        ));
    }
    let mut grown = String::new();
    for (path, costs) in found {
        let whole: i64 = costs.values().sum();
        let (figure, functions) = committed.get(*path).unwrap_or_else(|| panic!("no figure for {path}; {HOW}"));
        let change = 100 * (whole - figure) / figure;
        leave_out(&format!("{path}: {whole} instructions a message, the figure is {figure} ({change:+} %)"));
        if comparable && whole * 100 > figure * (100 + MOST_GROWTH) {
            let _ = write!(
                grown,
                "{path} costs {whole} instructions a message, {change} % above {figure}:\n{}",
                most(costs, functions)
            );
        } else if -change > MOST_GROWTH {
            leave_out(&format!("{path} costs less than its figure: {HOW}"));
        }
    }
    assert!(grown.is_empty(), "{grown}The figures were made with: {}\nIf it has to be so: {HOW}", made_with(&text));
}

const HOW: &str = "write the figures anew with UPDATE=1 tests/callgrind/count, and say why";

/// The functions that grew most. One that has no figure cost less than all that have one.
fn most(costs: &Costs, figures: &Costs) -> String {
    let least = figures.values().copied().min().unwrap_or(0);
    let figure = |name: &str| figures.get(name).copied().unwrap_or(least);
    let mut grown: Vec<_> = costs.iter().map(|(name, cost)| (cost - figure(name), *cost, name)).collect();
    grown.sort_by_key(|(growth, ..)| -growth);
    let lines = grown.iter().take(NAMED).filter(|(growth, ..)| *growth > 0);
    lines.fold(String::new(), |text, (growth, cost, name)| text + &format!("  {growth:+} to {cost}: {name}\n"))
}

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/callgrind/figures.txt")
}

fn written(found: &[(&str, Costs)]) -> String {
    let mut text = format!(
        "# Instructions a message, and by function without what it calls; see tests/hot_paths.rs.\n{MADE_WITH}{}\n",
        tools()
    );
    for (path, costs) in found {
        let whole: i64 = costs.values().sum();
        let _ = writeln!(text, "\n{path} {whole}");
        let mut listed: Vec<_> = costs.iter().filter(|(_, cost)| **cost * LEAST_SHARE > whole).collect();
        listed.sort_by_key(|(_, cost)| -**cost);
        for (name, cost) in listed {
            let _ = writeln!(text, "{cost:>8} {name}");
        }
    }
    text
}

fn read(text: &str) -> Figures {
    let mut figures = Figures::new();
    let mut path = String::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some((cost, name)) = line.strip_prefix(' ').and_then(|line| line.trim_start().split_once(' ')) {
            figures.get_mut(&path).unwrap().1.insert(name.to_owned(), cost.parse().unwrap());
        } else {
            let (name, whole) = line.split_once(' ').unwrap();
            name.clone_into(&mut path);
            figures.insert(path.clone(), (whole.parse().unwrap(), Costs::new()));
        }
    }
    figures
}

const MADE_WITH: &str = "# Made with: ";

fn made_with(text: &str) -> &str {
    text.lines().find_map(|line| line.strip_prefix(MADE_WITH)).unwrap_or("nothing that is known")
}

/// What a count depends on besides the code: another compiler or C library may count otherwise.
fn tools() -> String {
    let first_line = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        text.lines().next().unwrap_or("?").trim().to_owned()
    };
    let (rustc, valgrind) = (first_line("rustc", &["--version"]), first_line("valgrind", &["--version"]));
    let libc = first_line("ldd", &["--version"]);
    format!("{rustc}; {valgrind}; {libc}; {}", std::env::consts::ARCH)
}

#[test]
fn figures_are_read_as_they_are_written() {
    let costs = Costs::from([("<a::B as c::D>::e".to_owned(), 900), ("f g".to_owned(), 100), ("little".to_owned(), 1)]);
    let figures = read(&written(&[("in", costs.clone()), ("out", costs)]));
    let (whole, functions) = &figures["in"];
    assert_eq!((*whole, functions.len(), functions["f g"]), (1001, 2, 100));
    assert!(figures.contains_key("out"));
    let now = Costs::from([("f g".to_owned(), 300), ("new".to_owned(), 150), ("little".to_owned(), 90)]);
    assert_eq!(most(&now, functions), "  +200 to 300: f g\n  +50 to 150: new\n");
}
