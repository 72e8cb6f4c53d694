//! The metrics of a process, in the OpenMetrics text format.
//!
//! Labels are names of objects, never paths, keys or bodies: their number is bounded by what the user applied.
//! Each object takes its handles once, when it is loaded; a message then costs atomic additions only. The same
//! counters feed the status, so the two can't disagree.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds: from a local fsync to the longest attempt that is allowed.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0];

/// One or two labels with names fixed at compile time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Labels(Vec<(&'static str, String)>);

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

type Counters = Family<Labels, Counter>;
type Gauges = Family<Labels, Gauge>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

/// All metrics of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    ingress_requests: Counters,
    ingress_in_flight: Gauges,
    store_seconds: Histograms,
    stored: Counters,
    attempts: Counters,
    attempt_seconds: Histograms,
    settled: Counters,
    in_flight: Gauges,
    possible_duplicates: Counters,
    processor_state: Gauges,
    oldest_taken_age: Gauges,
    backlog: Gauges,
    dead_letters: Gauges,
    broker_connected: Gauges,
    responses_lost: Counters,
    replies: Counters,
}
