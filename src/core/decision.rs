//! The decision after each attempt: settle, try again, or give up in the way the user chose.
//!
//! [`decide`] is the heart of the product: whatever a target does, what happens to the message is read off here.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::duration;
use super::outcome::{Outcome, OutcomeMatch};
use super::retry::{Backoff, parse_retry_after};

/// The rules of one processor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Which outcome means what.
    pub outcomes: Outcomes,
    /// The waits between attempts.
    pub backoff: Backoff,
    /// Attempts after the first; `None`: for ever.
    pub max_redeliveries: Option<u32>,
    /// `Retry-After` is honoured up to this; zero ignores it.
    #[serde(with = "super::duration::millis")]
    pub max_retry_after: Duration,
    /// Whether an unreachable target uses up attempts.
    pub while_unreachable: WhileUnreachable,
    /// What is done with a message that has finally failed.
    pub on_failure: OnFailure,
}

impl Policy {
    /// Whether an attempt with this outcome uses up one of the attempts.
    fn counts(&self, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Cancelled => false,
            Outcome::ConnectionError(_) => self.while_unreachable == WhileUnreachable::Count,
            _ => true,
        }
    }
}

/// What a response means. Within a list an exact status beats a class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Outcomes {
    /// Delivered.
    pub success: Vec<OutcomeMatch>,
    /// Tried again.
    pub retry: Vec<OutcomeMatch>,
    /// Given up at once.
    pub fail: Vec<OutcomeMatch>,
    /// The processor stops at once, the message stays.
    pub deactivate: Vec<OutcomeMatch>,
}

/// Whether an unreachable target uses up attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhileUnreachable {
    /// No: an outage is not the message's fault.
    Wait,
    /// Yes.
    Count,
}

/// What is done with a message that has finally failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnFailure {
    /// It moves to the dead letter store, then leaves the source.
    DeadLetter,
    /// It stays at the head of the source, and the processor stops.
    Deactivate,
    /// It is discarded and counted.
    Drop,
}

/// What an outcome means under a set of lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Delivered.
    Success,
    /// Worth another attempt.
    Retry,
    /// Never going to work.
    Fail,
    /// Stop the processor.
    Deactivate,
}

/// Why a message was given up. The text is what users see in status, events and dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// All attempts failed.
    MaxRedeliveries,
    /// The target refused it with an outcome that is not retried.
    Rejected,
    /// The target answered what `outcomes.deactivate` names.
    DeactivateOutcome,
    /// A transform, a template or an expression failed on it.
    TransformFailed,
    /// No queue takes it in the target store.
    Unroutable,
}

impl Reason {
    /// The name in `CamelCase`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MaxRedeliveries => "MaxRedeliveries",
            Self::Rejected => "Rejected",
            Self::DeactivateOutcome => "DeactivateOutcome",
            Self::TransformFailed => "TransformFailed",
            Self::Unroutable => "Unroutable",
        }
    }
}

/// What has happened to one message so far, the attempt just made included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Attempts that count against `max_redeliveries`.
    pub counted: u32,
    /// Failures in a row that count for the backoff, unreachable ones included.
    pub failures: u32,
}

impl Tally {
    /// The tally after one more attempt.
    #[must_use]
    pub fn after(self, policy: &Policy, outcome: &Outcome) -> Self {
        if *outcome == Outcome::Cancelled {
            return self;
        }
        let counted = u32::from(policy.counts(outcome));
        Self { counted: self.counted.saturating_add(counted), failures: self.failures.saturating_add(1) }
    }
}

