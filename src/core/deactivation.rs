//! The record that stops a processor until somebody says otherwise.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Why and when a processor deactivated itself. The store keeps it, so it survives a restart of anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deactivation {
    /// The processor's uid: a record of an earlier object with the same name does not count.
    pub uid: String,
    /// When.
    pub time: Timestamp,
    /// The message that could not be delivered; it is still in the store.
    pub message_id: String,
    /// A [`Reason`](super::decision::Reason) in `CamelCase`.
    pub reason: String,
    /// The last error in words.
    pub message: String,
    /// Attempts made.
    pub attempts: u32,
}
