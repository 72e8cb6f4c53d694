//! `stagepost crds`.

use std::fs;
use std::path::PathBuf;

use super::{Exit, failed};
use crate::api;
use crate::telemetry::console;

/// Flags of `stagepost crds`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Write one file for each kind into this folder instead of printing them
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Why the files could not be written.
#[derive(Debug, thiserror::Error)]
#[error("can't write {}; give --dir a folder that may be written", path.display())]
struct Unwritable {
    path: PathBuf,
    source: std::io::Error,
}

pub(super) fn run(args: &Args) -> Exit {
    let files = api::crds_yaml();
    let Some(folder) = &args.dir else {
        let texts: Vec<String> = files.into_iter().map(|(_, yaml)| yaml).collect();
        console::print(texts.join("---\n").trim_end());
        return Exit::Done;
    };
    let written = write(folder.clone(), None)
        .and_then(|()| files.into_iter().try_for_each(|(name, yaml)| write(folder.join(name), Some(yaml))));
    match written {
        Ok(()) => Exit::Done,
        Err(error) => failed(Exit::NotStarted, &error),
    }
}

/// A file, or a folder if there is no content.
fn write(path: PathBuf, content: Option<String>) -> Result<(), Unwritable> {
    let done = match content {
        Some(content) => fs::write(&path, content),
        None => fs::create_dir_all(&path),
    };
    done.map_err(|source| Unwritable { path, source })
}
