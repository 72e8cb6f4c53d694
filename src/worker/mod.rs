//! What a worker pod runs: one plan, from a file, with mounted Secrets. No token, no API server.
//!
//! Inputs: a plan file, a folder of mounted Secrets and config maps, two addresses. Outputs: requests stored or messages
//! delivered; `/status`, `/metrics`, `/livez`, `/readyz` at the admin address. What it does is the same code that a local
//! run does; only where plans, Secrets and names of Services come from differs.

mod admin;
mod forward;
mod ingress;
mod mounts;
mod stores;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use forward::forward;
pub use ingress::ingress;

use crate::ingress::RouteError;
use crate::plan::Plan;
pub use crate::shutdown::Ended;

/// What the command line says.
#[derive(Debug, Clone)]
pub struct Options {
    /// The file with the plan.
    pub plan: PathBuf,
    /// Holds `secret/NAME/KEY` and `config-map/NAME/KEY`.
    pub secrets: PathBuf,
    /// Status, metrics, probes.
    pub admin: SocketAddr,
    /// Time to drain.
    pub grace: Duration,
    /// Shortens the hold limit.
    pub hold_limit: Option<Duration>,
}

/// Why a worker did not start, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The file can't be read.
    #[error("can't read the plan {0}")]
    Unreadable(PathBuf, #[source] io::Error),
    /// The file holds no plan, or one of a newer version.
    #[error("{0} holds no plan of this version; run the image that the controller of this version names")]
    Foreign(PathBuf, #[source] serde_json::Error),
    /// A plan of the other worker.
    #[error("{0} is a plan for `stagepost {1}`")]
    WrongKind(PathBuf, &'static str),
    /// An address.
    #[error("can't listen on {0} ({1}); choose another address")]
    Listen(SocketAddr, &'static str, #[source] io::Error),
    /// The rules do not compile, which the controller would have said.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The processor does not compile, or a Secret lacks a key.
    #[error("{0}")]
    Processor(String),
    /// The system gives no signals.
    #[error("the system refuses what every process needs")]
    Signals(#[source] io::Error),
    /// A part ended that must not.
    #[error("a bug ended a part of this process; nothing that was accepted is lost")]
    Bug,
}

fn read(path: &Path) -> Result<Plan, WorkerError> {
    let text = std::fs::read(path).map_err(|error| WorkerError::Unreadable(path.to_owned(), error))?;
    serde_json::from_slice(&text).map_err(|error| WorkerError::Foreign(path.to_owned(), error))
}
