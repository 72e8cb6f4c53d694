//! A store that can't be used: its queue or exchange exists with other arguments.
//!
//! It stands where the store would: callers are refused, nothing is consumed, and the status says why. The queue that
//! exists is not touched.

use std::sync::Arc;

use tokio::sync::watch;

use crate::core::deactivation::Deactivation;
use crate::core::message::Message;
use crate::store::{BoxFuture, Connection, Consumer, Depth, MessageStore, PublishError, StoreError};

/// See the module.
#[derive(Debug)]
pub(super) struct Unusable {
    name: String,
    error: StoreError,
    connection: watch::Sender<Connection>,
}

impl Unusable {
    pub(super) fn new(name: &str, error: StoreError) -> Self {
        let connection = watch::Sender::new(Connection::Down(error.clone()));
        Self { name: name.to_owned(), error, connection }
    }

    fn refused<T: Send + 'static>(&self) -> BoxFuture<'_, Result<T, StoreError>> {
        Box::pin(std::future::ready(Err(self.error.clone())))
    }
}

impl MessageStore for Unusable {
    fn publish<'a>(&'a self, _: Arc<Message>, _: Option<&'a str>) -> BoxFuture<'a, Result<(), PublishError>> {
        Box::pin(std::future::ready(Err(PublishError::Refused(self.error.to_string()))))
    }

    fn depth(&self) -> BoxFuture<'_, Result<Depth, StoreError>> {
        self.refused()
    }

    fn consume(&self, _: u16) -> BoxFuture<'_, Result<Box<dyn Consumer>, StoreError>> {
        self.refused()
    }

    fn deactivation<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Deactivation>, StoreError>> {
        self.refused()
    }

    fn deactivate<'a>(&'a self, _: &'a str, _: &'a Deactivation) -> BoxFuture<'a, Result<(), StoreError>> {
        self.refused()
    }

    fn reactivate<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        self.refused()
    }

    fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.subscribe()
    }

    fn name(&self) -> &str {
        &self.name
    }
}
