//! One signal, one token tree: how a process stops.

use tokio_util::sync::CancellationToken;

/// How a process that was told to stop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything that was under way was finished.
    Drained,
    /// The grace period was over before.
    CutOff,
}

/// A token that is cancelled by the first SIGTERM or SIGINT. A second signal ends the process at once.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
        tracing::info!("stopping: finishing what is under way; a second signal ends it at once");
        stop.cancel();
        tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
        std::process::exit(4);
    });
    Ok(token)
}
