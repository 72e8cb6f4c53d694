//! HTTP targets.
