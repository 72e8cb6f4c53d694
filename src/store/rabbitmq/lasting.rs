//! Tasks that others rely on for as long as they are of use: a panic, which is a bug and logged as one, does not end them.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::sleep;

/// Before what panicked begins anew.
const AFTER_PANIC: Duration = Duration::from_secs(1);

pub(super) trait Lasting: Send + 'static {
    /// Works until nobody needs it any more.
    fn run(&mut self) -> impl Future<Output = ()> + Send;

    /// It was cut off in the middle, and begins anew in a moment: whoever relies on it is told.
    fn cut_off(&mut self) {}
}

pub(super) fn start(mut task: impl Lasting) {
    tokio::spawn(async move {
        while AssertUnwindSafe(task.run()).catch_unwind().await.is_err() {
            task.cut_off();
            sleep(AFTER_PANIC).await;
        }
    });
}
