//! Stagepost: store-and-forward messaging for Kubernetes.
//!
//! An HTTP request is accepted, stored durably, answered at once, and delivered to its target later. This library
//! is the whole program; `main` only parses and dispatches.
//!
//! Data flows downwards, and a test (`tests/architecture.rs`) holds the edges:
//!
//! ```text
//!  cli ─► controller ───────────────────────────────┐          objects -> plans in pods, and their status
//!      ├─► worker ─┬─► ingress ──────────► expression ─► core  a plan in a pod
//!      └─► local ──┼─► forwarder ─► target ─► store ───► core  manifests, all plans in one process
//!                  ├─► status, broker                    │     facts -> conditions; Secrets -> addresses
//!                  └─► plan ─► api, core, expression ◄───┘     objects -> plans
//! ```
//!
//! `core` (the delivery rules, pure) and `api` (the three kinds, as users write them) are leaves that know nothing
//! of each other; `plan` is the only place that knows both.

pub mod api;
pub mod broker;
pub mod cli;
pub mod controller;
pub mod core;
pub mod expression;
pub mod forwarder;
pub mod ingress;
pub mod local;
pub mod plan;
pub mod shutdown;
pub mod sink;
pub mod status;
pub mod store;
pub mod target;
pub mod telemetry;
pub mod worker;
