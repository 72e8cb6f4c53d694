//! The admin address of a local run: status, metrics, probes, reactivation.
//!
//! Inputs: HTTP requests from this machine. Outputs: what the supervisor says. A browser page of somebody else must
//! not get in: a foreign `Host` (DNS rebinding) or `Origin` (cross-site request) is refused. Nothing here decides.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::header::{CONTENT_TYPE, HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, StatusCode};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::supervisor::{ReactivateError, Supervisor};
use crate::telemetry::{admin, metrics};

/// For one answer: the store is on this machine, a minute would hang a probe.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until `shutdown`. Connections that are open then are dropped.
pub(super) async fn serve(
    listener: TcpListener,
    supervisor: Arc<Supervisor>,
    listen: SocketAddr,
    shutdown: CancellationToken,
) {
    let Ok(bound) = listener.local_addr() else { return };
    admin::serve(listener, router(Served { supervisor, listen }, bound), shutdown).await;
}

/// What the answers are made from.
#[derive(Debug, Clone)]
struct Served {
    supervisor: Arc<Supervisor>,
    /// The shared listener's address.
    listen: SocketAddr,
}

fn router(served: Served, bound: SocketAddr) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/metrics", get(scrape))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/processors/{name}/reactivate", post(reactivate_short))
        .route("/processors/{namespace}/{name}/reactivate", post(reactivate_full))
        .with_state(served)
        .layer(middleware::from_fn(move |request: Request, next: Next| guard(bound, request, next)))
}

async fn guard(bound: SocketAddr, request: Request, next: Next) -> Result<Response, Infallible> {
    let uri_host = request.uri().authority().cloned();
    if !uri_host.is_none_or(|host| is_ours(&host, bound)) || !is_same_origin(request.headers(), bound) {
        let answer = "the Host or Origin is not this address; ask http://127.0.0.1 itself\n";
        return Ok((StatusCode::FORBIDDEN, answer).into_response());
    }
    Ok(timeout(ANSWER_TIMEOUT, next.run(request))
        .await
        .unwrap_or_else(|_| (StatusCode::SERVICE_UNAVAILABLE, "no answer in time; try again\n").into_response()))
}

/// One `Host` that names this machine by address or as `localhost`; an `Origin`, if any, that is the same.
fn is_same_origin(headers: &HeaderMap, bound: SocketAddr) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Ok(host) = Authority::try_from(host.as_bytes()) else { return false };
    let same = |origin: &http::HeaderValue| {
        origin.to_str().is_ok_and(|origin| origin.strip_prefix("http://") == Some(host.as_str()))
    };
    is_ours(&host, bound) && headers.get_all(ORIGIN).iter().all(same)
}

/// The port is not compared: a forwarded port is another one. A name could be anybody's, an address can't be rebound.
fn is_ours(host: &Authority, bound: SocketAddr) -> bool {
    let name = host.host().trim_start_matches('[').trim_end_matches(']');
    match name.parse::<IpAddr>() {
        Ok(address) => address.is_loopback() || address == bound.ip() || bound.ip().is_unspecified(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    }
}

async fn status(State(served): State<Served>) -> Response {
    Json(served.supervisor.status(served.listen).await).into_response()
}

async fn scrape(State(served): State<Served>) -> Response {
    let text = served.supervisor.scrape().await;
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

async fn live(State(served): State<Served>) -> Response {
    if served.supervisor.has_lost_a_part() {
        (StatusCode::INTERNAL_SERVER_ERROR, "a part of this process has ended; it must be started again\n")
            .into_response()
    } else {
        "ok\n".into_response()
    }
}

async fn ready(State(served): State<Served>) -> Response {
    if served.supervisor.is_ready() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or stopping\n").into_response()
    }
}

async fn reactivate_short(State(served): State<Served>, Path(name): Path<String>) -> Response {
    reactivate(&served, &name).await
}

async fn reactivate_full(State(served): State<Served>, Path((namespace, name)): Path<(String, String)>) -> Response {
    reactivate(&served, &format!("{namespace}/{name}")).await
}

async fn reactivate(served: &Served, name: &str) -> Response {
    match served.supervisor.reactivate(name).await {
        Ok(done) => Json(json!({"processor": done.processor, "reactivated": done.was_deactivated})).into_response(),
        Err(error) => {
            let status = match error {
                ReactivateError::Which(_) | ReactivateError::Name(_) => StatusCode::NOT_FOUND,
                ReactivateError::Suspended(_) => StatusCode::CONFLICT,
                ReactivateError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            (status, Json(json!({"error": error.to_string()}))).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        is_same_origin(&headers, "127.0.0.1:9901".parse().unwrap())
    }

    #[test]
    fn this_machine_may_ask() {
        for host in ["127.0.0.1:9901", "localhost:9901", "LOCALHOST", "[::1]:9901", "127.0.0.1"] {
            assert!(allowed(host, None), "{host}");
        }
        assert!(allowed("localhost:9901", Some("http://localhost:9901")));
    }

    #[test]
    fn pages_of_others_may_not() {
        for host in ["evil.example", "localhost.evil.example:9901", "10.0.0.1:9901", "", "a b"] {
            assert!(!allowed(host, None), "{host}");
        }
        for origin in ["http://evil.example", "null", "http://localhost:3000", "https://localhost:9901"] {
            assert!(!allowed("localhost:9901", Some(origin)), "{origin}");
        }
        assert!(!is_same_origin(&HeaderMap::new(), "127.0.0.1:1".parse().unwrap()));
    }
}
