//! Holding the Lease: so that several controllers can run, and one acts.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::error::{Error, api};
use super::lease::{ACT_FOR, Observed, RENEW_EVERY, Step, TERM, observe, step};

/// The Lease's name, in the namespace of the controller.
pub(super) const LEASE: &str = "stagepost-controller";

/// Giving the Lease back must not hold up the end of the process.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// Whether this controller may act now. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Leadership(Arc<Until>);

#[derive(Debug)]
enum Until {
    /// Nobody else is there.
    Always,
    /// By our own clock; none before the Lease was taken.
    Moment(Mutex<Option<Instant>>),
}

impl Leadership {
    /// Of a controller that is alone.
    pub(super) fn sole() -> Self {
        Self(Arc::new(Until::Always))
    }

    fn shared() -> Self {
        Self(Arc::new(Until::Moment(Mutex::default())))
    }

    /// Whether nobody else can have taken the Lease yet. A controller that was stopped for a while finds out here.
    pub(super) fn is_ours(&self) -> bool {
        match &*self.0 {
            Until::Always => true,
            Until::Moment(until) => {
                until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
            }
        }
    }

    fn extend(&self, to: Option<Instant>) {
        if let Until::Moment(until) = &*self.0 {
            *until.lock().unwrap_or_else(PoisonError::into_inner) = to;
        }
    }
}

/// A candidate, and later the holder.
#[derive(Debug)]
pub(super) struct Elector {
    leases: Api<Lease>,
    me: String,
    leadership: Leadership,
    observed: Option<Observed>,
}

impl Elector {
    pub(super) fn new(client: Client, namespace: &str, me: String) -> Self {
        let leases = Api::namespaced(client, namespace);
        Self { leases, me, leadership: Leadership::shared(), observed: None }
    }

    pub(super) fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// Waits until the Lease is ours, or `shutdown`.
    pub(super) async fn acquire(&mut self, shutdown: &CancellationToken) -> bool {
        let mut said = false;
        loop {
            match self.attempt().await {
                Ok(true) => return true,
                Ok(false) if !said => {
                    said = true;
                    let holder = self.observed.as_ref().map_or("", |observed| observed.holder.as_str());
                    tracing::info!(holder, "another controller acts; waiting for its lease");
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "the lease can't be read or taken; trying again"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return false,
                () = sleep(RENEW_EVERY) => {}
            }
        }
    }

    /// Renews until `shutdown` (then gives it back, true) or until it is lost (false).
    pub(super) async fn hold(mut self, shutdown: &CancellationToken) -> bool {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => {
                    self.leadership.extend(None);
                    let _ = timeout(RELEASE_TIMEOUT, self.release()).await;
                    return true;
                }
                () = sleep(RENEW_EVERY) => {}
            }
            match self.attempt().await {
                Ok(true) => {}
                Err(error) if self.leadership.is_ours() => tracing::warn!(%error, "the lease could not be renewed"),
                Ok(false) | Err(_) => return false,
            }
        }
    }

    /// Reads the Lease, and takes or renews it if that is right. Answers whether it is ours.
    async fn attempt(&mut self) -> Result<bool, Error> {
        // Before the request: the term of others begins when the API server has it.
        let begun = Instant::now();
        let present = api("get the lease", self.leases.get_opt(LEASE)).await?;
        let Some(present) = present else {
            let lease = self.lease(None, 0);
            let created = api("create the lease", self.leases.create(&PostParams::default(), &lease)).await;
            return self.taken(begun, created.map(|_| ()));
        };
        let holder = present.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
        let version = present.metadata.resource_version.clone().unwrap_or_default();
        let observed = observe(self.observed.take(), &holder, &version, Instant::now());
        let next = step(&observed, &self.me, Instant::now());
        self.observed = Some(observed);
        if next == Step::Wait {
            self.leadership.extend(None);
            return Ok(false);
        }
        let transitions = present.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0);
        let transitions = transitions + i32::from(holder != self.me);
        let lease = self.lease(Some(version), transitions);
        let replaced = api("renew the lease", self.leases.replace(LEASE, &PostParams::default(), &lease)).await;
        self.taken(begun, replaced.map(|_| ()))
    }

    fn taken(&mut self, begun: Instant, answer: Result<(), Error>) -> Result<bool, Error> {
        match answer {
            Ok(()) => {
                self.leadership.extend(Some(begun + ACT_FOR));
                Ok(true)
            }
            // Somebody else was quicker.
            Err(error) if error.class() == super::error::Class::Conflict => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lets the next one begin at once.
    async fn release(&self) -> Result<(), Error> {
        let Some(mut lease) = api("get the lease", self.leases.get_opt(LEASE)).await? else { return Ok(()) };
        if let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(&self.me)) {
            spec.holder_identity = Some(String::new());
            api("release the lease", self.leases.replace(LEASE, &PostParams::default(), &lease)).await?;
        }
        Ok(())
    }

    fn lease(&self, version: Option<String>, transitions: i32) -> Lease {
        let now = MicroTime(Timestamp::now());
        Lease {
            metadata: ObjectMeta { name: Some(LEASE.to_owned()), resource_version: version, ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.me.clone()),
                lease_duration_seconds: i32::try_from(TERM.as_secs()).ok(),
                renew_time: Some(now.clone()),
                acquire_time: Some(now),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }
}