/// What to do now. A value only: carrying it out is the forwarder's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The target has it: take it out of the source.
    Settle,
    /// Another attempt after this wait.
    RetryAfter {
        /// The wait, from the end of the attempt.
        delay: Duration,
        /// The target asked for a pause of the whole processor besides; [`pause_asked`] says how long. This message
        /// waits for its backoff too, the others do not.
        pause_all: bool,
    },
    /// Move it to the dead letter store.
    DeadLetter(Reason),
    /// Keep it and stop the processor.
    Deactivate(Reason),
    /// Discard it.
    Drop(Reason),
    /// We were interrupted: give it back untouched.
    Return,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settle => f.write_str("settle"),
            Self::RetryAfter { delay, pause_all: false } => write!(f, "retry in {}", duration::format(*delay)),
            Self::RetryAfter { delay, pause_all: true } => {
                write!(f, "retry in {}, the processor pauses", duration::format(*delay))
            }
            Self::DeadLetter(reason) => write!(f, "dead-letter: {}", reason.as_str()),
            Self::Deactivate(reason) => write!(f, "deactivate: {}", reason.as_str()),
            Self::Drop(reason) => write!(f, "drop: {}", reason.as_str()),
            Self::Return => f.write_str("return"),
        }
    }
}

impl Outcomes {
    /// Reads one outcome: an exact entry first, then a class, else the rule for what nobody listed.
    ///
    /// Only an answer can be a success, whatever the lists say: without one nobody knows that the message arrived,
    /// and it must not leave its store.
    pub fn verdict(&self, outcome: &Outcome) -> Verdict {
        let named = match outcome {
            Outcome::Stored => return Verdict::Success,
            Outcome::Unroutable | Outcome::Invalid(_) => return Verdict::Fail,
            Outcome::Cancelled => return Verdict::Retry,
            Outcome::Response { status, .. } => OutcomeMatch::Status(status.as_u16()),
            Outcome::ConnectionError(_) => OutcomeMatch::ConnectionError,
            Outcome::Tls(_) => OutcomeMatch::Tls,
            Outcome::NoResponse(_) => OutcomeMatch::NoResponse,
            Outcome::Timeout => OutcomeMatch::Timeout,
        };
        let class = outcome.status().and_then(|status| u8::try_from(status / 100).ok()).map(OutcomeMatch::Class);
        let lists = [
            (&self.success, Verdict::Success),
            (&self.retry, Verdict::Retry),
            (&self.fail, Verdict::Fail),
            (&self.deactivate, Verdict::Deactivate),
        ];
        let answered = outcome.status().is_some();
        let readable = &lists[usize::from(!answered)..];
        let find = |wanted| readable.iter().find(|(list, _)| list.contains(&wanted)).map(|(_, verdict)| *verdict);
        // What is not listed: a failure without a status may be over next time, an unlisted answer will not be.
        let otherwise = if answered { Verdict::Fail } else { Verdict::Retry };
        find(named).or_else(|| class.and_then(find)).unwrap_or(otherwise)
    }
}

/// Decides what happens to a message after an attempt.
///
/// `tally` includes this attempt (see [`Tally::after`]); `random` is uniform in `[0, 1)` and spreads the wait.
pub fn decide(policy: &Policy, tally: Tally, outcome: &Outcome, now: Timestamp, random: f64) -> Decision {
    if *outcome == Outcome::Cancelled {
        return Decision::Return;
    }
    match policy.outcomes.verdict(outcome) {
        Verdict::Success => Decision::Settle,
        Verdict::Deactivate => Decision::Deactivate(Reason::DeactivateOutcome),
        Verdict::Fail if *outcome == Outcome::Unroutable => give_up(policy, Reason::Unroutable),
        Verdict::Fail => give_up(policy, Reason::Rejected),
        Verdict::Retry => {
            // What uses up no attempt cannot use up the last one, however many were made under other rules.
            let spent = policy.counts(outcome) && policy.max_redeliveries.is_some_and(|most| tally.counted > most);
            if spent { give_up(policy, Reason::MaxRedeliveries) } else { retry(policy, tally, outcome, now, random) }
        }
    }
}

