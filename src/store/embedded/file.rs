//! The file: its tables, its format number, and how it is opened.
//!
//! A file that is not ours, is damaged, or was written by a newer version is refused and left as it is. A new file is
//! made under another name and renamed when it is complete: a file under the final name is never half made.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use redb::{
    Builder, Database, DatabaseError, Durability, ReadableDatabase, StorageError, TableDefinition, TableError,
    TableHandle, WriteTransaction,
};

use super::OpenError;
use super::folder::Folder;

/// Numbers about the file: [`FORMAT`], [`COMMITS`], [`NEXT_QUEUE`].
pub(super) const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("stagepost");
/// `(virtual host, name)` -> the queue's identity and arguments, as JSON.
pub(super) const QUEUES: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("queues");
/// `queue id` -> `(next sequence number, messages, bytes of bodies, delivered up to)`.
pub(super) const COUNTS: TableDefinition<'_, u32, (u64, u64, u64, u64)> = TableDefinition::new("counts");
/// `(virtual host, name)` -> the exchange's arguments, as JSON.
pub(super) const EXCHANGES: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("exchanges");
/// `(virtual host, store, exchange, queue, binding key)`: which store made which binding.
pub(super) const BINDINGS: TableDefinition<'_, (&str, &str, &str, &str, &str), ()> = TableDefinition::new("bindings");
/// `(virtual host, processor)` -> its deactivation record, as JSON.
pub(super) const DEACTIVATIONS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("deactivations");
/// `(queue id, sequence number)` -> the message, see `record`.
pub(super) const MESSAGES: TableDefinition<'_, (u32, u64), &[u8]> = TableDefinition::new("messages");

/// The layout of all tables and records. Raised by whatever an older version would misread.
const FORMAT: (&str, u64) = ("format", 3);
/// Counts commits, so that a commit whose answer was an error can be looked up afterwards.
pub(super) const COMMITS: &str = "commits";
/// The id of the next queue.
pub(super) const NEXT_QUEUE: &str = "next queue";

/// Pages that redb keeps in memory, read and written together.
const CACHE_BYTES: usize = 32 << 20;

