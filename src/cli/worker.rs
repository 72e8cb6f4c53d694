//! `stagepost ingress` and `stagepost forward`: what pods run. People never type these.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::start;
use super::{Exit, failed};
use crate::local::names;
use crate::worker::{self, Ended, Options, WorkerError};

/// Flags of both.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file with the plan
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,
    /// Folder with secret/NAME/KEY and config-map/NAME/KEY
    #[arg(long, value_name = "DIR")]
    secrets: PathBuf,
    /// Status, metrics, probes
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:9901", value_parser = names::address)]
    admin: SocketAddr,
    /// Time to drain at SIGTERM
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = names::duration)]
    grace: Duration,
}

/// Flags of `stagepost forward`.
#[derive(Debug, clap::Args)]
pub(super) struct ForwardArgs {
    #[command(flatten)]
    worker: Args,
    /// Says what is being delivered while that may end the process
    #[arg(long, value_name = "FILE")]
    last_words: Option<PathBuf>,
}

/// Flags of `stagepost ingress`.
#[derive(Debug, clap::Args)]
pub(super) struct IngressArgs {
    #[command(flatten)]
    worker: Args,
    /// Requests
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:8080", value_parser = names::address)]
    listen: SocketAddr,
}

pub(super) fn ingress(args: IngressArgs) -> Exit {
    let listen = args.listen;
    run(args.worker, |options| worker::ingress(options, listen))
}

pub(super) fn forward(args: ForwardArgs) -> Exit {
    let last_words = args.last_words;
    run(args.worker, |options| worker::forward(options, last_words))
}

fn run<F: Future<Output = Result<Ended, WorkerError>>>(args: Args, work: impl FnOnce(Options) -> F) -> Exit {
    let hold_limit = match start::hold_limit() {
        Ok(limit) => limit,
        Err(error) => return failed(Exit::Usage, &error),
    };
    let runtime = match start::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return failed(Exit::NotStarted, &error),
    };
    crate::telemetry::panics::report();
    let options = Options { plan: args.plan, secrets: args.secrets, admin: args.admin, grace: args.grace, hold_limit };
    let ended = runtime.block_on(work(options));
    // What still runs was cut off on purpose; waiting for blocking threads would outlast the grace period.
    runtime.shutdown_background();
    match ended {
        Ok(Ended::Drained) => Exit::Done,
        Ok(Ended::CutOff) => Exit::CutOff,
        Err(error @ WorkerError::Bug) => failed(Exit::CutOff, &error),
        Err(error) => failed(Exit::NotStarted, &error),
    }
}
