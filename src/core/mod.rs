//! The delivery rules, as pure values and functions.
//!
//! A leaf: nothing here is async, does I/O, reads a clock or knows Kubernetes. Time and randomness come in
//! as arguments, decisions go out as enums that never act. That makes each rule testable alone, and lets
//! the data plane be read without the control plane.

pub mod breaker;
pub mod deactivation;
pub mod decision;
pub mod duration;
pub mod matching;
pub mod message;
pub mod ordering;
pub mod outcome;
pub mod poison;
pub mod problem;
pub mod quantity;
pub mod rate;
pub mod retry;
pub mod schedule;
pub mod topology;
