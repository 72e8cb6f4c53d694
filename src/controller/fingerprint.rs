//! Whether something is as it was, without keeping it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde_json::Value;

/// The same for the same value, in this process.
pub(super) fn of(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    hasher.finish()
}