/// Opens the folder's file, or makes it.
pub(super) fn open(folder: &Folder) -> Result<Database, OpenError> {
    let path = folder.database();
    match fs::metadata(&path) {
        Ok(found) if found.len() == 0 => {
            Err(OpenError::Foreign { file: path, detail: "it is empty, which no file of ours ever is".to_owned() })
        }
        Ok(_) => open_existing(&path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(folder),
        Err(source) => Err(OpenError::Io { path, source }),
    }
}

fn create(folder: &Folder) -> Result<Database, OpenError> {
    let (unfinished, path) = (folder.unfinished(), folder.database());
    let failed = |source| OpenError::Io { path: unfinished.clone(), source };
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let database = Builder::new().set_cache_size(CACHE_BYTES).create(&unfinished);
    let database = database.map_err(|error| refusal(&unfinished, error))?;
    initialise(&database).map_err(|error| failed(into_io(error)))?;
    drop(database);
    fs::rename(&unfinished, &path).map_err(failed)?;
    folder.sync().map_err(failed)?;
    open_existing(&path)
}

/// Makes every table, so that a reader never meets a missing one.
fn initialise(database: &Database) -> Result<(), redb::Error> {
    let transaction = begin(database)?;
    {
        let mut numbers = transaction.open_table(NUMBERS)?;
        numbers.insert(FORMAT.0, FORMAT.1)?;
        numbers.insert(COMMITS, 0)?;
        numbers.insert(NEXT_QUEUE, 1)?;
        transaction.open_table(QUEUES)?;
        transaction.open_table(COUNTS)?;
        transaction.open_table(EXCHANGES)?;
        transaction.open_table(BINDINGS)?;
        transaction.open_table(DEACTIVATIONS)?;
        transaction.open_table(MESSAGES)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Opens a file that is there, without ever turning it into something else.
pub(super) fn open_existing(path: &Path) -> Result<Database, OpenError> {
    let opened = guarded(|| {
        let opened = Builder::new().set_cache_size(CACHE_BYTES).open(path).map_err(|error| refusal(path, error));
        Ok(opened.and_then(|database| check_format(&database, path).map(|()| database)))
    });
    opened.unwrap_or_else(|error| Err(OpenError::Corrupt { file: path.to_owned(), detail: error.to_string() }))
}

/// Runs something of redb's: a damaged file may lead it to a failed assertion, and that is an error like any other.
pub(super) fn guarded<T>(action: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    catch_unwind(AssertUnwindSafe(action))
        .unwrap_or_else(|_| Err(redb::Error::Corrupted("its pages contradict each other".to_owned())))
}

/// Closes a file. redb writes when it does, and may fail at that like anywhere else; what was committed stays.
pub(super) fn close(database: Option<Database>) {
    let closed = guarded(|| {
        drop(database);
        Ok(())
    });
    if let Err(error) = closed {
        tracing::warn!(%error, "the file was not closed in order; it is looked through when it is opened again");
    }
}

fn check_format(database: &Database, path: &Path) -> Result<(), OpenError> {
    let corrupt = |error: redb::Error| OpenError::Corrupt { file: path.to_owned(), detail: error.to_string() };
    let foreign = |detail: String| OpenError::Foreign { file: path.to_owned(), detail };
    let transaction = database.begin_read().map_err(|error| corrupt(error.into()))?;
    let numbers = match transaction.open_table(NUMBERS) {
        Ok(numbers) => numbers,
        Err(TableError::TableDoesNotExist(_) | TableError::TableTypeMismatch { .. }) => {
            return Err(foreign("it has no table named `stagepost`: another program wrote it".to_owned()));
        }
        Err(error) => return Err(corrupt(error.into())),
    };
    match numbers.get(FORMAT.0).map_err(|error| corrupt(error.into()))?.map(|number| number.value()) {
        Some(number) if number == FORMAT.1 => {}
        Some(number) => {
            let ours = FORMAT.1;
            return Err(foreign(format!(
                "it has format {number}, and this version reads format {ours}: use the version that wrote it"
            )));
        }
        None => return Err(foreign("it has no format number".to_owned())),
    }
    let names =
        [QUEUES.name(), COUNTS.name(), EXCHANGES.name(), BINDINGS.name(), DEACTIVATIONS.name(), MESSAGES.name()];
    let found: Vec<String> = transaction
        .list_tables()
        .map_err(|error| corrupt(error.into()))?
        .map(|table| table.name().to_owned())
        .collect();
    match names.iter().find(|name| !found.iter().any(|table| table == *name)) {
        Some(missing) => {
            Err(OpenError::Corrupt { file: path.to_owned(), detail: format!("table `{missing}` is missing") })
        }
        None => Ok(()),
    }
}

/// The number of the last commit.
pub(super) fn read_commits(database: &Database) -> Result<u64, redb::Error> {
    let numbers = database.begin_read()?.open_table(NUMBERS)?;
    Ok(numbers.get(COMMITS)?.map_or(0, |number| number.value()))
}

/// Begins a transaction of the kind that every commit of ours has.
///
/// Quick repair records which pages are in use with each commit (a second fsync and some 100 KiB at 1 GiB): without
/// it, opening after a crash walks the whole file.
pub(super) fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.set_quick_repair(true);
    Ok(transaction)
}

fn refusal(path: &Path, error: DatabaseError) -> OpenError {
    let file = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => {
            OpenError::Locked { folder: path.parent().unwrap_or(path).to_owned(), pid: None }
        }
        DatabaseError::UpgradeRequired(version) => {
            OpenError::Foreign { file, detail: format!("it has the old redb format {version}") }
        }
        DatabaseError::Storage(StorageError::Io(source))
            if !matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            OpenError::Io { path: file, source }
        }
        DatabaseError::Storage(StorageError::Corrupted(detail)) if detail.contains("magic") => {
            OpenError::Foreign { file, detail: "another program wrote it".to_owned() }
        }
        other => OpenError::Corrupt { file, detail: other.to_string() },
    }
}

/// The I/O error inside, or one that carries the text.
pub(super) fn into_io(error: redb::Error) -> io::Error {
    match error {
        redb::Error::Io(error) => error,
        other => io::Error::other(other.to_string()),
    }
}
