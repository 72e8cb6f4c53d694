//! What a worker pod tells the controller, at `/status` of its admin address.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::link::Link;
use super::standing::Standing;
use crate::api::condition::Time;
use crate::plan::ObjectName;

/// Everything that the status of an object is made of. Counters count from `started`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerReport {
    /// The object that it works for.
    pub object: ObjectName,
    /// The hash of the plan that it runs.
    pub plan: String,
    /// When this process started: with the pod's name, it names the worker.
    pub started: Time,
    /// The stores of the plan, by name.
    pub stores: BTreeMap<String, StoreReport>,
    /// Of an ingress worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<IngressCounts>,
    /// Of a forwarding worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwarder: Option<Standing>,
}

impl WorkerReport {
    /// The sum of all counters: when it has not changed, none of them has.
    pub fn total(&self) -> u64 {
        let ingress = self.ingress.map_or(0, |counts| counts.accepted + counts.rejected + counts.failed);
        let forwarder = self.forwarder.as_ref().map_or(0, |standing| {
            standing.delivered
                + standing.failed_attempts
                + standing.dead_lettered
                + standing.dropped
                + standing.filtered
        });
        ingress + forwarder
    }
}

/// One store, as a worker sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreReport {
    /// Its broker.
    pub link: Link,
    /// What waits in its queue; absent if it could not be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<u64>,
    /// Consumers on its queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumers: Option<u32>,
    /// When its queue was found missing last, and declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Time>,
}

/// Requests, by what came of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressCounts {
    /// Stored and answered.
    pub accepted: u64,
    /// Not stored, because of the request.
    pub rejected: u64,
    /// Not stored, because of us or the store.
    pub failed: u64,
}
