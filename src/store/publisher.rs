//! The policy around one publish of the ingress: retry while not connected, then the failover stores, all of it
//! inside one deadline, because a caller is waiting.
//!
//! Inputs: a message, the chain of stores. Output: stored in one of them, or why not. It never publishes twice to
//! one store what may have been stored there, and it answers `Ok` only when a store did.
//!
//! | what the store said | what happens |
//! |---|---|
//! | not connected | `retry`, then the failover store; without one, `retry` only while the first connect since the start or the loss is pending: then the store is known to be down |
//! | refused, unroutable | the failover store at once |
//! | unknown, partly refused | the failover store takes a second copy (a possible duplicate); never a retry here |
//! | the message is invalid | nothing: no store would take it |

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::mailbox::Caller;
use super::{Connection, MessageStore, PublishError};
use crate::core::message::{Message, ReplyTo};
use crate::core::retry::Backoff;
use crate::telemetry::metrics::{RouteMetrics, StoreMetrics};

/// How long a request waits for the place where its answer is to come: on a broker that is connected, it is there
/// within milliseconds.
const OPENING: Duration = Duration::from_secs(2);

/// That a caller waits for the answer to a message.
#[derive(Debug, Clone)]
pub struct Question {
    /// Until when.
    pub deadline: Timestamp,
    /// Where the answer is counted.
    pub metrics: RouteMetrics,
}

/// One store of the chain.
#[derive(Debug, Clone)]
pub struct Link {
    /// The store.
    pub store: Arc<dyn MessageStore>,
    /// Whether a rule's routing key means something to it: it has an exchange. Another one takes the message under the
    /// key of its own.
    pub keyed: bool,
    /// Tries after the first, while there is no connection.
    pub max_retries: u32,
    /// The waits between them.
    pub backoff: Backoff,
    /// Counted here: one result for each publish that the store was asked for.
    pub metrics: StoreMetrics,
}

/// Publishes into a store, or into the next one of its failover chain.
#[derive(Debug)]
pub struct Publisher {
    first: Link,
    failover: Vec<Link>,
    deadline: Duration,
}

/// What came of a store that did not take the message, kept until it is known whether another one did.
struct Failure<'a> {
    metrics: &'a StoreMetrics,
    error: PublishError,
    elapsed: Duration,
}

impl Publisher {
    /// `deadline` is the first store's, and bounds the whole chain.
    pub fn new(first: Link, failover: Vec<Link>, deadline: Duration) -> Self {
        Self { first, failover, deadline }
    }

    /// Stores the message: `Ok` when one of the stores has it.
    ///
    /// The error is the last store's, except that an unknown outcome before it makes the whole outcome unknown.
    pub async fn publish(&self, message: Arc<Message>, routing_key: Option<&str>) -> Result<(), PublishError> {
        self.carry(message, routing_key, None).await.map(drop)
    }

    /// Prepares for answers: so the first request need not wait for the place where they come in.
    pub fn expect_answers(&self) {
        for link in std::iter::once(&self.first).chain(&self.failover) {
            drop(link.store.mailbox());
        }
    }

    /// Stores a message whose answer a caller waits for, and enters the caller at the broker that has it.
    pub async fn request(
        &self,
        message: Arc<Message>,
        routing_key: Option<&str>,
        question: &Question,
    ) -> Result<Caller, PublishError> {
        let stored = self.carry(message, routing_key, Some(question)).await?;
        stored.ok_or_else(unanswerable)
    }