/// The way the user chose for a message that has finally failed, whatever the cause.
pub fn give_up(policy: &Policy, reason: Reason) -> Decision {
    match policy.on_failure {
        OnFailure::DeadLetter => Decision::DeadLetter(reason),
        OnFailure::Deactivate => Decision::Deactivate(reason),
        OnFailure::Drop => Decision::Drop(reason),
    }
}

fn retry(policy: &Policy, tally: Tally, outcome: &Outcome, now: Timestamp, random: f64) -> Decision {
    let backoff = policy.backoff.delay(tally.failures, random);
    let asked = retry_after(policy, outcome, now).unwrap_or_default();
    Decision::RetryAfter { delay: backoff.max(asked), pause_all: pause_asked(policy, outcome, now).is_some() }
}

/// The pause that the target asks of the whole processor, by 429 or 503 with `Retry-After`. None if it asks for no
/// time.
///
/// It holds whatever becomes of the message: when this was its last attempt, the next message must not be sent
/// straight into the same answer.
pub fn pause_asked(policy: &Policy, outcome: &Outcome, now: Timestamp) -> Option<Duration> {
    let asked = retry_after(policy, outcome, now).filter(|asked| !asked.is_zero());
    asked.filter(|_| matches!(outcome.status(), Some(429 | 503)))
}

