//! How a store's broker stands, as it can be told to another process.

use serde::{Deserialize, Serialize};

use crate::store::{Connection, Fault, StoreError};

/// The connection of one store, in words that many may read: what a broker said itself is in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Link {
    /// Publishing and consuming work.
    Up,
    /// Not known yet.
    Connecting,
    /// The queue or exchange is there with other arguments; the text says which, and what to do.
    Mismatch(String),
    /// It cannot be used.
    Down {
        /// The class of the failure, in CamelCase.
        reason: String,
        /// What to do.
        message: String,
    },
}

impl From<&Connection> for Link {
    fn from(connection: &Connection) -> Self {
        match connection {
            Connection::Up => Self::Up,
            Connection::Connecting => Self::Connecting,
            Connection::Down(StoreError::Mismatch(text)) => {
                Self::Mismatch(StoreError::Mismatch(text.clone()).to_string())
            }
            Connection::Down(error) => Self::Down { reason: class(error).to_owned(), message: remedy(error) },
        }
    }
}

/// The class of a broker's failure; details are in the message.
fn class(error: &StoreError) -> &'static str {
    match error {
        StoreError::Unreachable { fault, .. } => fault.reason(),
        StoreError::NotConnected(_) | StoreError::Stale | StoreError::InUse(_) => "NotConnected",
        StoreError::Mismatch(_) => "QueueMismatch",
        StoreError::NotFound(_) => "NotFound",
        StoreError::Disk(_) => "DiskFailed",
        StoreError::Corrupt(_) => "DataCorrupt",
        StoreError::Closed => "Closed",
    }
}

/// What to do about it. What a broker said in its own words is in the log, not in a status that many may read.
fn remedy(error: &StoreError) -> String {
    let StoreError::Unreachable { fault, detail } = error else { return error.to_string() };
    match fault {
        Fault::Refused => {
            "the broker refuses or ends connections; see that it runs, and that host, port and scheme are right"
        }
        Fault::TimedOut => "the broker does not answer; see that host and port are right and nothing blocks the way",
        Fault::AuthenticationFailed => {
            "the broker refuses the user, or its use of the virtual host or queue; correct the Secret or the permissions"
        }
        Fault::TlsFailed => {
            "TLS with the broker fails; see that it speaks TLS on that port, and that its certificate is valid, is for \
             this host name, and is signed by the CA that is given"
        }
        Fault::NotFound => "no such virtual host, or no such host name; correct it, or create it",
        Fault::InvalidSecret => return detail.clone(),
    }
    .to_owned()
}
