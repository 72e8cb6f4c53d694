//! Messages under way that may be what kills this process: they came back again and again.
//!
//! What is written down before the attempt is found by others if this process dies in it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::core::message::MessageId;
use crate::core::poison;

/// Most that is remembered of those that had their outcome: more than a note can name.
const MOST_REMEMBERED: usize = 128;

/// See the module.
#[derive(Debug)]
pub(super) struct Suspects {
    /// For the log.
    processor: String,
    /// Where it is written down.
    last_words: Option<PathBuf>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    under_way: Vec<MessageId>,
    cleared: VecDeque<String>,
}

/// One of them, until it has its outcome or goes back.
#[derive(Debug)]
pub(super) struct Suspicion {
    suspects: Arc<Suspects>,
    id: MessageId,
}

impl Suspects {
    pub(super) fn new(processor: &str, last_words: Option<PathBuf>) -> Self {
        Self { processor: processor.to_owned(), last_words, known: Mutex::default() }
    }

    /// It is about to be delivered, after it came back so often.
    pub(super) fn suspect(self: &Arc<Self>, id: &MessageId, returned: u32) -> Suspicion {
        tracing::warn!(
            processor = self.processor,
            message_id = %id,
            returned,
            "a message came back again and again; if this process dies now, it may be the cause"
        );
        let mut known = self.known();
        known.under_way.push(id.clone());
        self.write(&known);
        Suspicion { suspects: Arc::clone(self), id: id.clone() }
    }

    /// Those that were suspected and had an outcome all the same, the last ones.
    pub(super) fn cleared(&self) -> Vec<String> {
        self.known().cleared.iter().cloned().collect()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Single insertions and removals: a panicking holder leaves nothing half done.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, known: &Known) {
        let Some(path) = &self.last_words else { return };
        let note = poison::note(known.under_way.iter().map(MessageId::as_str));
        if let Err(error) = std::fs::write(path, note) {
            tracing::debug!(%error, path = %path.display(), "can't write down what is about to be delivered");
        }
    }
}

impl Suspicion {
    /// It has an outcome: it was not what kills.
    pub(super) fn clear(self) {
        let mut known = self.suspects.known();
        if known.cleared.len() == MOST_REMEMBERED {
            known.cleared.pop_front();
        }
        known.cleared.push_back(self.id.as_str().to_owned());
    }
}

impl Drop for Suspicion {
    fn drop(&mut self) {
        let mut known = self.suspects.known();
        if let Some(at) = known.under_way.iter().position(|id| *id == self.id) {
            known.under_way.swap_remove(at);
        }
        self.suspects.write(&known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_written_down_until_it_is_over() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let suspects = Arc::new(Suspects::new("shop/out", Some(file.path().to_owned())));
        let named = || poison::read(&std::fs::read_to_string(file.path()).unwrap());
        let (one, two) = (MessageId::new("one"), MessageId::new("two"));
        let first = suspects.suspect(&one, 5);
        let second = suspects.suspect(&two, 6);
        assert_eq!(named(), ["one", "two"]);
        first.clear();
        assert_eq!((named(), suspects.cleared()), (vec!["two".to_owned()], vec!["one".to_owned()]));
        // It went back: nothing is known of it.
        drop(second);
        assert_eq!((named(), suspects.cleared()), (Vec::new(), vec!["one".to_owned()]));
    }
}
