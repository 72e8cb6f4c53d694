//! The keeper over a store that only knows the record, and is out of reach when the test says so.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;
use crate::core::deactivation::Deactivation;
use crate::core::message::Message;
use crate::local::desired::Desired;
use crate::local::launch::{Ingredients, Services};
use crate::plan::ForwarderPlan;
use crate::plan::load;
use crate::store::{BoxFuture, Connection, Consumer, Depth, PublishError};
use crate::telemetry::metrics::Metrics;

#[derive(Debug)]
struct Records {
    record: Mutex<Option<Deactivation>>,
    is_down: AtomicBool,
    tries: AtomicU32,
    connection: watch::Sender<Connection>,
}

impl Records {
    fn new(is_down: bool) -> Arc<Self> {
        let record = Deactivation {
            uid: String::new(),
            time: jiff::Timestamp::UNIX_EPOCH,
            message_id: "1".into(),
            reason: "Rejected".into(),
            message: String::new(),
            attempts: 1,
        };
        Arc::new(Self {
            record: Mutex::new(Some(record)),
            is_down: AtomicBool::new(is_down),
            tries: AtomicU32::new(0),
            connection: watch::Sender::new(Connection::Up),
        })
    }

    fn is_there(&self) -> bool {
        lock(&self.record).is_some()
    }

    fn comes_back(&self) {
        self.is_down.store(false, Ordering::Relaxed);
    }

    async fn tried(&self) {
        let before = self.tries.load(Ordering::Relaxed);
        until(|| self.tries.load(Ordering::Relaxed) > before).await;
    }

    fn down<T: Send + 'static>() -> BoxFuture<'static, Result<T, StoreError>> {
        Box::pin(async { Err(StoreError::NotConnected("down".to_owned())) })
    }
}

impl MessageStore for Records {
    fn publish<'a>(&'a self, _: Arc<Message>, _: Option<&'a str>) -> BoxFuture<'a, Result<(), PublishError>> {
        Box::pin(async { Err(PublishError::NotConnected("down".to_owned())) })
    }

    fn depth(&self) -> BoxFuture<'_, Result<Depth, StoreError>> {
        Self::down()
    }

    fn consume(&self, _: u16) -> BoxFuture<'_, Result<Box<dyn Consumer>, StoreError>> {
        Self::down()
    }

    fn deactivation<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Deactivation>, StoreError>> {
        Box::pin(async { Ok(lock(&self.record).clone()) })
    }

    fn deactivate<'a>(&'a self, _: &'a str, _: &'a Deactivation) -> BoxFuture<'a, Result<(), StoreError>> {
        Self::down()
    }

    fn reactivate<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        self.tries.fetch_add(1, Ordering::Relaxed);
        if self.is_down.load(Ordering::Relaxed) {
            return Self::down();
        }
        *lock(&self.record) = None;
        Box::pin(async { Ok(()) })
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.subscribe()
    }

    fn name(&self) -> &'static str {
        "records"
    }
}

