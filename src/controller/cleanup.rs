//! `stagepost cleanup`: what must be done before the chart goes, so that nothing of it holds up anything later.
//!
//! The controller is stopped, then our finalizers are removed: nobody would be there to do it. Queues stay as they are.
//! What is gone already counts as done.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::ControllerError;
use super::error::{Error, api};
use super::report::Ours;
use super::watch::Scope;
use crate::api::{ForwardingProcessor, MessageStore, PROCESSOR_FINALIZER, QUEUE_FINALIZER};

/// For the controller's pods to end. After it they are passed over: finalizers that come back are removed once more.
const PODS_END_WITHIN: Duration = Duration::from_secs(30);

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What the command line says.
#[derive(Debug, Clone)]
pub struct CleanupOptions {
    /// The controller's Deployment.
    pub deployment: String,
    /// Its namespace.
    pub namespace: String,
    /// Where objects are; empty: everywhere.
    pub namespaces: Vec<String>,
}

/// Stops the controller and removes our finalizers.
pub async fn cleanup(options: CleanupOptions) -> Result<(), ControllerError> {
    let client = Client::try_default().await.map_err(|error| ControllerError::NoCluster(Box::new(error)))?;
    let refused = |error: Error| ControllerError::Refused(error.to_string());
    stop(&client, &options).await.map_err(refused)?;
    let scopes = if options.namespaces.is_empty() {
        vec![Scope::All]
    } else {
        options.namespaces.iter().cloned().map(Scope::Namespace).collect()
    };
    for scope in &scopes {
        release::<ForwardingProcessor>(&client, scope).await.map_err(refused)?;
        release::<MessageStore>(&client, scope).await.map_err(refused)?;
    }
    Ok(())
}

fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Api { source, .. }
        if matches!(&**source, kube::Error::Api(status) if [403, 404].contains(&status.code)))
}

async fn stop(client: &Client, options: &CleanupOptions) -> Result<(), Error> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &options.namespace);
    let deployment = match api("get the controller", deployments.get(&options.deployment)).await {
        Ok(deployment) => deployment,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let patch = Patch::Merge(json!({"spec": {"replicas": 0}}));
    api("stop the controller", deployments.patch_scale(&options.deployment, &PatchParams::default(), &patch)).await?;
    let selector = deployment.spec.and_then(|spec| spec.selector.match_labels).unwrap_or_default();
    let selector: Vec<String> = selector.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &options.namespace);
    let own = ListParams::default().labels(&selector.join(","));
    let deadline = Instant::now() + PODS_END_WITHIN;
    while !api("list the controller's pods", pods.list(&own)).await?.items.is_empty() {
        if Instant::now() > deadline {
            tracing::warn!("the controller's pods have not ended; going on without waiting longer");
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    tracing::info!(deployment = options.deployment, "the controller is stopped");
    Ok(())
}

async fn release<K: Ours>(client: &Client, scope: &Scope) -> Result<(), Error> {
    let objects = match api("list objects", scope.api::<K>(client).list_metadata(&ListParams::default())).await {
        Ok(objects) => objects,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let is_ours = |name: &String| [PROCESSOR_FINALIZER, QUEUE_FINALIZER].contains(&name.as_str());
    for object in objects.items.iter().filter(|object| object.finalizers().iter().any(is_ours)) {
        let rest: Vec<&String> = object.finalizers().iter().filter(|name| !is_ours(name)).collect();
        let patch = Patch::Merge(json!({"metadata": {"finalizers": rest}}));
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let here: Api<K> = Api::namespaced(client.clone(), &namespace);
        match api("remove finalizers", here.patch_metadata(&name, &PatchParams::default(), &patch)).await {
            Ok(_) => tracing::info!(kind = K::KIND, "{namespace}/{name}: finalizer removed"),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
