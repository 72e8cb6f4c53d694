//! Exact moments: a broker of ours, written for these tests, that confirms, returns, refuses, stalls, breaks the protocol
//! and goes away when a test says so. No real broker does that on demand, and none is needed here.

#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(dead_code)]

mod support;

mod fake {
    mod broker;
    mod common;
    mod confirms;
    mod let_go;
    mod line;
    mod process;
    mod protocol;
    mod resets;
    mod session;
    mod silence;
}
