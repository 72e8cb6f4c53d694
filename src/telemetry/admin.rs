//! The listener behind an admin address: probes, metrics, status, for a few who ask.
//!
//! Inputs: a listener and what it answers. It is bounded in connections and time, so that nobody can hang a worker by it.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// For one request head, and how long a kept connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A scraper, a probe, a few people. More are closed at once.
const MAX_CONNECTIONS: usize = 64;

/// After an accept error (no file descriptors left) trying again at once would only burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown`. Connections that are open then are dropped.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
                let (router, shutdown) = (router.clone(), shutdown.clone());
                tokio::spawn(async move {
                    tokio::select! { () = shutdown.cancelled() => {} () = connection(stream, router) => {} }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "the admin address could not accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, router: Router) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(64)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the admin address ended early");
    }
}