    async fn carry(
        &self,
        message: Arc<Message>,
        routing_key: Option<&str>,
        question: Option<&Question>,
    ) -> Result<Option<Caller>, PublishError> {
        let end = Instant::now() + self.deadline;
        let mut failures: Vec<Failure<'_>> = Vec::new();
        let links = 1 + self.failover.len();
        for (at, link) in std::iter::once(&self.first).chain(&self.failover).enumerate() {
            let started = Instant::now();
            let last = at + 1 == links;
            // Each store but the last gets at most half of what is left, so that the next has time as well.
            let until = if last { end } else { started + end.saturating_duration_since(started) / 2 };
            let result = link.publish(&message, routing_key, question, until, last).await;
            let elapsed = started.elapsed();
            match result {
                Ok(caller) => {
                    link.metrics.published("ok", elapsed);
                    for failure in &failures {
                        failure.count_as_taken_over();
                    }
                    return Ok(caller);
                }
                Err(error) => {
                    let hopeless = matches!(error, PublishError::Invalid(_));
                    failures.push(Failure { metrics: &link.metrics, error, elapsed });
                    if hopeless {
                        break;
                    }
                }
            }
        }
        Err(conclude(failures))
    }
}

impl Failure<'_> {
    fn count_as_taken_over(&self) {
        self.metrics.published("failover", self.elapsed);
        if self.error.may_be_stored() {
            self.metrics.possible_duplicates.inc();
        }
    }
}

/// Counts what failed, and says what the caller may conclude: unknown if any store may have the message.
fn conclude(failures: Vec<Failure<'_>>) -> PublishError {
    let mut conclusion = PublishError::NotConnected("no store was asked".to_owned());
    for failure in failures {
        failure.metrics.published(failure.error.label(), failure.elapsed);
        if !conclusion.may_be_stored() {
            conclusion = failure.error;
        }
    }
    conclusion
}

impl Link {
    /// Asks this store until it has the message, says no, or `until` has come. `last`: no store follows.
    async fn publish(
        &self,
        message: &Arc<Message>,
        routing_key: Option<&str>,
        question: Option<&Question>,
        until: Instant,
        last: bool,
    ) -> Result<Option<Caller>, PublishError> {
        let routing_key = routing_key.filter(|_| self.keyed);
        let mut failures = 0;
        loop {
            // Looked at before the publish, so that a change during it is not missed.
            let mut connection = self.store.connection();
            let known_down = matches!(*connection.borrow_and_update(), Connection::Down(_));
            let offered = self.offer(message, routing_key, question, until);
            let error = match timeout_at(until, offered).await {
                Ok(Err(error @ PublishError::NotConnected(_))) => error,
                Ok(result) => return result,
                Err(_) => return Err(PublishError::Unknown("no answer within the store's deadline".to_owned())),
            };
            failures += 1;
            let now = Instant::now();
            // No jitter: the callers' arrivals spread the tries.
            let next = now + self.backoff.delay(failures, 0.5);
            if failures > self.max_retries || next >= until || (last && known_down) {
                return Err(error);
            }
            tokio::select! {
                () = sleep_until(next) => {}
                () = news(&mut connection, last) => {}
            }
        }
    }

    /// One publish; with a question, the caller is entered before, so that no answer can come too early.
    async fn offer(
        &self,
        message: &Arc<Message>,
        routing_key: Option<&str>,
        question: Option<&Question>,
        until: Instant,
    ) -> Result<Option<Caller>, PublishError> {
        let Some(question) = question else {
            return self.store.publish(message.clone(), routing_key).await.map(|()| None);
        };
        let mailbox = self.store.mailbox().ok_or_else(unanswerable)?;
        // A broker that is known to be down has no place for answers; the publish says so.
        let is_down = matches!(*self.store.connection().borrow(), Connection::Down(_));
        let patience = if is_down { Instant::now() } else { until.min(Instant::now() + OPENING) };
        let caller = mailbox.enter(&message.id, question.metrics.clone(), patience).await;
        let caller = caller.map_err(PublishError::NotConnected)?;
        let reply_to = ReplyTo { queue: caller.place.to_string(), deadline: question.deadline };
        let message = Message { reply_to: Some(reply_to), ..Message::clone(message) };
        self.store.publish(Arc::new(message), routing_key).await.map(|()| Some(caller))
    }
}

