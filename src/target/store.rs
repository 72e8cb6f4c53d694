//! A store as a target.
