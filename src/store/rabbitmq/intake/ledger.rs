//! The account of publishes, channel by channel, as the broker's bytes tell it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the broker has said about the publishes of each channel.
#[derive(Debug, Default)]
pub(in crate::store::rabbitmq) struct Ledger(Mutex<HashMap<u16, Account>>);

#[derive(Debug, Default)]
struct Account {
    /// How many were published; the highest tag that can be confirmed.
    published: u64,
    /// A return has begun, and its properties come next.
    returning: bool,
    /// The ids of what was returned, not yet taken note of.
    returned: Vec<String>,
}

impl Ledger {
    /// A publishing channel begins.
    pub(in crate::store::rabbitmq) fn open(&self, channel: u16) {
        self.lock().insert(channel, Account::default());
    }

    /// One more publish goes out.
    pub(in crate::store::rabbitmq) fn publishes(&self, channel: u16) {
        if let Some(account) = self.lock().get_mut(&channel) {
            account.published += 1;
        }
    }

    /// The ids of what was returned since this was asked last. A message whose return has not been read by now has no
    /// confirm that was read either.
    pub(in crate::store::rabbitmq) fn returned(&self, channel: u16) -> Vec<String> {
        self.lock().get_mut(&channel).map(|account| std::mem::take(&mut account.returned)).unwrap_or_default()
    }

    pub(super) fn returning(&self, channel: u16) {
        if let Some(account) = self.lock().get_mut(&channel) {
            account.returning = true;
        }
    }

    /// Whether the properties of a returned message are still to come.
    pub(super) fn is_returning(&self, channel: u16) -> bool {
        self.lock().get(&channel).is_some_and(|account| account.returning)
    }

    pub(super) fn properties(&self, channel: u16, message_id: &str) {
        if let Some(account) = self.lock().get_mut(&channel)
            && std::mem::take(&mut account.returning)
        {
            account.returned.push(message_id.to_owned());
        }
    }

    /// Tag 0 would confirm all that is under way, also what the broker has not read yet.
    pub(super) fn may_confirm(&self, channel: u16, tag: u64) -> bool {
        self.lock().get(&channel).is_none_or(|account| (1..=account.published).contains(&tag))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u16, Account>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
