//! What every process of ours starts with: a runtime, and the few environment variables that are read.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::core::duration;

/// Threads that run tasks. The work is disk and network: two keep a laptop's idle memory small and still let the
/// store's group commit run beside the requests.
const WORKERS: usize = 2;

/// Shortens the hold limit, for tests.
const HOLD_LIMIT: &str = "STAGEPOST_HOLD_LIMIT";

/// Why it can't begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("the environment variable {HOLD_LIMIT} is `{0}`; write a duration like 30s, or unset it")]
    HoldLimit(String),
    #[error("no folder for the data: neither XDG_STATE_HOME nor HOME is set; give one with --data")]
    NoDataFolder,
    #[error("can't start threads")]
    Runtime(#[source] std::io::Error),
}

pub(super) fn runtime() -> Result<Runtime, StartError> {
    Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().map_err(StartError::Runtime)
}

pub(super) fn hold_limit() -> Result<Option<Duration>, StartError> {
    match std::env::var(HOLD_LIMIT) {
        Ok(text) if !text.is_empty() => duration::parse(&text).map(Some).map_err(|_| StartError::HoldLimit(text)),
        _ => Ok(None),
    }
}
