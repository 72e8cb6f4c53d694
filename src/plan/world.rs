//! The objects that one object is judged and compiled among.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::message_store::Queue;
use crate::api::{ForwardingProcessor, IngressRoute, MessageStore};
use crate::plan::ObjectName;

/// All objects of ours that are known, by namespace and name. References never leave their namespace.
#[derive(Debug, Clone, Default)]
pub struct World<'a> {
    stores: BTreeMap<(&'a str, &'a str), &'a MessageStore>,
    routes: BTreeMap<(&'a str, &'a str), &'a IngressRoute>,
    processors: BTreeMap<(&'a str, &'a str), &'a ForwardingProcessor>,
    /// Stores that are there but cannot be read.
    unreadable: BTreeSet<(&'a str, &'a str)>,
}

/// Access to an object's name that cannot fail.
pub trait Named {
    /// The namespace; empty if the object has none.
    fn namespace(&self) -> &str;
    /// The name; empty if the object has none.
    fn name(&self) -> &str;
    /// Namespace, name and uid.
    fn object_name(&self) -> ObjectName;
}

impl<K: kube::Resource> Named for K {
    fn namespace(&self) -> &str {
        self.meta().namespace.as_deref().unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or_default()
    }

    fn object_name(&self) -> ObjectName {
        ObjectName {
            namespace: Named::namespace(self).to_owned(),
            name: Named::name(self).to_owned(),
            uid: self.meta().uid.clone().unwrap_or_default(),
        }
    }
}

impl<'a> World<'a> {
    /// Of these objects.
    pub fn new(
        stores: impl IntoIterator<Item = &'a MessageStore>,
        routes: impl IntoIterator<Item = &'a IngressRoute>,
        processors: impl IntoIterator<Item = &'a ForwardingProcessor>,
    ) -> Self {
        fn index<'a, K: Named + 'a>(objects: impl IntoIterator<Item = &'a K>) -> BTreeMap<(&'a str, &'a str), &'a K> {
            objects.into_iter().map(|object| ((object.namespace(), object.name()), object)).collect()
        }
        Self {
            stores: index(stores),
            routes: index(routes),
            processors: index(processors),
            unreadable: BTreeSet::new(),
        }
    }

    /// Stores that are there, by namespace and name, but so wrong that nothing more is known: nobody is told that
    /// they are missing.
    #[must_use]
    pub fn with_unreadable_stores(mut self, names: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.unreadable = names.into_iter().collect();
        self
    }

    /// Whether nobody knows this store.
    pub fn lacks_store(&self, namespace: &str, name: &str) -> bool {
        !self.stores.contains_key(&(namespace, name)) && !self.unreadable.contains(&(namespace, name))
    }

    /// A store.
    pub fn store(&self, namespace: &str, name: &str) -> Option<&'a MessageStore> {
        self.stores.get(&(namespace, name)).copied()
    }

    /// The stores of a namespace, by name.
    pub fn stores_in(&self, namespace: &str) -> impl Iterator<Item = &'a MessageStore> {
        self.stores.iter().filter(move |((of, _), _)| *of == namespace).map(|(_, store)| *store)
    }

    /// The processors of a namespace, by name.
    pub fn processors_in(&self, namespace: &str) -> impl Iterator<Item = &'a ForwardingProcessor> {
        self.processors.iter().filter(move |((of, _), _)| *of == namespace).map(|(_, processor)| *processor)
    }

    /// A processor or route that names a store; stores that fail over to it not counted.
    pub fn user_of(&self, namespace: &str, store: &str) -> Option<String> {
        let mut routes = self.routes.iter().filter(|((of, _), _)| *of == namespace).map(|(_, route)| *route);
        let route = routes.find(|route| route.spec.rules.iter().any(|rule| rule.store_ref.name == store));
        if let Some(route) = route {
            return Some(format!("IngressRoute `{}`", Named::name(route)));
        }
        let names = |processor: &&ForwardingProcessor| {
            let spec = &processor.spec;
            let others = [&spec.target.store_ref, &spec.on_failure.dead_letter_store_ref, &spec.response.store_ref];
            spec.store_ref.name == store || others.into_iter().flatten().any(|reference| reference.name == store)
        };
        let processor = self.processors_in(namespace).find(names)?;
        Some(format!("ForwardingProcessor `{}`", Named::name(processor)))
    }

    /// Another store of the namespace whose queue may be the same: names of brokers are all that is known here.
    pub fn same_queue(&self, store: &MessageStore) -> Option<&'a str> {
        let queue = queue_name(store, store.spec.queue.as_ref()?);
        let mut others = self.stores_in(store.namespace()).filter(|other| other.name() != store.name());
        let same = |other: &&MessageStore| other.spec.queue.as_ref().is_some_and(|q| queue_name(other, q) == queue);
        others.find(same).map(Named::name)
    }

    /// All routes, by namespace and name.
    pub fn routes(&self) -> impl Iterator<Item = &'a IngressRoute> {
        self.routes.values().copied()
    }
}

/// The queue's name on the broker.
pub fn queue_name(store: &MessageStore, queue: &Queue) -> String {
    queue.name.clone().unwrap_or_else(|| store.object_name().dotted())
}

/// Which of two objects was there first: by creation, else by name. Files have no creation: there the name decides.
pub fn is_older<K: kube::Resource>(one: &K, other: &K) -> bool {
    let key =
        |object: &K| (object.meta().creation_timestamp.as_ref().map(|time| time.0), Named::name(object).to_owned());
    key(one) < key(other)
}