/// The wait that the target asks for, as far as it is honoured.
fn retry_after(policy: &Policy, outcome: &Outcome, now: Timestamp) -> Option<Duration> {
    if policy.max_retry_after.is_zero() {
        return None;
    }
    let Outcome::Response { headers, .. } = outcome else { return None };
    // Of several values the first that can be read counts.
    headers
        .get_all(http::header::RETRY_AFTER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .find_map(|value| parse_retry_after(value, now))
        .map(|asked| asked.min(policy.max_retry_after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue, StatusCode, header::RETRY_AFTER};
    use proptest::prelude::*;

    fn policy() -> Policy {
        Policy {
            outcomes: Outcomes {
                success: vec![OutcomeMatch::Class(2)],
                retry: vec![
                    OutcomeMatch::Status(408),
                    OutcomeMatch::Status(425),
                    OutcomeMatch::Status(429),
                    OutcomeMatch::Class(5),
                ],
                fail: vec![],
                deactivate: vec![],
            },
            backoff: Backoff {
                interval: Duration::from_secs(1),
                factor: 2.0,
                max_interval: Duration::from_secs(60),
                jitter: 0.0,
            },
            max_redeliveries: Some(3),
            max_retry_after: Duration::from_secs(600),
            while_unreachable: WhileUnreachable::Wait,
            on_failure: OnFailure::DeadLetter,
        }
    }

    fn answer(status: u16) -> Outcome {
        Outcome::Response { status: StatusCode::from_u16(status).unwrap(), headers: HeaderMap::new() }
    }

    fn answer_with_retry_after(status: u16, value: &str) -> Outcome {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_str(value).unwrap());
        Outcome::Response { status: StatusCode::from_u16(status).unwrap(), headers }
    }

    fn after(counted: u32) -> Tally {
        Tally { counted, failures: counted }
    }

    fn decide_at_epoch(policy: &Policy, tally: Tally, outcome: &Outcome) -> Decision {
        decide(policy, tally, outcome, Timestamp::UNIX_EPOCH, 0.5)
    }

    #[test]
    fn a_class_of_success_settles() {
        assert_eq!(decide_at_epoch(&policy(), after(1), &answer(204)), Decision::Settle);
    }

    #[test]
    fn one_attempt_and_n_redeliveries_then_the_dead_letter_store() {
        for counted in 1..=3 {
            assert!(matches!(
                decide_at_epoch(&policy(), after(counted), &answer(500)),
                Decision::RetryAfter { pause_all: false, .. }
            ));
        }
        assert_eq!(decide_at_epoch(&policy(), after(4), &answer(500)), Decision::DeadLetter(Reason::MaxRedeliveries));
    }

    #[test]
    fn what_nobody_listed_is_given_up_at_once() {
        assert_eq!(decide_at_epoch(&policy(), after(1), &answer(404)), Decision::DeadLetter(Reason::Rejected));
        assert_eq!(decide_at_epoch(&policy(), after(1), &answer(301)), Decision::DeadLetter(Reason::Rejected));
        assert_eq!(decide_at_epoch(&policy(), after(1), &answer(999)), Decision::DeadLetter(Reason::Rejected));
    }

    #[test]
    fn an_exact_status_beats_a_class() {
        let mut policy = policy();
        policy.outcomes.fail = vec![OutcomeMatch::Status(501)];
        assert_eq!(decide_at_epoch(&policy, after(1), &answer(501)), Decision::DeadLetter(Reason::Rejected));
        policy.outcomes.deactivate = vec![OutcomeMatch::Status(201)];
        assert_eq!(decide_at_epoch(&policy, after(1), &answer(201)), Decision::Deactivate(Reason::DeactivateOutcome));
    }

    #[test]
    fn an_unreachable_target_uses_up_no_attempt_unless_it_counts() {
        let refused = Outcome::ConnectionError("connection refused".into());
        let waiting = (0..100).fold(Tally::default(), |tally, _| tally.after(&policy(), &refused));
        assert_eq!(waiting, Tally { counted: 0, failures: 100 });
        assert!(matches!(decide_at_epoch(&policy(), waiting, &refused), Decision::RetryAfter { .. }));

        let counting = Policy { while_unreachable: WhileUnreachable::Count, ..policy() };
        let spent = (0..4).fold(Tally::default(), |tally, _| tally.after(&counting, &refused));
        assert_eq!(decide_at_epoch(&counting, spent, &refused), Decision::DeadLetter(Reason::MaxRedeliveries));
    }

    #[test]
    fn retry_after_is_the_longer_wait_and_pauses_all() {
        assert_eq!(
            decide_at_epoch(&policy(), after(1), &answer_with_retry_after(503, "30")),
            Decision::RetryAfter { delay: Duration::from_secs(30), pause_all: true }
        );
        assert_eq!(
            decide_at_epoch(&policy(), after(1), &answer_with_retry_after(503, "1000000000")),
            Decision::RetryAfter { delay: Duration::from_secs(600), pause_all: true }
        );
        assert_eq!(
            decide_at_epoch(&policy(), after(1), &answer_with_retry_after(429, "0")),
            Decision::RetryAfter { delay: Duration::from_secs(1), pause_all: false }
        );
        // The fourth backoff is longer than what was asked: it is this message's alone.
        let patient = Policy { max_redeliveries: None, ..policy() };
        let asked = answer_with_retry_after(503, "2");
        assert_eq!(
            decide_at_epoch(&patient, after(4), &asked),
            Decision::RetryAfter { delay: Duration::from_secs(8), pause_all: true }
        );
        assert_eq!(pause_asked(&patient, &asked, Timestamp::UNIX_EPOCH), Some(Duration::from_secs(2)));
        assert_eq!(
            decide_at_epoch(&policy(), after(1), &answer_with_retry_after(500, "5")),
            Decision::RetryAfter { delay: Duration::from_secs(5), pause_all: false }
        );
        let ignoring = Policy { max_retry_after: Duration::ZERO, ..policy() };
        assert_eq!(
            decide_at_epoch(&ignoring, after(1), &answer_with_retry_after(503, "30")),
            Decision::RetryAfter { delay: Duration::from_secs(1), pause_all: false }
        );
    }

    #[test]
    fn a_pause_that_the_target_asks_for_outlives_the_message() {
        let pause = |outcome: &Outcome| pause_asked(&policy(), outcome, Timestamp::UNIX_EPOCH);
        let last = answer_with_retry_after(503, "30");
        assert_eq!(decide_at_epoch(&policy(), after(4), &last), Decision::DeadLetter(Reason::MaxRedeliveries));
        assert_eq!(pause(&last), Some(Duration::from_secs(30)));
        assert_eq!(pause(&answer_with_retry_after(429, "9999")), Some(Duration::from_secs(600)));
        assert_eq!(pause(&answer_with_retry_after(500, "30")), None);
        assert_eq!(pause(&answer(503)), None);
        assert_eq!(pause(&answer_with_retry_after(503, "0")), None);
        let ignoring = Policy { max_retry_after: Duration::ZERO, ..policy() };
        assert_eq!(pause_asked(&ignoring, &last, Timestamp::UNIX_EPOCH), None);
    }

    #[test]
    fn a_failure_without_an_answer_is_no_success_even_if_a_list_says_so() {
        let mut policy = policy();
        let names = [OutcomeMatch::Timeout, OutcomeMatch::NoResponse, OutcomeMatch::ConnectionError, OutcomeMatch::Tls];
        policy.outcomes.success.extend(names);
        for outcome in [
            Outcome::Timeout,
            Outcome::NoResponse("x".into()),
            Outcome::ConnectionError("x".into()),
            Outcome::Tls("x".into()),
        ] {
            assert_eq!(policy.outcomes.verdict(&outcome), Verdict::Retry, "{outcome:?}");
        }
        policy.outcomes.fail.push(OutcomeMatch::Timeout);
        assert_eq!(policy.outcomes.verdict(&Outcome::Timeout), Verdict::Fail);
    }

    #[test]
    fn an_unreachable_target_never_spends_the_last_attempt() {
        let refused = Outcome::ConnectionError("connection refused".into());
        let tally = after(9).after(&policy(), &refused);
        assert!(matches!(decide_at_epoch(&policy(), tally, &refused), Decision::RetryAfter { .. }));
    }

    #[test]
    fn our_own_shutdown_counts_nothing_and_gives_back() {
        let tally = Tally::default().after(&policy(), &Outcome::Cancelled);
        assert_eq!(tally, Tally::default());
        assert_eq!(decide_at_epoch(&policy(), tally, &Outcome::Cancelled), Decision::Return);
    }

    fn any_outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            (100u16..1000).prop_map(answer),
            Just(Outcome::Stored),
            Just(Outcome::ConnectionError("x".into())),
            Just(Outcome::Tls("x".into())),
            Just(Outcome::NoResponse("x".into())),
            Just(Outcome::Timeout),
            Just(Outcome::Unroutable),
            Just(Outcome::Invalid("x".into())),
            Just(Outcome::Cancelled),
        ]
    }

    proptest! {
        /// The number of counted attempts never passes 1 + maxRedeliveries, whatever the target does.
        #[test]
        fn attempts_are_bounded(outcomes in proptest::collection::vec(any_outcome(), 1..60), most in 0u32..10) {
            let policy = Policy { max_redeliveries: Some(most), ..policy() };
            let mut tally = Tally::default();
            for outcome in outcomes {
                tally = tally.after(&policy, &outcome);
                prop_assert!(tally.counted <= most + 1);
                match decide(&policy, tally, &outcome, Timestamp::UNIX_EPOCH, 0.0) {
                    Decision::RetryAfter { .. } | Decision::Return => {}
                    _ => break,
                }
            }
        }

        /// A message leaves its store only for a success, a dead letter or an explicit drop.
        #[test]
        fn only_success_settles(outcome in any_outcome(), counted in 0u32..20) {
            let decision = decide(&policy(), after(counted), &outcome, Timestamp::UNIX_EPOCH, 0.9);
            let success = matches!(outcome, Outcome::Stored) || outcome.status().is_some_and(|s| s / 100 == 2);
            prop_assert_eq!(decision == Decision::Settle, success);
            prop_assert!(!matches!(decision, Decision::Drop(_)));
        }
    }
}
