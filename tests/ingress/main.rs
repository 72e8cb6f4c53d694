//! The ingress as a black box: raw bytes over TCP, and a scripted store behind it.
//!
//! `B` and `E` numbers are the rows of the list of faults that a test covers.

// A test says what went wrong by panicking.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod answers;
mod expressions;
mod framing;
mod harness;
mod http2;
mod lifecycle;
mod limits;