fn unanswerable() -> PublishError {
    PublishError::Invalid("nothing stored here can be answered".to_owned())
}

/// Waits until it is of use to ask again: connected at last, or, where no store follows, the connect has failed (the
/// next round sees that and gives up).
async fn news(connection: &mut watch::Receiver<Connection>, last: bool) {
    while connection.changed().await.is_ok() {
        match *connection.borrow_and_update() {
            Connection::Up => return,
            Connection::Down(_) if last => return,
            Connection::Down(_) | Connection::Connecting => {}
        }
    }
    // The store is gone, and no news will come; the caller's own timer goes on.
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;
    use crate::core::deactivation::Deactivation;
    use crate::core::message::MessageId;
    use crate::store::{BoxFuture, Consumer, Depth, StoreError};
    use crate::telemetry::metrics::Metrics;

    /// What a store says to a publish.
    #[derive(Debug, Clone)]
    enum Said {
        Stored,
        Not(PublishError),
        Nothing,
    }

    /// Answers each publish from a script; the last entry repeats.
    #[derive(Debug)]
    struct Scripted {
        script: Mutex<VecDeque<Said>>,
        asked: Mutex<Vec<Instant>>,
        keys: Mutex<Vec<Option<String>>>,
        connection: watch::Sender<Connection>,
    }

    impl Scripted {
        fn new(script: impl IntoIterator<Item = Said>) -> Arc<Self> {
            Arc::new(Self {
                script: Mutex::new(script.into_iter().collect()),
                asked: Mutex::default(),
                keys: Mutex::default(),
                connection: watch::Sender::new(Connection::Up),
            })
        }

        fn asked(&self) -> usize {
            self.asked.lock().unwrap().len()
        }
    }

    impl MessageStore for Scripted {
        fn publish<'a>(&'a self, _: Arc<Message>, key: Option<&'a str>) -> BoxFuture<'a, Result<(), PublishError>> {
            self.asked.lock().unwrap().push(Instant::now());
            self.keys.lock().unwrap().push(key.map(str::to_owned));
            let mut script = self.script.lock().unwrap();
            let answer = if script.len() > 1 { script.pop_front().unwrap() } else { script[0].clone() };
            Box::pin(async move {
                match answer {
                    Said::Stored => Ok(()),
                    Said::Not(error) => Err(error),
                    Said::Nothing => std::future::pending().await,
                }
            })
        }

        fn depth(&self) -> BoxFuture<'_, Result<Depth, StoreError>> {
            Box::pin(async { Ok(Depth::default()) })
        }

        fn consume(&self, _: u16) -> BoxFuture<'_, Result<Box<dyn Consumer>, StoreError>> {
            Box::pin(async { Err(StoreError::Closed) })
        }

        fn deactivation<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Deactivation>, StoreError>> {
            Box::pin(async { Ok(None) })
        }

        fn deactivate<'a>(&'a self, _: &'a str, _: &'a Deactivation) -> BoxFuture<'a, Result<(), StoreError>> {
            Box::pin(async { Ok(()) })
        }

        fn reactivate<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
            Box::pin(async { Ok(()) })
        }

        fn connection(&self) -> watch::Receiver<Connection> {
            self.connection.subscribe()
        }

        fn name(&self) -> &'static str {
            "scripted"
        }
    }

    fn not_connected() -> Said {
        Said::Not(PublishError::NotConnected("refused".into()))
    }

    fn full() -> Said {
        Said::Not(PublishError::Refused("full".into()))
    }

    fn unknown() -> Said {
        Said::Not(PublishError::Unknown("lost".into()))
    }

    fn link(store: &Arc<Scripted>, name: &str, metrics: &Metrics) -> Link {
        let backoff = Backoff {
            interval: Duration::from_secs(2),
            factor: 1.5,
            max_interval: Duration::from_secs(15),
            jitter: 0.0,
        };
        Link { store: store.clone(), keyed: true, max_retries: 4, backoff, metrics: metrics.store(name) }
    }

    /// The result, the time it took in seconds, and the metrics.
    async fn publish(stores: &[&Arc<Scripted>], deadline: u64) -> (Result<(), PublishError>, f64, String) {
        let metrics = Metrics::default();
        let mut links = stores.iter().zip(["s/a", "s/b", "s/c"]).map(|(store, name)| link(store, name, &metrics));
        let publisher = Publisher::new(links.next().unwrap(), links.collect(), Duration::from_secs(deadline));
        let started = Instant::now();
        let message = Arc::new(Message::new(MessageId::new("id"), "body"));
        let result = publisher.publish(message, None).await;
        (result, started.elapsed().as_secs_f64(), metrics.encode())
    }

    fn counted(metrics: &str, store: &str, result: &str) -> bool {
        metrics.contains(&format!(r#"stagepost_stored_total{{store="{store}",result="{result}"}} 1"#))
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_first_store_takes_is_not_offered_to_the_next() {
        let (a, b) = (Scripted::new([Said::Stored]), Scripted::new([Said::Stored]));
        let (result, _, metrics) = publish(&[&a, &b], 10).await;
        assert_eq!((result, a.asked(), b.asked()), (Ok(()), 1, 0));
        assert!(counted(&metrics, "s/a", "ok"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unreachable_store_is_retried_by_its_plan_and_then_the_failover_takes_over() {
        let (a, b) = (Scripted::new([not_connected()]), Scripted::new([Said::Stored]));
        a.connection.send_replace(Connection::Down(StoreError::NotConnected("refused".into())));
        let (result, elapsed, metrics) = publish(&[&a, &b], 60).await;
        assert_eq!((result, a.asked(), b.asked()), (Ok(()), 5, 1));
        // 2 + 3 + 4.5 + 6.75
        assert!((elapsed - 16.25).abs() < 0.1, "{elapsed}");
        assert!(counted(&metrics, "s/a", "failover") && counted(&metrics, "s/b", "ok"), "{metrics}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_failover_a_store_that_is_known_to_be_down_answers_at_once() {
        let a = Scripted::new([not_connected()]);
        a.connection.send_replace(Connection::Down(StoreError::NotConnected("refused".into())));
        let (result, elapsed, _) = publish(&[&a], 60).await;
        assert!(matches!(result, Err(PublishError::NotConnected(_))));
        assert_eq!(a.asked(), 1);
        assert!(elapsed < 0.01);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_just_connecting_is_waited_for_and_tried_the_moment_it_is_up() {
        let a = Scripted::new([not_connected(), Said::Stored]);
        a.connection.send_replace(Connection::Connecting);
        let store = a.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            store.connection.send_replace(Connection::Up);
        });
        let (result, elapsed, _) = publish(&[&a], 60).await;
        assert_eq!((result, a.asked()), (Ok(()), 2));
        assert!((elapsed - 0.3).abs() < 0.05, "{elapsed}");
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_first_connect_fails_the_callers_are_told_at_once() {
        let a = Scripted::new([not_connected()]);
        a.connection.send_replace(Connection::Connecting);
        let store = a.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            store.connection.send_replace(Connection::Down(StoreError::NotConnected("refused".into())));
        });
        let (result, elapsed, _) = publish(&[&a], 60).await;
        assert!(matches!(result, Err(PublishError::NotConnected(_))));
        assert!((elapsed - 0.3).abs() < 0.05, "{elapsed}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_goes_to_the_failover_at_once() {
        for refusal in [full(), Said::Not(PublishError::Unroutable("key".into()))] {
            let (a, b) = (Scripted::new([refusal]), Scripted::new([Said::Stored]));
            let (result, elapsed, metrics) = publish(&[&a, &b], 10).await;
            assert_eq!((result, a.asked(), b.asked()), (Ok(()), 1, 1));
            assert!(elapsed < 0.01);
            assert!(!metrics.contains(r#"possible_duplicates_total{store="s/a",cause="failover"} 1"#));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_routing_key_is_for_stores_with_an_exchange_and_the_others_have_one_of_their_own() {
        let nowhere = || Scripted::new([Said::Not(PublishError::Unroutable("eu".into()))]);
        let (topic, queue, other) = (nowhere(), nowhere(), Scripted::new([Said::Stored]));
        let metrics = Metrics::default();
        let failover = vec![Link { keyed: false, ..link(&queue, "s/b", &metrics) }, link(&other, "s/c", &metrics)];
        let publisher = Publisher::new(link(&topic, "s/a", &metrics), failover, Duration::from_secs(10));
        let message = Arc::new(Message::new(MessageId::new("id"), "body"));
        assert_eq!(publisher.publish(message, Some("eu")).await, Ok(()));
        let keys = [topic, queue, other].map(|store| store.keys.lock().unwrap().clone());
        assert_eq!(keys, [vec![Some("eu".to_owned())], vec![None], vec![Some("eu".to_owned())]]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_outcome_is_never_retried_and_its_second_copy_is_counted() {
        let (a, b) = (Scripted::new([unknown()]), Scripted::new([Said::Stored]));
        let (result, _, metrics) = publish(&[&a, &b], 10).await;
        assert_eq!((result, a.asked(), b.asked()), (Ok(()), 1, 1));
        assert!(metrics.contains(r#"possible_duplicates_total{store="s/a",cause="failover"} 1"#), "{metrics}");

        let (alone, refusing) = (Scripted::new([unknown()]), Scripted::new([full()]));
        let (result, ..) = publish(&[&alone], 10).await;
        assert!(matches!(result, Err(PublishError::Unknown(_))));
        assert_eq!(alone.asked(), 1);
        // The message may be in the first store, whatever the second one says.
        let (result, ..) = publish(&[&alone, &refusing], 10).await;
        assert!(matches!(result, Err(PublishError::Unknown(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_stores_deadline_bounds_the_chain_and_each_store_leaves_half_to_the_next() {
        let (a, b, c) =
            (Scripted::new([Said::Nothing]), Scripted::new([Said::Nothing]), Scripted::new([Said::Nothing]));
        let started = Instant::now();
        let (result, elapsed, _) = publish(&[&a, &b, &c], 8).await;
        assert!(matches!(result, Err(PublishError::Unknown(_))));
        assert!((elapsed - 8.0).abs() < 0.05, "{elapsed}");
        let at = |store: &Scripted| (store.asked.lock().unwrap()[0] - started).as_secs_f64();
        assert!((at(&b) - 4.0).abs() < 0.05 && (at(&c) - 6.0).abs() < 0.05, "{} {}", at(&b), at(&c));
    }

    #[tokio::test(start_paused = true)]
    async fn no_retry_waits_beyond_the_stores_share_of_the_deadline() {
        let (a, b) = (Scripted::new([not_connected()]), Scripted::new([Said::Stored]));
        let (result, elapsed, _) = publish(&[&a, &b], 10).await;
        assert_eq!((result, a.asked()), (Ok(()), 2));
        assert!((elapsed - 2.0).abs() < 0.05, "{elapsed}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_no_store_can_take_is_offered_once() {
        let invalid = Said::Not(PublishError::Invalid("too large".into()));
        let (a, b) = (Scripted::new([invalid]), Scripted::new([Said::Stored]));
        let (result, ..) = publish(&[&a, &b], 10).await;
        assert!(matches!(result, Err(PublishError::Invalid(_))));
        assert_eq!(b.asked(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn both_refused_is_an_error_and_each_is_counted() {
        let (a, b) = (Scripted::new([full()]), Scripted::new([full()]));
        let (result, _, metrics) = publish(&[&a, &b], 10).await;
        assert!(matches!(result, Err(PublishError::Refused(_))));
        assert!(counted(&metrics, "s/a", "refused") && counted(&metrics, "s/b", "refused"));
    }
}
