//! Logs and metrics: what a process says about itself. Decides nothing, knows none of our other modules.

pub mod console;
pub mod logs;
pub mod metrics;
