//! `stagepost check`.

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::json;

use super::Exit;
use crate::plan::load::{self, Options};
use crate::telemetry::console;

/// Flags of `stagepost check`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Files or folders with manifests
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// For editors and CI
    #[arg(short, long, value_enum)]
    output: Option<Output>,
    /// The files are a part of a set: they may name stores that are not among them
    #[arg(long)]
    allow_missing_refs: bool,
    /// Namespace of objects that name none
    #[arg(long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Json,
}

pub(super) fn run(args: &Args) -> Exit {
    let options = Options {
        default_namespace: args.namespace.clone(),
        allow_missing_refs: args.allow_missing_refs,
        ..Options::default()
    };
    let found = load::load(&args.paths, &options);
    match args.output {
        Some(Output::Json) => {
            console::print(&format!("{:#}", json!({"violations": found.violations, "warnings": found.warnings})));
        }
        None => {
            found.violations.iter().for_each(|violation| console::print(&violation.to_string()));
            found.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
        }
    }
    if found.is_valid() { Exit::Done } else { Exit::Invalid }
}
