//! Asks worker pods, at their admin address.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use reqwest::{Client, Response};

use super::context::Context;
use super::resources::ADMIN_PORT;
use crate::api::UID_LABEL;
use crate::status::report::WorkerReport;

/// For one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of one answer.
const LARGEST_REPORT: usize = 1024 * 1024;

/// Pods that are asked at once.
const AT_ONCE: usize = 32;

/// Pods are asked by address, and never through a proxy.
pub(super) fn client() -> Result<Client, reqwest::Error> {
    Client::builder().no_proxy().timeout(ANSWER_TIMEOUT).connect_timeout(ANSWER_TIMEOUT).build()
}

/// Asks every worker that has an address, and keeps what it says.
pub(super) async fn all(ctx: &Context, client: &Client) {
    let pods = ctx.caches.pods.state();
    let running: Vec<Arc<Pod>> = pods.iter().filter(|pod| is_running(pod)).cloned().collect();
    let asked = running.into_iter().map(|pod| one(client.clone(), pod));
    let mut answers = stream::iter(asked).buffer_unordered(AT_ONCE);
    while let Some(answer) = answers.next().await {
        if let Some((namespace, name, report)) = answer {
            ctx.samples.put(&namespace, &name, report);
        }
    }
    ctx.samples.asked();
    ctx.samples.retain(|namespace, name| {
        pods.iter().any(|pod| pod.name_any() == name && pod.namespace().as_deref() == Some(namespace))
    });
}

async fn one(client: Client, pod: Arc<Pod>) -> Option<(String, String, WorkerReport)> {
    let address = pod.status.as_ref()?.pod_ip.clone()?;
    let host = if address.contains(':') { format!("[{address}]") } else { address };
    let answer = client.get(format!("http://{host}:{ADMIN_PORT}/status")).send().await.ok()?;
    let report: WorkerReport = serde_json::from_slice(&bounded(answer).await?).ok()?;
    // An address may have passed to somebody else's pod, and a pod speaks for its own namespace only.
    let is_its = pod.labels().get(UID_LABEL) == Some(&report.object.uid)
        && pod.namespace().as_deref() == Some(&report.object.namespace);
    is_its.then(|| (pod.namespace().unwrap_or_default(), pod.name_any(), report))
}

/// The body, unless it is larger than any report.
async fn bounded(mut answer: Response) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.ok()? {
        body.extend_from_slice(&chunk);
        if body.len() > LARGEST_REPORT {
            return None;
        }
    }
    Some(body)
}

fn is_running(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    status.is_some_and(|status| status.phase.as_deref() == Some("Running") && status.pod_ip.is_some())
}
