//! Panics, which must never pass in silence.

use std::panic;

use tokio::sync::Notify;

static PANICKED: Notify = Notify::const_new();

/// Logs every panic as an error, wherever it happens, and wakes who looks after the parts of the process.
pub fn report() {
    panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let message = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(location, "a bug: {message}; please report it");
        PANICKED.notify_one();
    }));
}

/// Returns after a panic. What panicked may not have ended yet.
pub async fn happened() {
    PANICKED.notified().await;
}
