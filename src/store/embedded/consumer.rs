//! An attached consumer: what it holds, and how it waits.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Inner;
use super::queue::{Lease, Queue, Step};
use super::reader::Read;
use super::shared::Ack;
use crate::core::message::Carried;
use crate::store::{BoxFuture, Consumer, Delivery, StoreError, Tag};

/// Holds what was delivered and not settled. Dropping it returns all of it, together.
#[derive(Debug)]
pub(super) struct Attached {
    inner: Arc<Inner>,
    queue: Arc<Queue>,
    number: u64,
    prefetch: usize,
    next_tag: u64,
    held: BTreeMap<Tag, Lease>,
}

impl Attached {
    pub(super) fn new(inner: Arc<Inner>, queue: Arc<Queue>, prefetch: u16) -> Self {
        let number = queue.attach();
        Self { inner, queue, number, prefetch: usize::from(prefetch.max(1)), next_tag: 1, held: BTreeMap::new() }
    }

    async fn take_next(&mut self) -> Result<Delivery, StoreError> {
        let queue = self.queue.clone();
        let mut gave_way = false;
        loop {
            // Once for each message: the other one may be busy, and nobody waits for it.
            if !gave_way && queue.is_anothers_turn(self.number) {
                gave_way = true;
                tokio::task::yield_now().await;
            }
            // Made before looking, so that a change in between is not missed.
            let changed = queue.changed().notified();
            if self.inner.shared.is_closed() {
                return Err(StoreError::Closed);
            }
            let step = if self.held.len() >= self.prefetch { Step::Wait } else { queue.step(self.number) };
            match step {
                Step::Take { lease, first } => return Ok(self.hold(lease, first)),
                Step::Failed(error) => return Err(error),
                Step::Wait => changed.await,
                Step::Load(plan) => {
                    let read = Read::new(self.inner.shared.clone(), queue.clone(), plan);
                    // Not awaited: dropping this future must not lose what is read. The queue is told at the end.
                    tokio::task::spawn_blocking(move || read.run());
                    changed.await;
                }
            }
        }
    }

    fn hold(&mut self, lease: Lease, first: bool) -> Delivery {
        if first {
            self.inner.shared.mark(&self.queue);
        }
        let tag = Tag(self.next_tag);
        self.next_tag += 1;
        // A queue of ours is all that there is to say, and a dead letter says that by itself.
        let source = Carried::default();
        let (message, redelivered) = (lease.message.clone(), lease.redelivered);
        let delivery = Delivery { tag, message, redelivered, returned: 0, source };
        self.held.insert(tag, lease);
        delivery
    }
}

impl Consumer for Attached {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, StoreError>> {
        Box::pin(self.take_next())
    }

    fn ack(&mut self, tags: &[Tag]) -> Result<(), StoreError> {
        let settled: Vec<Ack> = tags
            .iter()
            .filter_map(|tag| self.held.remove(tag))
            .map(|lease| Ack { queue: self.queue.clone(), seq: lease.seq, bytes: lease.message.body.len() as u64 })
            .collect();
        let known = settled.len() == tags.len();
        self.queue.settle(settled.len() as u64);
        self.inner.shared.acknowledge(settled);
        if known { Ok(()) } else { Err(StoreError::Stale) }
    }

    fn stop_taking(&mut self) {
        self.prefetch = 0;
    }

    fn give_back(self: Box<Self>) -> BoxFuture<'static, Result<(), StoreError>> {
        // Acknowledged messages are out of `held` already, whether committed yet or not.
        drop(self);
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let held = std::mem::take(&mut self.held).into_values().collect();
        self.queue.detach(self.number, held);
    }
}
