//! Sees that manifests were edited. No polling: the kernel tells.
//!
//! Inputs: the paths given on the command line. Output: one signal when the edits have come to rest. What the files
//! say is not looked at here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// Editors write in several steps: a file that changed within this time is still being written.
const QUIET: Duration = Duration::from_millis(200);

/// A suspension must take effect within 2 s of being saved, also while something else in the folder keeps changing.
const LONGEST: Duration = Duration::from_millis(800);

/// Watches until dropped.
pub struct Watcher {
    _watcher: RecommendedWatcher,
    edits: mpsc::Receiver<()>,
}

impl Watcher {
    /// Watches the folders, and the folders of the files: an editor that saves by renaming replaces the file itself.
    pub fn new(paths: &[PathBuf]) -> notify::Result<Self> {
        // One slot: an edit that is signalled but not yet taken stands for all that follow.
        let (signal, edits) = mpsc::channel(1);
        let given = paths.to_vec();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // An error may stand for lost events, so it counts as an edit.
            if event.map_or(true, |event| may_change_content(&event) && concerns_manifests(&event, &given)) {
                let _ = signal.try_send(());
            }
        })?;
        for (folder, mode) in folders(paths) {
            watcher.watch(&folder, mode)?;
        }
        Ok(Self { _watcher: watcher, edits })
    }

    /// Waits for the next edit, and until the edits have come to rest. Never ends by itself.
    pub async fn edited(&mut self) {
        if self.edits.recv().await.is_none() {
            return std::future::pending().await;
        }
        let latest = Instant::now() + LONGEST;
        while Instant::now() < latest && timeout(QUIET, self.edits.recv()).await.is_ok() {}
    }
}

/// Reading a file is an event too: ours must not start another reading.
fn may_change_content(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    }
}

/// Other files in the same folder (data, logs) may change all the time. What has no extension may be a folder.
fn concerns_manifests(event: &Event, given: &[PathBuf]) -> bool {
    let manifest = |path: &PathBuf| match path.extension() {
        Some(extension) => ["yaml", "yml", "json"].iter().any(|known| extension == *known) || given.contains(path),
        None => true,
    };
    event.paths.is_empty() || event.paths.iter().any(manifest)
}

/// Of a folder only its own files count, as when it is read.
fn folders(paths: &[PathBuf]) -> BTreeSet<(PathBuf, RecursiveMode)> {
    paths
        .iter()
        .map(|path| {
            if path.is_dir() {
                return (path.clone(), RecursiveMode::NonRecursive);
            }
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            (parent.unwrap_or(Path::new(".")).to_owned(), RecursiveMode::NonRecursive)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn an_edit_and_a_replacement_by_renaming_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        std::fs::write(&file, "a: 1").unwrap();
        let mut watcher = Watcher::new(std::slice::from_ref(&file)).unwrap();
        std::fs::write(&file, "a: 2").unwrap();
        timeout(SOON, watcher.edited()).await.unwrap();
        std::fs::write(folder.path().join("a.tmp"), "a: 3").unwrap();
        std::fs::rename(folder.path().join("a.tmp"), &file).unwrap();
        timeout(SOON, watcher.edited()).await.unwrap();
    }

    #[tokio::test]
    async fn other_files_in_the_folder_are_none_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new(&[folder.path().to_owned()]).unwrap();
        std::fs::write(folder.path().join("stagepost.redb"), "data").unwrap();
        assert!(timeout(QUIET * 2, watcher.edited()).await.is_err());
    }

    #[tokio::test]
    async fn reading_is_no_edit() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        std::fs::write(&file, "a: 1").unwrap();
        let mut watcher = Watcher::new(&[folder.path().to_owned()]).unwrap();
        std::fs::read(&file).unwrap();
        assert!(timeout(QUIET * 2, watcher.edited()).await.is_err());
    }
}
