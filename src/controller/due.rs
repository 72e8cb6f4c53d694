//! Objects that must be reconciled though nothing of their own changed.
//!
//! A set, not a queue: an object that is due twice is reconciled once, so it is bounded by the number of objects.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{Stream, stream};
use kube::Resource;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::Notify;

/// Namespace and name of an object.
pub(super) type Key = (String, String);

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Due(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    waiting: Mutex<BTreeSet<Key>>,
    changed: Notify,
}

impl Due {
    pub(super) fn mark(&self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        self.0.changed.notify_one();
    }

    fn take(&self) -> Option<Key> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_first()
    }

    /// Every object that is marked, for the controller of its kind. One stream takes them all.
    pub(super) fn stream<K>(&self) -> impl Stream<Item = ObjectRef<K>> + Send + use<K>
    where
        K: Resource<DynamicType = ()> + 'static,
    {
        stream::unfold(self.clone(), |due| async move {
            loop {
                if let Some((namespace, name)) = due.take() {
                    return Some((ObjectRef::new(&name).within(&namespace), due));
                }
                due.0.changed.notified().await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;
    use crate::api::MessageStore;

    #[tokio::test]
    async fn what_is_due_twice_comes_once() {
        let due = Due::default();
        due.mark("shop", "orders");
        due.mark("shop", "orders");
        due.mark("shop", "payments");
        let mut stream = Box::pin(due.stream::<MessageStore>());
        assert_eq!(stream.next().await.unwrap().name, "orders");
        assert_eq!(stream.next().await.unwrap().name, "payments");
        due.mark("shop", "orders");
        assert_eq!(stream.next().await.unwrap().name, "orders");
    }
}
