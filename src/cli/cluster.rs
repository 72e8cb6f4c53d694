//! `stagepost status` and `stagepost reactivate` in a cluster, with the rights of the kubeconfig.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Config, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::api::{ForwardingProcessor, IngressRoute, MessageStore, REACTIVATE_ANNOTATION};

/// For one answer of the API server.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Which cluster, and where in it.
#[derive(Debug, clap::Args)]
pub(super) struct Where {
    /// In a cluster: the namespace [default: that of the context]
    #[arg(short, long, value_name = "NAMESPACE", conflicts_with = "admin")]
    pub(super) namespace: Option<String>,
    /// In a cluster: all namespaces
    #[arg(short = 'A', long, conflicts_with_all = ["admin", "namespace"])]
    pub(super) all_namespaces: bool,
    /// In a cluster: a context of the kubeconfig
    #[arg(long, value_name = "CONTEXT", conflicts_with = "admin")]
    pub(super) context: Option<String>,
}

impl Where {
    /// Whether a cluster is meant, by a flag.
    pub(super) fn is_named(&self) -> bool {
        self.namespace.is_some() || self.all_namespaces || self.context.is_some()
    }
}

/// Why there is no answer, or not the wanted one.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClusterError {
    #[error("no cluster can be used; set KUBECONFIG, or name a context of it with --context")]
    NoConfig(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the API server refuses: {0}")]
    Refused(#[source] Box<kube::Error>),
    #[error("the API server does not answer within {TIMEOUT:?}")]
    TimedOut,
}

/// Whether there is anything to find a cluster by.
pub(super) fn is_configured() -> bool {
    let in_home = std::env::var_os("HOME").is_some_and(|home| Path::new(&home).join(".kube/config").exists());
    std::env::var_os("KUBECONFIG").is_some() || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() || in_home
}

async fn client(at: &Where) -> Result<Client, ClusterError> {
    let config = match &at.context {
        None => Config::infer().await.map_err(|error| ClusterError::NoConfig(Box::new(error)))?,
        Some(context) => {
            let no_config = |error| ClusterError::NoConfig(Box::new(error));
            let file = Kubeconfig::read().map_err(no_config)?;
            let options = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(file, &options).await.map_err(no_config)?
        }
    };
    Client::try_from(config).map_err(|error| ClusterError::NoConfig(Box::new(error)))
}

async fn ask<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ClusterError> {
    match timeout(TIMEOUT, call).await {
        Ok(answer) => answer.map_err(|error| ClusterError::Refused(Box::new(error))),
        Err(_) => Err(ClusterError::TimedOut),
    }
}

fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(client: &Client, at: &Where) -> Api<K> {
    match &at.namespace {
        _ if at.all_namespaces => Api::all(client.clone()),
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::default_namespaced(client.clone()),
    }
}

/// Every object of ours, as `/status` of a local run has them.
pub(super) async fn items(at: &Where) -> Result<Vec<Value>, ClusterError> {
    async fn of<K>(client: &Client, at: &Where, kind: &str) -> Result<Vec<Value>, ClusterError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + Serialize
            + DeserializeOwned,
    {
        let listed = ask(api::<K>(client, at).list(&ListParams::default())).await?;
        let value = |object: K| {
            let mut value = json!(object);
            // In a list, objects do not say what they are.
            value["apiVersion"] = json!(crate::api::API_VERSION);
            value["kind"] = json!(kind);
            if let Some(meta) = value["metadata"].as_object_mut() {
                meta.remove("managedFields");
            }
            value
        };
        Ok(listed.items.into_iter().map(value).collect())
    }
    let client = client(at).await?;
    let mut items = of::<MessageStore>(&client, at, "MessageStore").await?;
    items.extend(of::<IngressRoute>(&client, at, "IngressRoute").await?);
    items.extend(of::<ForwardingProcessor>(&client, at, "ForwardingProcessor").await?);
    Ok(items)
}

/// Asks the controller to reactivate a processor. What it does about it stands in the object's status.
pub(super) async fn reactivate(at: &Where, namespace: Option<&str>, name: &str) -> Result<String, ClusterError> {
    let client = client(at).await?;
    let processors: Api<ForwardingProcessor> = match namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => api(&client, at),
    };
    // Any value that was not there before.
    let patch = json!({"metadata": {"annotations": {REACTIVATE_ANNOTATION: Timestamp::now().to_string()}}});
    let patched = ask(processors.patch(name, &PatchParams::default(), &Patch::Merge(patch))).await?;
    let state = patched.status.and_then(|status| status.state);
    Ok(match state {
        Some(crate::api::processor_status::ProcessorState::Deactivated) => format!("{name}: asked to deliver again"),
        _ => format!("{name} was not deactivated"),
    })
}
