//! The bodies that everybody is measured with: JSON of a given size that carries a number and the moment of sending,
//! so that each one can be accounted for and timed wherever it turns up.

use std::time::{SystemTime, UNIX_EPOCH};

const NUMBER: usize = 12;
const MOMENT: usize = 20;
const HEAD: &str = "{\"number\":\"";
const BETWEEN: &str = "\",\"sent\":\"";
const PAD: &str = "\",\"pad\":\"";

/// Nanoseconds of the wall clock: the same for all processes of a machine.
pub fn now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// A body of exactly this size.
pub fn body(size: usize) -> Vec<u8> {
    let mut text = format!("{HEAD}{:0NUMBER$}{BETWEEN}{:0MOMENT$}{PAD}", 0, 0);
    let letters = "the quick brown fox jumps over the lazy dog ";
    while text.len() < size - 2 {
        text.push_str(&letters[..letters.len().min(size - 2 - text.len())]);
    }
    (text + "\"}").into_bytes()
}

/// Writes number and moment into a body, which may stand in a longer text.
pub fn stamp(body: &mut [u8], number: u64, moment: u64) {
    digits(&mut body[HEAD.len()..][..NUMBER], number);
    digits(&mut body[HEAD.len() + NUMBER + BETWEEN.len()..][..MOMENT], moment);
}

fn digits(place: &mut [u8], mut value: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap();
        value /= 10;
    }
}

/// Number and moment of a body.
pub fn read(body: &[u8]) -> Option<(u64, u64)> {
    let rest = body.strip_prefix(HEAD.as_bytes())?;
    let (number, rest) = rest.split_at_checked(NUMBER)?;
    let moment = rest.strip_prefix(BETWEEN.as_bytes())?.get(..MOMENT)?;
    let value = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse().ok();
    Some((value(number)?, value(moment)?))
}

/// A set of numbers.
#[derive(Default)]
pub struct Numbers(Vec<u64>);

impl Numbers {
    /// Whether it was new.
    pub fn add(&mut self, number: u64) -> bool {
        let (word, bit) = (usize::try_from(number / 64).unwrap(), 1 << (number % 64));
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    pub fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// How many are here and not there.
    pub fn without(&self, other: &Self) -> u64 {
        let there = |at: usize| other.0.get(at).copied().unwrap_or(0);
        self.0.iter().enumerate().map(|(at, word)| u64::from((word & !there(at)).count_ones())).sum()
    }

    /// Only the even ones.
    pub fn even(&self) -> Self {
        Self(self.0.iter().map(|word| word & 0x5555_5555_5555_5555).collect())
    }

    pub fn merge(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }

    /// As text, for another process.
    pub fn to_text(&self) -> String {
        self.0.iter().fold(String::new(), |text, word| text + &format!("{word:016x}"))
    }

    pub fn from_text(text: &str) -> Self {
        let word = |at: usize| u64::from_str_radix(&text[at * 16..][..16], 16).unwrap();
        Self((0..text.len() / 16).map(word).collect())
    }
}
