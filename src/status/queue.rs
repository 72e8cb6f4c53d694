//! Since when a store's queue has been there. Pure.
//!
//! Who declares a queue can't tell one that is new from one that was deleted; who knows that it was there before can.

use std::time::Duration;

use jiff::Timestamp;

use crate::api::condition::Time;
use crate::api::message_store::QueueStatus;

/// Several find a queue missing at once, on clocks of their own: what they say this soon after is no news.
const AT_ONCE: Duration = Duration::from_secs(5);

/// See [`since`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Since {
    /// `None`: it was not seen yet.
    pub time: Option<Time>,
    /// It was there before, and was found missing: what was in it is lost.
    pub recreated: bool,
}

/// `before`: what was said last. `made`: when somebody found it missing and declared it. `is_up`: it is there now.
pub fn since(
    before: Option<&QueueStatus>,
    queue: &QueueStatus,
    made: Option<&Time>,
    is_up: bool,
    now: Timestamp,
) -> Since {
    let is_same = |before: &&QueueStatus| before.name == queue.name && before.virtual_host == queue.virtual_host;
    let known = before.filter(is_same).and_then(|before| before.since.clone());
    match (known, made) {
        (Some(known), Some(made)) if made.0 > known.0.saturating_add(AT_ONCE).unwrap_or(Timestamp::MAX) => {
            Since { time: Some(whole_seconds(made.0)), recreated: true }
        }
        (Some(known), _) => Since { time: Some(known), recreated: false },
        (None, _) => Since { time: is_up.then(|| whole_seconds(now)), recreated: false },
    }
}

fn whole_seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn queue(name: &str, since: Option<i64>) -> QueueStatus {
        QueueStatus { name: name.to_owned(), since: since.map(at), ..QueueStatus::default() }
    }

    fn judged(before: Option<&QueueStatus>, made: Option<i64>, is_up: bool) -> (Option<i64>, bool) {
        let now = Timestamp::from_second(1000).unwrap();
        let since = since(before, &queue("q", None), made.map(at).as_ref(), is_up, now);
        (since.time.map(|time| time.0.as_second()), since.recreated)
    }

    #[test]
    fn a_new_queue_is_there_once_it_is_seen_whoever_made_it() {
        assert_eq!(judged(None, None, false), (None, false));
        assert_eq!(judged(None, Some(990), false), (None, false));
        assert_eq!(judged(None, Some(990), true), (Some(1000), false));
        assert_eq!(judged(Some(&queue("q", None)), None, true), (Some(1000), false));
    }

    #[test]
    fn one_that_was_there_and_was_found_missing_is_recreated_and_that_is_said_once() {
        let known = queue("q", Some(500));
        assert_eq!(judged(Some(&known), None, true), (Some(500), false));
        assert_eq!(judged(Some(&known), Some(400), true), (Some(500), false), "before it was seen first");
        assert_eq!(judged(Some(&known), Some(504), true), (Some(500), false), "another one's word for the same");
        assert_eq!(judged(Some(&known), Some(900), false), (Some(900), true));
        assert_eq!(judged(Some(&queue("q", Some(900))), Some(900), true), (Some(900), false));
    }

    #[test]
    fn another_queue_has_a_time_of_its_own() {
        assert_eq!(judged(Some(&queue("other", Some(500))), Some(900), true), (Some(1000), false));
    }
}
