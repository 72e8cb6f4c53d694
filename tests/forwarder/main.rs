//! The forwarder against a store in memory and a scripted target, on a clock that only the test moves: attempts,
//! waits and settlements are exact.

#![allow(clippy::expect_used, clippy::unwrap_used)]

mod bench;
mod delivery;
mod store;
mod target;
