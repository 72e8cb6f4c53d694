//! Why a run can't start, or has to end.

use std::io;
use std::time::Duration;

use tokio::time::sleep;

use super::listeners::BindError;
use crate::sink::SinkError;
use crate::store::embedded::OpenError;
use crate::telemetry::panics;

/// Until a task that panicked is seen to have ended.
const UNWINDING: Duration = Duration::from_millis(100);

/// Why a run did not start, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// What is wrong with the manifests, a line each.
    #[error("{}", .0.join("; "))]
    Manifests(Vec<String>),
    /// Flags that do not fit the manifests.
    #[error("{0}")]
    Usage(String),
    /// The data folder.
    #[error(transparent)]
    Data(OpenError),
    /// An address.
    #[error("{0}")]
    Listen(String),
    /// The sink.
    #[error(transparent)]
    Sink(SinkError),
    /// A part that could not be started, a line each.
    #[error("{}", .0.join("; "))]
    NotStarted(Vec<String>),
    /// The system gives no signals or no address.
    #[error("the system refuses what every process needs")]
    Signals(#[source] io::Error),
    /// A part ended that must not.
    #[error(
        "a bug ended a part of this process; nothing that was accepted is lost; start it again, and report what is logged above"
    )]
    Bug,
}

impl RunError {
    pub(super) fn listen(error: &BindError) -> Self {
        Self::Listen(error.to_string())
    }
}

/// Returns a moment after a panic. Some parts catch their own and go on; those that do not have ended by then.
pub(super) async fn panicked() {
    panics::happened().await;
    sleep(UNWINDING).await;
}
