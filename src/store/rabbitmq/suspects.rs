//! Which messages the broker may have meant when it refused one.

use std::collections::HashSet;

use crate::core::message::MessageId;

/// Most that is remembered. Beyond it all is forgotten, and learnt again when it happens again.
const MAX_REMEMBERED: usize = 4096;

/// Messages that were under way when the broker closed a channel because of one of them.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    suspected: HashSet<MessageId>,
    /// The only one under way at the time: it is the one.
    refused: HashSet<MessageId>,
}

impl Suspects {
    /// Whether a message must be published alone.
    pub(super) fn has(&self, id: &MessageId) -> bool {
        self.suspected.contains(id) || self.refused.contains(id)
    }

    /// Whether the broker refused this one.
    pub(super) fn is_refused(&self, id: &MessageId) -> bool {
        self.refused.contains(id)
    }

    /// The broker refused one of these.
    pub(super) fn note<'a>(&mut self, under_way: impl ExactSizeIterator<Item = &'a MessageId>) {
        if self.suspected.len() + self.refused.len() + under_way.len() > MAX_REMEMBERED {
            self.suspected.clear();
            self.refused.clear();
        }
        let alone = under_way.len() == 1;
        for id in under_way {
            if alone {
                self.suspected.remove(id);
                self.refused.insert(id.clone());
            } else if !self.refused.contains(id) {
                self.suspected.insert(id.clone());
            }
        }
    }

    /// The broker had no objection to this one.
    pub(super) fn settled(&mut self, id: &MessageId) {
        if !self.suspected.is_empty() || !self.refused.is_empty() {
            self.suspected.remove(id);
            self.refused.remove(id);
        }
    }
}
