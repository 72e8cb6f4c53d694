//! `stagepost status` and `stagepost reactivate`: of a local run, by its admin address, or of a cluster.
//!
//! A flag says which. Without one it is the local run at the usual address, else the cluster of the kubeconfig.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::ValueEnum;
use jiff::Timestamp;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::cluster::{self, ClusterError, Where};
use super::{Exit, failed, table};
use crate::local::names::{self, Wanted};
use crate::telemetry::console;

/// To a process on this machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The admin address itself gives up after 10 s.
const TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, clap::Args)]
struct Admin {
    /// The admin address of a local run [default: 127.0.0.1:9901, if a run answers there]
    #[arg(long, value_name = "ADDR", value_parser = names::address)]
    admin: Option<SocketAddr>,
}

impl Admin {
    fn address(&self) -> SocketAddr {
        self.admin.unwrap_or(USUAL)
    }
}

/// Where a local run listens if nobody says otherwise.
const USUAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);

/// Whether the cluster is meant.
async fn is_for_cluster(admin: &Admin, at: &Where) -> bool {
    if at.is_named() {
        return true;
    }
    admin.admin.is_none() && cluster::is_configured() && TcpStream::connect(USUAL).await.is_err()
}

/// Flags of `stagepost status`.
#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Only the objects of this name: NAME or NAMESPACE/NAME
    name: Option<Wanted>,
    #[command(flatten)]
    admin: Admin,
    #[command(flatten)]
    at: Where,
    /// More columns (wide), or everything (json)
    #[arg(short, long, value_enum)]
    output: Option<Output>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Json,
    Wide,
}

/// Flags of `stagepost reactivate`.
#[derive(Debug, clap::Args)]
pub(super) struct ReactivateArgs {
    /// The ForwardingProcessor: NAME or NAMESPACE/NAME
    name: Wanted,
    #[command(flatten)]
    admin: Admin,
    #[command(flatten)]
    at: Where,
}

/// Why there is no answer, or not the wanted one.
#[derive(Debug, thiserror::Error)]
enum RemoteError {
    #[error(
        "no local run answers at {0}; start `stagepost run`, give its admin address with --admin, or a cluster with --namespace"
    )]
    Unreachable(SocketAddr, #[source] reqwest::Error),
    #[error("what listens at {0} is no admin address of stagepost; give the right one with --admin")]
    Foreign(SocketAddr),
    #[error("{0}")]
    Refused(String),
    #[error("there is no object named `{0}`; `stagepost status` lists all")]
    NoSuch(String),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("can't prepare the request")]
    Client(#[source] reqwest::Error),
    #[error("can't start")]
    Runtime(#[source] std::io::Error),
}

pub(super) fn status(args: &StatusArgs) -> Exit {
    match block_on(show(args)) {
        Ok(()) => Exit::Done,
        Err(error) => exit_of(&error),
    }
}

pub(super) fn reactivate(args: &ReactivateArgs) -> Exit {
    match block_on(post(args)) {
        Ok(line) => {
            console::print(&line);
            Exit::Done
        }
        Err(error) => exit_of(&error),
    }
}

fn exit_of(error: &RemoteError) -> Exit {
    let exit = if matches!(error, RemoteError::Client(_) | RemoteError::Runtime(_)) {
        Exit::NotStarted
    } else {
        Exit::Refused
    };
    failed(exit, error)
}

fn block_on<T>(work: impl Future<Output = Result<T, RemoteError>>) -> Result<T, RemoteError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RemoteError::Runtime)?.block_on(work)
}

/// Without proxies: the address is on this machine.
fn client() -> Result<Client, RemoteError> {
    Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT).timeout(TIMEOUT).build().map_err(RemoteError::Client)
}

async fn show(args: &StatusArgs) -> Result<(), RemoteError> {
    let mut status = if is_for_cluster(&args.admin, &args.at).await {
        json!({"items": cluster::items(&args.at).await?})
    } else {
        of_local_run(args.admin.address()).await?
    };
    let foreign = RemoteError::Foreign(args.admin.address());
    let items = status["items"].as_array_mut().ok_or(foreign)?;
    if let Some(wanted) = &args.name {
        let text = |item: &Value, field: &str| item["metadata"][field].as_str().unwrap_or_default().to_owned();
        items.retain(|item| wanted.is(&text(item, "namespace"), &text(item, "name")));
        if items.is_empty() {
            return Err(RemoteError::NoSuch(wanted.to_string()));
        }
    }
    if args.output == Some(Output::Json) {
        console::print(&format!("{status:#}"));
        return Ok(());
    }
    let lines = table::render(items, args.output == Some(Output::Wide), Timestamp::now());
    if lines.is_empty() {
        console::print("No objects.");
    } else {
        console::print(&lines.join("\n"));
    }
    Ok(())
}

async fn of_local_run(admin: SocketAddr) -> Result<Value, RemoteError> {
    let unreachable = |error| RemoteError::Unreachable(admin, error);
    let answer = client()?.get(format!("http://{admin}/status")).send().await.map_err(unreachable)?;
    json_of(answer, admin).await
}

async fn post(args: &ReactivateArgs) -> Result<String, RemoteError> {
    if is_for_cluster(&args.admin, &args.at).await {
        let (namespace, name) = args.name.parts();
        return Ok(cluster::reactivate(&args.at, namespace, name).await?);
    }
    let admin = args.admin.address();
    let url = format!("http://{admin}/processors/{}/reactivate", args.name);
    let answer = client()?.post(url).send().await.map_err(|error| RemoteError::Unreachable(admin, error))?;
    let done: Value = json_of(answer, admin).await?;
    let processor = done["processor"].as_str().ok_or(RemoteError::Foreign(admin))?;
    Ok(match done["reactivated"].as_bool() {
        Some(true) => format!("{processor} reactivated"),
        _ => format!("{processor} was not deactivated"),
    })
}

async fn json_of(answer: Response, admin: SocketAddr) -> Result<Value, RemoteError> {
    let success = answer.status().is_success();
    let body: Value = answer.json().await.map_err(|_| RemoteError::Foreign(admin))?;
    match body["error"].as_str() {
        Some(error) => Err(RemoteError::Refused(error.to_owned())),
        None if success => Ok(body),
        None => Err(RemoteError::Foreign(admin)),
    }
}
