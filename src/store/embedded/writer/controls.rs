//! The rare requests: declarations and deactivation records. Each has a commit of its own.

use super::{Control, PoisonError, Routes, StoreError, Trouble, Writer, file, is_full, lock, topology};
use crate::core::deactivation::Deactivation;
use crate::core::topology::Topology;
use crate::store::embedded::file::{COMMITS, DEACTIVATIONS, NUMBERS};

impl Writer {
    pub(super) fn control(&mut self, control: Control) {
        // A caller that has gone is told nothing; what it asked for is done all the same.
        match control {
            Control::Declare { vhost, store, topology, answer } => {
                let _ = answer.send(self.declare(&vhost, &store, &topology));
            }
            Control::Deactivate { vhost, processor, record, answer } => {
                let _ = answer.send(self.deactivate(vhost, processor, record));
            }
            Control::Reactivate { vhost, processor, answer } => {
                let _ = answer.send(self.reactivate(vhost, processor));
            }
            #[cfg(test)]
            Control::Panic => panic!("a bug"),
            #[cfg(test)]
            Control::Hang(time) => std::thread::sleep(time),
        }
    }

    fn declare(&mut self, vhost: &str, store: &str, wanted: &Topology) -> Result<(), StoreError> {
        let plan = |routes: &Routes| routes.plan(vhost, store, wanted);
        let changes = plan(&self.shared.routes.read().unwrap_or_else(PoisonError::into_inner))?;
        if changes.is_empty() {
            return Ok(());
        }
        let id = self.store(|transaction| topology::write(transaction, vhost, &changes))?;
        self.shared.routes.write().unwrap_or_else(PoisonError::into_inner).apply(vhost, changes, id);
        Ok(())
    }

    fn deactivate(&mut self, vhost: String, processor: String, record: Deactivation) -> Result<(), StoreError> {
        if lock(&self.shared.deactivations).contains_key(&(vhost.clone(), processor.clone())) {
            return Ok(());
        }
        self.store(|transaction| {
            let mut table = transaction.open_table(DEACTIVATIONS)?;
            table.insert((vhost.as_str(), processor.as_str()), topology::json(&record)?.as_slice())?;
            Ok(())
        })?;
        lock(&self.shared.deactivations).insert((vhost, processor), record);
        Ok(())
    }

    fn reactivate(&mut self, vhost: String, processor: String) -> Result<(), StoreError> {
        let key = (vhost, processor);
        if !lock(&self.shared.deactivations).contains_key(&key) {
            return Ok(());
        }
        self.store(|transaction| {
            transaction.open_table(DEACTIVATIONS)?.remove((key.0.as_str(), key.1.as_str()))?;
            Ok(())
        })?;
        lock(&self.shared.deactivations).remove(&key);
        Ok(())
    }

    /// Commits a change. On a full disk it is tried once more with the room of the spare file.
    fn store<T: Default>(
        &mut self,
        change: impl Fn(&redb::WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        match self.try_store(&change) {
            Err(redb::Error::Io(error)) if is_full(&error) && !matches!(self.trouble, Trouble::Down(_)) => {
                self.note(&redb::Error::Io(error));
                self.try_store(&change)
            }
            result => result,
        }
        .map_err(|error| StoreError::Disk(format!("{}: {error}", self.shared.folder.database().display())))
    }

    fn try_store<T: Default>(
        &mut self,
        change: impl Fn(&redb::WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        let number = self.commits + 1;
        let mut value = T::default();
        let result = self.with_database(|database| {
            let transaction = file::begin(database)?;
            value = change(&transaction)?;
            transaction.open_table(NUMBERS)?.insert(COMMITS, number)?;
            transaction.commit()?;
            Ok(())
        });
        match result {
            Ok(()) => self.commits = number,
            Err(error) => {
                self.reopen();
                if self.commits != number {
                    return Err(error);
                }
            }
        }
        Ok(value)
    }
}
