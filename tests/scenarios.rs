//! Black-box scenarios against the real binary, with a recording target: on the embedded store, and on a broker where
//! a run says so (`STAGEPOST_TEST_STORES`).
//!
//! Each is the behaviour of a known system (asynchronous messaging, reliable delivery, a payment desk), told as a
//! sentence. They mostly wait; so they run side by side, each with its own process.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

mod scenarios {
    mod appointment_desk;
    mod deactivation;
    mod examples;
    mod message_bus;
    mod patterns;
    mod payment_desk;
    mod polling;
    mod reliable_delivery;
    mod request_reply;
    mod retry;
    mod routing;
    mod start;
    mod suspension;
    mod transforms;
    mod unchanged;
}
