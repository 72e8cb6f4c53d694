//! Logs and metrics: what a process says about itself. Decides nothing, knows none of our other modules.

pub mod admin;
pub mod console;
pub mod controller;
pub mod logs;
pub mod metrics;
pub mod panics;
