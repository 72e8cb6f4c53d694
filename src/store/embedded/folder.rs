//! The data folder: one process at a time, and a reserve for when the disk is full.
//!
//! ```text
//! stagepost.lock    locked while a process has the folder open; holds that process's id
//! stagepost.redb    the messages
//! stagepost.spare   some bytes that are given up when the disk is full (see `writer`)
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::OpenError;

/// Deleting needs room in a file that never overwrites what is committed: so many bytes are kept back for it.
/// Some 250 pages of 4 KiB are written by the largest group of acknowledgements that is committed on a full disk.
const SPARE_BYTES: usize = 4 << 20;

/// The folder, locked until this is dropped.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Holds the lock; the system frees it when the process ends, however it ends.
    lock: File,
}

impl Folder {
    /// Makes the folder if it is missing, and takes it for this process.
    pub(super) fn lock(path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(io)?;
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join("stagepost.lock"))
            .map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let pid = lock.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(OpenError::Locked { folder: path.to_owned(), pid });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        // On a full disk the id may not fit; the lock itself needs no space, so that is no reason to refuse.
        let _ = lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{}", std::process::id()));
        Ok(Self { path: path.to_owned(), lock })
    }

    /// The folder itself.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file that holds the messages.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join("stagepost.redb")
    }

    /// The name under which a new file is made before it is complete.
    pub(super) fn unfinished(&self) -> PathBuf {
        self.path.join("stagepost.redb.new")
    }

    /// Lets another process, or another broker of this one, have the folder.
    pub(super) fn unlock(&self) {
        let _ = self.lock.unlock();
    }

    /// Makes a rename in this folder durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        if cfg!(unix) { File::open(&self.path)?.sync_all() } else { Ok(()) }
    }

    /// Sets the reserve aside. Fails when there is no room for it and as much again: then the disk is full.
    ///
    /// As much again, because the reserve itself always fits where it was just given up.
    pub(super) fn keep_spare(&self) -> io::Result<()> {
        let path = self.spare();
        if fs::metadata(&path).is_ok_and(|found| found.len() == SPARE_BYTES as u64) {
            return Ok(());
        }
        // Written out, not just made long: a file with holes takes no room.
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(&vec![0xa5; 2 * SPARE_BYTES])?;
            file.sync_all()?;
            file.set_len(SPARE_BYTES as u64)
        });
        if written.is_err() {
            let _ = fs::remove_file(&path);
        }
        written
    }

    /// Gives the reserve up, so that deletions find room.
    pub(super) fn give_up_spare(&self) {
        let _ = fs::remove_file(self.spare());
    }

    fn spare(&self) -> PathBuf {
        self.path.join("stagepost.spare")
    }
}

/// Whether an I/O error says that there is no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge
            | io::ErrorKind::WriteZero
    )
}