async fn until(so: impl Fn() -> bool) {
    let waited = timeout(Duration::from_secs(3600), async {
        while !so() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.expect("it comes");
}

fn plan() -> ForwarderPlan {
    let yaml = "apiVersion: stagepost.dev/v1alpha1\nkind: MessageStore\nmetadata: {name: box}\n\
        spec: {broker: {secretRef: {name: rabbitmq}}, queue: {}}\n---\n\
        apiVersion: stagepost.dev/v1alpha1\nkind: ForwardingProcessor\nmetadata: {name: out}\n\
        spec: {storeRef: {name: box}, target: {url: 'http://127.0.0.1:1/'}}\n";
    let desired = Desired::of(&load::load_text("test.yaml", yaml, &load::Options::default()), &[]).unwrap();
    desired.processors.into_values().next().unwrap().plan
}

fn run(source: &Arc<Records>) -> Wish {
    let plan = plan();
    let stores: BTreeMap<String, Arc<dyn MessageStore>> =
        plan.stores.keys().map(|name| (name.clone(), source.clone() as Arc<dyn MessageStore>)).collect();
    let with = Ingredients {
        stores,
        turn: Arc::default(),
        values: &crate::plan::keys::ManifestKeys::default().of("default"),
        services: &Services::default(),
        hold_limit: None,
    };
    Wish { what: What::Run(Arc::new(Launch::new(plan, with).unwrap())), reactivate: None }
}

fn wish(what: What) -> Wish {
    Wish { what, reactivate: None }
}

fn keeper(predecessors: Vec<CancellationToken>) -> Keeper {
    let identity = Identity {
        slashed: "default/out".to_owned(),
        dotted: "default.out".to_owned(),
        metrics: Metrics::default().processor("default/out"),
    };
    Keeper::new(identity, None, predecessors)
}

fn phase(keeper: &Keeper) -> Phase {
    keeper.read().0
}

fn in_a_minute() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

#[tokio::test(start_paused = true)]
async fn a_removed_processor_takes_its_record_along_and_one_that_ends_does_not() {
    let records = Records::new(false);
    let ended = keeper(Vec::new());
    ended.wish(run(&records));
    until(|| phase(&ended) == Phase::Running).await;
    assert_eq!(ended.end(in_a_minute()).await, Some(0));
    assert!(records.is_there());

    let removed = keeper(Vec::new());
    removed.wish(run(&records));
    until(|| phase(&removed) == Phase::Running).await;
    removed.wish(wish(What::Remove(records.clone(), in_a_minute())));
    until(|| removed.has_ended()).await;
    assert!(!records.is_there());
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_under_a_name_before_the_record_of_its_predecessor_is_gone() {
    let records = Records::new(true);
    let removed = keeper(Vec::new());
    removed.wish(wish(What::Remove(records.clone(), in_a_minute())));
    let next = keeper(vec![removed.ended()]);
    next.wish(run(&records));
    records.tried().await;
    records.tried().await;
    assert_eq!(phase(&next), Phase::Starting);
    records.comes_back();
    until(|| phase(&next) == Phase::Running).await;
    assert!(!records.is_there());
    assert_eq!(next.end(in_a_minute()).await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_removal_does_not_wait_for_ever_and_a_shutdown_not_for_a_predecessor() {
    let records = Records::new(true);
    let removed = keeper(Vec::new());
    removed.wish(wish(What::Remove(records.clone(), in_a_minute())));
    let next = keeper(vec![removed.ended()]);
    next.wish(run(&records));
    records.tried().await;
    assert_eq!(next.end(in_a_minute()).await, Some(0));
    until(|| removed.has_ended()).await;
    assert!(records.is_there());
}

#[tokio::test(start_paused = true)]
async fn a_suspension_whose_record_stayed_is_made_up_for_before_anything_starts() {
    let records = Records::new(true);
    let keeper = keeper(Vec::new());
    keeper.wish(wish(What::Suspend(records.clone())));
    records.tried().await;
    keeper.wish(run(&records));
    records.tried().await;
    records.tried().await;
    assert_ne!(phase(&keeper), Phase::Running);
    records.comes_back();
    until(|| phase(&keeper) == Phase::Running).await;
    assert!(!records.is_there());
}

#[tokio::test(start_paused = true)]
async fn what_does_not_run_can_be_reactivated_and_says_whether_it_was_deactivated() {
    let records = Records::new(false);
    let keeper = keeper(Vec::new());
    let missing = Missing { reason: "NotFound", message: String::new() };
    keeper.wish(wish(What::Wait(missing.clone())));
    until(|| phase(&keeper) == Phase::Waiting(missing.clone())).await;
    assert_eq!(keeper.reactivate(&*records).await, Ok(true));
    assert!(!records.is_there());
    assert_eq!(keeper.reactivate(&*records).await, Ok(false));
}
