//! Metrics and probes of a controller. One that waits for the lease is ready: it is ready to take over.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::CONTENT_TYPE;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::ControllerError;
use crate::telemetry::controller::ControllerMetrics;
use crate::telemetry::{admin, metrics};

/// Binds, and serves until `shutdown`.
pub(super) async fn start(
    address: SocketAddr,
    metrics: ControllerMetrics,
    shutdown: CancellationToken,
) -> Result<(), ControllerError> {
    let listener = TcpListener::bind(address).await.map_err(|error| ControllerError::Listen(address, error))?;
    let router = Router::new()
        .route("/metrics", get(scrape))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ok\n" }))
        .with_state(metrics);
    tokio::spawn(admin::serve(listener, router, shutdown));
    Ok(())
}

async fn scrape(State(metrics): State<ControllerMetrics>) -> Response {
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.encode()).into_response()
}
