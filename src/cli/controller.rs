//! `stagepost controller` and `stagepost cleanup`: what the chart runs.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::start;
use super::{Exit, failed};
use crate::controller::resources::WorkerSettings;
use crate::controller::{self, CleanupOptions, ControllerError, Options};
use crate::local::names;

/// Flags of `stagepost controller`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Metrics and probes
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:8080", value_parser = names::address)]
    listen: SocketAddr,
    /// The image that workers run: that of this controller
    #[arg(long, value_name = "IMAGE", env = "STAGEPOST_IMAGE")]
    image: String,
    /// Always, `IfNotPresent` or Never
    #[arg(long, value_name = "POLICY", default_value = "IfNotPresent")]
    image_pull_policy: String,
    /// Where objects are looked after, comma separated; all if absent
    #[arg(long, value_name = "NAMESPACES", value_delimiter = ',')]
    namespaces: Vec<String>,
    /// Act only while holding the lease, so that several controllers may run
    #[arg(long)]
    leader_elect: bool,
    /// Make a `NetworkPolicy` for the pods of each object
    #[arg(long)]
    network_policy: bool,
    /// With --network-policy: who may scrape the workers besides the controller's namespace, as a JSON list of peers
    #[arg(long, value_name = "JSON", default_value = "[]", value_parser = peers)]
    metrics_from: Value,
    /// The namespace of this controller
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = "default", hide = true)]
    own_namespace: String,
    /// What tells this controller from others
    #[arg(long, value_name = "NAME", env = "POD_NAME", default_value = "stagepost-controller", hide = true)]
    identity: String,
}

/// Flags of `stagepost cleanup`.
#[derive(Debug, clap::Args)]
pub(super) struct CleanupArgs {
    /// The controller's Deployment
    #[arg(long, value_name = "NAME")]
    deployment: String,
    /// Its namespace
    #[arg(long, value_name = "NAMESPACE")]
    namespace: String,
    /// Where objects are looked after, comma separated; all if absent
    #[arg(long, value_name = "NAMESPACES", value_delimiter = ',')]
    namespaces: Vec<String>,
}

fn peers(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(peers @ Value::Array(_)) => Ok(peers),
        Ok(_) => Err("not a list; write it as [{\"namespaceSelector\": …}]".to_owned()),
        Err(error) => Err(format!("no JSON: {error}")),
    }
}

pub(super) fn run(args: Args, log_format: &str, log_level: &str) -> Exit {
    let own = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": args.own_namespace}}});
    let admin_peers = args.network_policy.then(|| {
        let more = args.metrics_from.as_array().cloned().unwrap_or_default();
        std::iter::once(own).chain(more).collect()
    });
    let options = Options {
        namespaces: args.namespaces.into_iter().filter(|name| !name.is_empty()).collect(),
        listen: args.listen,
        leader_elect: args.leader_elect,
        settings: WorkerSettings {
            image: args.image,
            image_pull_policy: args.image_pull_policy,
            log_format: log_format.to_owned(),
            log_level: log_level.to_owned(),
            admin_peers,
        },
        namespace: args.own_namespace,
        identity: args.identity,
    };
    end(controller::run(options))
}

pub(super) fn cleanup(args: CleanupArgs) -> Exit {
    let namespaces = args.namespaces.into_iter().filter(|name| !name.is_empty()).collect();
    end(controller::cleanup(CleanupOptions { deployment: args.deployment, namespace: args.namespace, namespaces }))
}

fn end(work: impl Future<Output = Result<(), ControllerError>>) -> Exit {
    let runtime = match start::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return failed(Exit::NotStarted, &error),
    };
    crate::telemetry::panics::report();
    let ended = runtime.block_on(work);
    runtime.shutdown_background();
    match ended {
        Ok(()) => Exit::Done,
        Err(error @ (ControllerError::Bug | ControllerError::LostLease)) => failed(Exit::CutOff, &error),
        Err(error @ ControllerError::Refused(_)) => failed(Exit::Refused, &error),
        Err(error) => failed(Exit::NotStarted, &error),
    }
}
