//! One group commit: acknowledgements, publishes and marks in one transaction.
//!
//! Inputs: what waited. Outputs: the transaction, ready to be committed, and what it means in memory if it is.
//! Acknowledgements are applied first, so that the room they make is there for the publishes beside them. A publish
//! that finds one of its queues full is left out as a whole; the others are not touched by that.

use std::collections::HashMap;
use std::sync::Arc;

use redb::{Database, WriteTransaction};

use super::file::{self, COMMITS, COUNTS, MESSAGES, NUMBERS};
use super::queue::{Counts, Queue};
use super::record;
use super::shared::{Ack, Publish};
use crate::core::message::Message;
use crate::store::PublishError;

/// A transaction before its commit.
pub(super) struct Prepared {
    pub(super) transaction: WriteTransaction,
    pub(super) effects: Effects,
}

/// What is true once the transaction is durable.
#[derive(Debug, Default)]
pub(super) struct Effects {
    queues: HashMap<u32, Effect>,
    /// One for each publish, in their order.
    pub(super) answers: Vec<Result<(), PublishError>>,
}

#[derive(Debug)]
struct Effect {
    queue: Arc<Queue>,
    counts: Counts,
    settled: u64,
    published: Vec<(u64, Arc<Message>)>,
}

impl Effects {
    /// Carries the effects out in memory.
    pub(super) fn apply(self) -> Vec<Result<(), PublishError>> {
        for (_, effect) in self.queues {
            effect.queue.committed(effect.counts, effect.settled, effect.published);
        }
        self.answers
    }

    fn of(&mut self, queue: &Arc<Queue>) -> &mut Effect {
        self.queues.entry(queue.id).or_insert_with(|| Effect {
            queue: queue.clone(),
            counts: queue.counts(),
            settled: 0,
            published: Vec::new(),
        })
    }

    fn refusal(&mut self, publish: &Publish) -> Option<PublishError> {
        let body = publish.message.body.len() as u64;
        publish.queues.iter().find_map(|queue| {
            let (max_length, max_bytes) = queue.limits();
            let counts = self.of(queue).counts;
            let full = if max_length.is_some_and(|max| counts.messages >= max) {
                format!("{} messages", counts.messages)
            } else if max_bytes.is_some_and(|max| counts.bytes.saturating_add(body) > max) {
                format!("{} bytes of bodies", counts.bytes)
            } else {
                return None;
            };
            Some(PublishError::Refused(format!("queue `{}` is full: it holds {full}", queue.name)))
        })
    }
}

/// Writes everything into a transaction. `number` is that of this commit.
pub(super) fn prepare(
    database: &Database,
    number: u64,
    acks: &[Ack],
    publishes: &[Publish],
    marks: &[Arc<Queue>],
) -> Result<Prepared, redb::Error> {
    let transaction = file::begin(database)?;
    let mut effects = Effects::default();
    {
        let mut messages = transaction.open_table(MESSAGES)?;
        for ack in acks {
            messages.remove((ack.queue.id, ack.seq))?;
            let effect = effects.of(&ack.queue);
            effect.settled += 1;
            effect.counts.messages = effect.counts.messages.saturating_sub(1);
            effect.counts.bytes = effect.counts.bytes.saturating_sub(ack.bytes);
        }
        for publish in publishes {
            let answer = if let Some(refusal) = effects.refusal(publish) {
                Err(refusal)
            } else {
                insert(&mut messages, &mut effects, publish)?;
                Ok(())
            };
            effects.answers.push(answer);
        }
        for queue in marks {
            effects.of(queue);
        }
        let mut counts = transaction.open_table(COUNTS)?;
        for (id, Effect { counts: now, .. }) in &effects.queues {
            counts.insert(id, (now.next, now.messages, now.bytes, now.delivered))?;
        }
        transaction.open_table(NUMBERS)?.insert(COMMITS, number)?;
    }
    Ok(Prepared { transaction, effects })
}

fn insert(
    messages: &mut redb::Table<'_, (u32, u64), &'static [u8]>,
    effects: &mut Effects,
    publish: &Publish,
) -> Result<(), redb::Error> {
    let body = &publish.message.body;
    for queue in &publish.queues {
        let effect = effects.of(queue);
        let seq = effect.counts.next;
        let mut space = messages.insert_reserve((queue.id, seq), record::length(&publish.head, body))?;
        record::write(space.as_mut(), &publish.head, body)
            .map_err(|error| redb::Error::Corrupted(error.to_string()))?;
        effect.counts.next += 1;
        effect.counts.messages += 1;
        effect.counts.bytes += body.len() as u64;
        effect.published.push((seq, publish.message.clone()));
    }
    Ok(())
}
