//! Names and labels of children.

use std::collections::BTreeMap;

use super::Owner;
use crate::api::{KIND_LABEL, NAME_LABEL, UID_LABEL};

/// What the pods of an object do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::controller) enum Role {
    /// Those of an IngressRoute.
    Ingress,
    /// Those of a ForwardingProcessor.
    Forwarder,
}

impl Role {
    /// In names, and as the component.
    pub(in crate::controller) fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Forwarder => "forwarder",
        }
    }

    pub(in crate::controller) fn owner_kind(self) -> &'static str {
        match self {
            Self::Ingress => "IngressRoute",
            Self::Forwarder => "ForwardingProcessor",
        }
    }
}

/// The value of the label that selects everything that we manage.
pub(in crate::controller) const MANAGED_BY: &str = "stagepost";

/// `<name>-ingress`, `<name>-forwarder`.
pub(in crate::controller) fn child_name(owner: &Owner<'_>) -> String {
    format!("{}-{}", owner.object.name, owner.role.as_str())
}

/// What selects the pods of exactly this object: one that was deleted and made again has another uid.
pub(in crate::controller) fn selector(owner: &Owner<'_>) -> BTreeMap<&'static str, String> {
    BTreeMap::from([(NAME_LABEL, owner.object.name.clone()), (UID_LABEL, owner.object.uid.clone())])
}

/// Of every child, its pods included.
pub(super) fn of(owner: &Owner<'_>) -> BTreeMap<&'static str, String> {
    let mut labels = selector(owner);
    labels.extend([
        ("app.kubernetes.io/name", "stagepost".to_owned()),
        ("app.kubernetes.io/instance", owner.object.name.clone()),
        ("app.kubernetes.io/component", owner.role.as_str().to_owned()),
        ("app.kubernetes.io/part-of", "stagepost".to_owned()),
        ("app.kubernetes.io/managed-by", MANAGED_BY.to_owned()),
        (KIND_LABEL, owner.role.owner_kind().to_ascii_lowercase()),
    ]);
    labels
}
