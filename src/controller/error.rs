//! Why a reconcile did not finish, by what helps.

use std::time::Duration;

use crate::store::StoreError;

/// Until the API server has answered. The client below tries again by itself for longer.
pub(super) const API_TIMEOUT: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The API server said no, or nothing.
    #[error("{doing}: {source}")]
    Api {
        doing: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("{0}: no answer from the API server in {API_TIMEOUT:?}")]
    TimedOut(&'static str),
    /// An object of a child's name is somebody else's.
    #[error("{kind} `{name}` exists and is not ours; rename it, or this object")]
    NameConflict { kind: &'static str, name: String },
    /// An object of a child's name belongs to an object of this name that was deleted; it is about to go too.
    #[error("{kind} `{name}` of an earlier object of this name is still going")]
    Leaving { kind: &'static str, name: String },
    /// A bug.
    #[error("a bug: the reconcile panicked; please report what is logged above")]
    Panicked,
    /// The API server does not take the pods.
    #[error("the API server refuses {kind} `{name}`: {message}")]
    Rejected { kind: &'static str, name: String, message: String },
    /// The broker could not be asked.
    #[error("the broker: {0}")]
    Broker(#[from] StoreError),
    /// Another controller acts now.
    #[error("this controller does not hold the lease any more")]
    NotLeading,
}

/// What helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Time.
    Transient,
    /// Somebody else's doing: a broker, a foreign object.
    Dependency,
    /// Another spec.
    Invalid,
    /// Trying again at once.
    Conflict,
    /// More rights, or a CRD.
    Fatal,
}

impl Class {
    /// As a label of metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Dependency => "dependency",
            Self::Invalid => "invalid",
            Self::Conflict => "conflict",
            Self::Fatal => "fatal",
        }
    }

    /// Until the next try; `failures` came before, in a row.
    pub(super) fn pause(self, failures: u32) -> Duration {
        let most = match self {
            Self::Conflict => return Duration::from_secs(1),
            Self::Transient => Duration::from_secs(60),
            Self::Dependency => Duration::from_secs(30),
            Self::Invalid | Self::Fatal => Duration::from_secs(300),
        };
        let pause = Duration::from_secs(1 << failures.min(8)).min(most);
        // Spread, so that what failed together is not tried together.
        pause.mul_f64(0.75 + fastrand::f64() / 2.0)
    }
}

impl Error {
    pub(super) fn class(&self) -> Class {
        match self {
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) if status.code == 409 => Class::Conflict,
                kube::Error::Api(status) if [401, 403, 404].contains(&status.code) => Class::Fatal,
                kube::Error::Api(status) if [400, 422].contains(&status.code) => Class::Invalid,
                _ => Class::Transient,
            },
            Self::TimedOut(_) | Self::NotLeading => Class::Transient,
            Self::Leaving { .. } => Class::Conflict,
            Self::Panicked => Class::Fatal,
            Self::NameConflict { .. } | Self::Broker(_) => Class::Dependency,
            Self::Rejected { .. } => Class::Invalid,
        }
    }
}

/// Waits for the API server, but not for ever.
pub(super) async fn api<T>(
    doing: &'static str,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(API_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(Error::Api { doing, source: Box::new(source) }),
        Err(_) => Err(Error::TimedOut(doing)),
    }
}
