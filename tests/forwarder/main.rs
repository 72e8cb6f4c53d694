//! The forwarder against a store in memory and a scripted target, on a clock that only the test moves: attempts,
//! waits and settlements are exact.

#![allow(clippy::expect_used, clippy::unwrap_used)]

mod bench;
mod contents;
mod delivery;
mod ordering;
mod pacing;
mod polling;
mod random;
mod store;
mod target;
