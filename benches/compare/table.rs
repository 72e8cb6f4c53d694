//! What was measured, as one table.

use std::fmt::Write as _;

use crate::histogram::Percentiles;

const HEADINGS: [&str; 17] = [
    "what",
    "who",
    "queue",
    "body",
    "messages/s",
    "ratio",
    "of p50",
    "of p99",
    "to",
    "CPU µs",
    "broker µs",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "MiB",
    "lost",
    "twice",
];

/// What a line is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// `ingress, 64 connections`
    pub what: String,
    /// `stagepost`
    pub who: String,
    /// `quorum`; nothing if it has no store.
    pub store: String,
    pub size: usize,
}

/// Of one round.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    pub round: u64,
    pub per_second: f64,
    /// Microseconds a message, its own.
    pub cpu: Option<f64>,
    pub broker: Option<f64>,
    pub latency: Option<Percentiles>,
    pub peak: Option<f64>,
    /// Cores that neither it nor its broker, caller or target used.
    pub elsewhere: f64,
    pub messages: u64,
    pub lost: u64,
    pub twice: u64,
}

#[derive(Debug)]
struct Line {
    key: Key,
    /// Another line, whose rates of the same rounds it is compared with.
    to: Option<Key>,
    samples: Vec<Sample>,
}

#[derive(Debug, Default)]
pub struct Table(Vec<Line>);

impl Table {
    pub fn add(&mut self, key: Key, to: Option<Key>, sample: Sample) {
        eprintln!(
            "round {}: {}, {} {} {}: {:.0}/s, {:.1} µs",
            sample.round + 1,
            key.what,
            key.who,
            key.store,
            shown_size(key.size),
            sample.per_second,
            sample.cpu.unwrap_or(0.0)
        );
        let at = self.0.iter().position(|line| line.key == key).unwrap_or_else(|| {
            self.0.push(Line { key, to, samples: Vec::new() });
            self.0.len() - 1
        });
        self.0[at].samples.push(sample);
    }

    /// Messages that were lost: there must be none.
    pub fn lost(&self) -> u64 {
        self.0.iter().flat_map(|line| &line.samples).map(|sample| sample.lost).sum()
    }

    fn line(&self, key: &Key) -> Option<&Line> {
        self.0.iter().find(|line| line.key == *key)
    }

    /// Of a line's rounds.
    pub fn median(&self, key: &Key, value: fn(&Sample) -> Option<f64>) -> Option<f64> {
        middle(&self.line(key)?.samples.iter().filter_map(value).collect::<Vec<_>>())
    }

    /// Of one line to another, round by round.
    pub fn ratio(&self, key: &Key, to: &Key, value: fn(&Sample) -> Option<f64>) -> Option<f64> {
        middle(&ratios(self.line(key)?, self.line(to)?, value))
    }

    /// The line that another is compared with, and its name beside that.
    fn compared(&self, line: &Line) -> Option<(&Line, String)> {
        let to = line.to.as_ref()?;
        let other = self.line(to)?;
        let differing = [(&to.who, &line.key.who), (&to.store, &line.key.store), (&to.what, &line.key.what)];
        let differing = differing.into_iter().filter(|(one, other)| one != other).map(|(one, _)| one.as_str());
        Some((other, differing.collect::<Vec<_>>().join(", ")))
    }

    pub fn print(&self) -> String {
        let mut text = format!("| {} |\n|{}\n", HEADINGS.join(" | "), "---|".repeat(HEADINGS.len()));
        for line in &self.0 {
            let of = |value: fn(&Sample) -> Option<f64>, digits| {
                spread(&line.samples.iter().filter_map(value).collect::<Vec<_>>(), digits)
            };
            let compared = self.compared(line);
            let ratio = |value: fn(&Sample) -> Option<f64>| {
                compared.as_ref().map(|(other, _)| ratios(line, other, value)).unwrap_or_default()
            };
            let rates = ratio(|sample| Some(sample.per_second));
            let p50 = ratio(|sample| sample.latency.map(|times| times.p50));
            let p99 = ratio(|sample| sample.latency.map(|times| times.p99));
            let to = compared.as_ref().map_or("", |(_, name)| name);
            let sum = |value: fn(&Sample) -> u64| line.samples.iter().map(value).sum::<u64>();
            let accounted = sum(|sample| sample.messages) > 0;
            let counted = |value| if accounted { format!("{value}") } else { String::new() };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {to} | {} | {} | {} | {} | {} | {} | {} | {} |",
                line.key.what,
                line.key.who,
                line.key.store,
                shown_size(line.key.size),
                of(|sample| Some(sample.per_second).filter(|rate| *rate > 0.0), 0),
                spread(&rates, 2),
                median(&p50),
                median(&p99),
                of(|sample| sample.cpu, 1),
                of(|sample| sample.broker, 0),
                of(|sample| sample.latency.map(|times| times.p50), 2),
                of(|sample| sample.latency.map(|times| times.p99), 2),
                of(|sample| sample.latency.map(|times| times.p999), 2),
                of(|sample| sample.peak, 0),
                counted(sum(|sample| sample.lost)),
                counted(sum(|sample| sample.twice)),
            );
        }
        let elsewhere: Vec<f64> = self.0.iter().flat_map(|line| &line.samples).map(|sample| sample.elsewhere).collect();
        let messages: u64 = self.0.iter().flat_map(|line| &line.samples).map(|sample| sample.messages).sum();
        let _ = write!(
            text,
            "\n{messages} messages were accounted for. Cores in use by other work meanwhile: {}.\n",
            spread(&elsewhere, 2)
        );
        text
    }
}

/// Of two lines, round by round.
fn ratios(line: &Line, other: &Line, value: fn(&Sample) -> Option<f64>) -> Vec<f64> {
    let ratio = |sample: &Sample| {
        let paired = other.samples.iter().find(|other| other.round == sample.round)?;
        Some(value(sample)? / value(paired)?)
    };
    line.samples.iter().filter_map(ratio).filter(|ratio| ratio.is_finite()).collect()
}

fn middle(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    // Of an even number, between the two in the middle.
    let (below, above) = (sorted.get(sorted.len().saturating_sub(1) / 2)?, sorted.get(sorted.len() / 2)?);
    Some(f64::midpoint(*below, *above))
}

fn median(values: &[f64]) -> String {
    middle(values).map_or(String::new(), |value| number(value, 2))
}

fn shown_size(size: usize) -> String {
    match size {
        0 => String::new(),
        1..0x10_0000 => format!("{} KiB", size >> 10),
        _ => format!("{} MiB", size >> 20),
    }
}

/// Lowest, median and highest.
fn spread(values: &[f64], digits: usize) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted[..] {
        [] => String::new(),
        [one] => number(one, digits),
        [first, .., last] => {
            [first, middle(&sorted).unwrap_or(first), last].map(|value| number(value, digits)).join(" / ")
        }
    }
}

/// With thousands apart.
pub fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut apart = String::new();
    for (at, digit) in whole.char_indices() {
        if at > 0 && (whole.len() - at) % 3 == 0 {
            apart.push(',');
        }
        apart.push(digit);
    }
    apart + rest
}
