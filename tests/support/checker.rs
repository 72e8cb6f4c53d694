//! The message checker: unique numbered payloads, what each caller saw, and what came out in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Mutex;

/// What the caller of one message saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saw {
    /// It was told that the message is stored.
    Ok,
    /// It was told that it is not. The message may exist.
    Fail,
    /// The connection ended without an answer. The message may exist.
    Unknown,
}

/// Names one message: the sender and its number there, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    /// Who sent it. The messages of one sender are sent one after the other.
    pub sender: u32,
    /// Which of the sender's.
    pub number: u32,
}

impl Id {
    /// The payload that carries it.
    pub fn payload(self) -> String {
        format!(r#"{{"sender":{},"number":{}}}"#, self.sender, self.number)
    }

    /// From a payload.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let value: serde_json::Value = serde_json::from_slice(payload).ok()?;
        let number = |name: &str| u32::try_from(value[name].as_u64()?).ok();
        Some(Self { sender: number("sender")?, number: number("number")? })
    }
}

/// The log of what was sent. Shared by all senders.
#[derive(Debug, Default)]
pub struct Checker {
    saw: Mutex<BTreeMap<Id, Saw>>,
}

/// What went wrong, if anything.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Promised to a caller, and neither delivered nor left in a store.
    pub lost: Vec<Id>,
    /// Came out more than once, and how often.
    pub duplicated: BTreeMap<Id, usize>,
    /// Came out, and nobody sent it.
    pub unexpected: Vec<String>,
    /// Came out for the first time after a later one of the same sender.
    pub reordered: Vec<Id>,
}

impl Checker {
    /// Notes what the caller saw of one message.
    pub fn saw(&self, id: Id, saw: Saw) {
        self.saw.lock().unwrap().insert(id, saw);
    }

    /// What the caller of this message saw.
    pub fn what(&self, id: Id) -> Option<Saw> {
        self.saw.lock().unwrap().get(&id).copied()
    }

    /// How many callers saw this.
    pub fn count(&self, wanted: Saw) -> usize {
        self.saw.lock().unwrap().values().filter(|saw| **saw == wanted).count()
    }

    /// How many were sent.
    pub fn sent(&self) -> usize {
        self.saw.lock().unwrap().len()
    }

    /// Whether every promised message is among these payloads. Cheap enough to be polled.
    pub fn all_promised_in<'a>(&self, payloads: impl Iterator<Item = &'a [u8]>) -> bool {
        let came: BTreeSet<Id> = payloads.filter_map(Id::read).collect();
        self.saw.lock().unwrap().iter().all(|(id, saw)| *saw != Saw::Ok || came.contains(id))
    }

    /// Judges everything that came out, in its order of arrival, after the final drain.
    pub fn judge<'a>(&self, payloads: impl Iterator<Item = &'a [u8]>) -> Verdict {
        let saw = self.saw.lock().unwrap();
        let mut verdict = Verdict::default();
        let mut times: BTreeMap<Id, usize> = BTreeMap::new();
        let mut newest: BTreeMap<u32, u32> = BTreeMap::new();
        for payload in payloads {
            let Some(id) = Id::read(payload).filter(|id| saw.contains_key(id)) else {
                verdict.unexpected.push(String::from_utf8_lossy(payload).into_owned());
                continue;
            };
            let count = times.entry(id).or_default();
            *count += 1;
            if *count == 1 {
                let newest = newest.entry(id.sender).or_insert(id.number);
                if id.number < *newest {
                    verdict.reordered.push(id);
                }
                *newest = id.number.max(*newest);
            }
        }
        verdict.lost =
            saw.iter().filter(|(id, saw)| **saw == Saw::Ok && !times.contains_key(id)).map(|(id, _)| *id).collect();
        verdict.duplicated = times.into_iter().filter(|(_, count)| *count > 1).collect();
        verdict
    }

    /// One line for the test's output.
    pub fn summary(&self, verdict: &Verdict) -> String {
        let mut line = String::new();
        let (ok, fail, unknown) = (self.count(Saw::Ok), self.count(Saw::Fail), self.count(Saw::Unknown));
        let _ = write!(line, "sent {} (ok {ok}, fail {fail}, unknown {unknown}); ", self.sent());
        let _ = write!(line, "lost {}, duplicated {}, ", verdict.lost.len(), verdict.duplicated.len());
        let _ = write!(line, "unexpected {}, reordered {}", verdict.unexpected.len(), verdict.reordered.len());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(sent: &[(u32, u32, Saw)], came: &[(u32, u32)]) -> Verdict {
        let checker = Checker::default();
        for (sender, number, saw) in sent {
            checker.saw(Id { sender: *sender, number: *number }, *saw);
        }
        let payloads: Vec<String> =
            came.iter().map(|(sender, number)| Id { sender: *sender, number: *number }.payload()).collect();
        checker.judge(payloads.iter().map(String::as_bytes))
    }

    #[test]
    fn a_checker_finds_what_was_lost_doubled_reordered_and_made_up() {
        let sent = [(0, 0, Saw::Ok), (0, 1, Saw::Ok), (0, 2, Saw::Ok), (0, 3, Saw::Unknown), (1, 0, Saw::Fail)];
        let verdict = judged(&sent, &[(0, 0), (0, 0), (0, 2), (0, 1), (7, 7), (1, 0)]);
        assert!(verdict.lost.is_empty());
        assert_eq!(verdict.duplicated, BTreeMap::from([(Id { sender: 0, number: 0 }, 2)]));
        assert_eq!(verdict.reordered, [Id { sender: 0, number: 1 }]);
        assert_eq!(verdict.unexpected, [Id { sender: 7, number: 7 }.payload()]);
        assert_eq!(judged(&sent, &[(0, 0), (0, 1)]).lost, [Id { sender: 0, number: 2 }]);
    }
}
