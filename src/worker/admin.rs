//! The admin address of a worker pod. The kubelet, the controller and a scraper ask it by the pod's address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::WorkerError;
use crate::status::report::WorkerReport;
use crate::store::BoxFuture;
use crate::telemetry::{admin, metrics};

/// For one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Above the time between two questions of the controller.
const LAST_WORD_WITHIN: Duration = Duration::from_secs(4);

/// What was told last at `/status`.
#[derive(Debug, Default)]
pub(super) struct Told {
    total: AtomicU64,
    asked: Notify,
}

/// Waits a moment until the last counts have been asked for: what an orderly end counted should be in the status.
pub(super) async fn last_word(worker: &dyn Asked) {
    let total = worker.report().await.total();
    let told = worker.told();
    let asked = async {
        loop {
            let asked = told.asked.notified();
            if told.total.load(Ordering::Acquire) == total {
                return;
            }
            asked.await;
        }
    };
    // Nobody may be there who asks.
    let _ = timeout(LAST_WORD_WITHIN, asked).await;
}

/// What a worker can be asked.
pub(super) trait Asked: Send + Sync + 'static {
    fn told(&self) -> &Told;
    fn report(&self) -> BoxFuture<'_, WorkerReport>;
    fn metrics(&self) -> String;
    /// Whether nothing that must run has ended.
    fn is_live(&self) -> bool;
    /// Whether it works, and has not begun to stop.
    fn is_ready(&self) -> bool;
}

/// Binds, and serves until `shutdown`.
pub(super) async fn start(
    address: SocketAddr,
    worker: Arc<dyn Asked>,
    shutdown: CancellationToken,
) -> Result<(), WorkerError> {
    let listener = TcpListener::bind(address).await.map_err(|error| WorkerError::Listen(address, "--admin", error))?;
    let router = Router::new()
        .route("/status", get(status))
        .route("/metrics", get(scrape))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .with_state(worker);
    tokio::spawn(admin::serve(listener, router, shutdown));
    Ok(())
}

async fn status(State(worker): State<Arc<dyn Asked>>) -> Response {
    match timeout(ANSWER_TIMEOUT, worker.report()).await {
        Ok(report) => {
            worker.told().total.store(report.total(), Ordering::Release);
            worker.told().asked.notify_waiters();
            Json(report).into_response()
        }
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "no answer in time; try again\n").into_response(),
    }
}

async fn scrape(State(worker): State<Arc<dyn Asked>>) -> Response {
    // The gauges are set by the report.
    let _ = timeout(ANSWER_TIMEOUT, worker.report()).await;
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], worker.metrics()).into_response()
}

async fn live(State(worker): State<Arc<dyn Asked>>) -> Response {
    say(worker.is_live(), StatusCode::INTERNAL_SERVER_ERROR, "a part of this process has ended; it must start again\n")
}

async fn ready(State(worker): State<Arc<dyn Asked>>) -> Response {
    say(worker.is_ready(), StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or stopping\n")
}

fn say(well: bool, otherwise: StatusCode, why: &'static str) -> Response {
    if well { "ok\n".into_response() } else { (otherwise, why).into_response() }
}
