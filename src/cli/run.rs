//! `stagepost run` and `stagepost sink`: flags, and the runtime that the work runs on.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

use super::start::{self, StartError};
use super::{Exit, failed};
use crate::local::names::{self, Assignment};
use crate::local::{self, Address, Ended, Options, RunError};
use crate::sink::{self, SinkArgs, SinkError};

/// Flags of `stagepost run`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Files or folders with manifests
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// One listener for the rules of all IngressRoutes; port 0 takes any free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = names::address)]
    listen: SocketAddr,
    /// Status, metrics, probes and reactivation
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9901", value_parser = names::address)]
    admin: SocketAddr,
    /// Folder of the embedded store's file [default: stagepost in the user's state folder]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The RabbitMQ of every store whose Secret is not among the manifests, as amqp[s]://user:password@host:port/vhost
    #[arg(long, value_name = "URL", value_parser = Address::parse)]
    amqp: Option<Address>,
    /// The embedded store for every MessageStore, whatever its broker says
    #[arg(long)]
    embedded: bool,
    /// Namespace of objects that name none
    #[arg(long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
    /// A listener of its own for one IngressRoute; repeatable
    #[arg(long, value_name = "NAME=ADDR", value_parser = names::route)]
    route: Vec<Assignment<SocketAddr>>,
    /// Where a serviceRef points outside a cluster; repeatable
    #[arg(long, value_name = "NAME=URL", value_parser = names::service)]
    service: Vec<Assignment<Uri>>,
    /// Also run a sink there, which takes what no --service names
    #[arg(long, value_name = "ADDR", value_parser = names::address)]
    sink: Option<SocketAddr>,
    /// Do not take over edited manifests
    #[arg(long)]
    no_reload: bool,
    /// Time to drain at SIGTERM
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = names::duration)]
    grace: Duration,
}

pub(super) fn run(args: Args) -> Exit {
    let options = match options(args) {
        Ok(options) => options,
        Err(error) => return failed(Exit::Usage, &error),
    };
    let runtime = match start::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return failed(Exit::NotStarted, &error),
    };
    crate::telemetry::panics::report();
    let ended = runtime.block_on(local::run(options));
    // What still runs was cut off on purpose; waiting for blocking threads would outlast the grace period.
    runtime.shutdown_background();
    match ended {
        Ok(Ended::Drained) => Exit::Done,
        Ok(Ended::CutOff) => Exit::CutOff,
        Err(error) => match error {
            RunError::Manifests(lines) => failed_lines(Exit::Invalid, &lines),
            RunError::NotStarted(lines) => failed_lines(Exit::NotStarted, &lines),
            RunError::Usage(_) => failed(Exit::Usage, &error),
            RunError::Bug => failed(Exit::CutOff, &error),
            _ => failed(Exit::NotStarted, &error),
        },
    }
}

fn failed_lines(exit: Exit, lines: &[String]) -> Exit {
    for line in lines {
        eprintln!("error: {line}");
    }
    exit
}

pub(super) fn sink(args: SinkArgs) -> Exit {
    let runtime = match start::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return failed(Exit::NotStarted, &error),
    };
    let ended = runtime.block_on(async {
        let shutdown = crate::shutdown::on_signal().map_err(anyhow::Error::from)?;
        sink::run(args, shutdown).await.map_err(anyhow::Error::from)
    });
    match ended {
        Ok(()) => Exit::Done,
        Err(error) => {
            let is_usage = matches!(error.downcast_ref(), Some(SinkError::Script(_)));
            failed(if is_usage { Exit::Usage } else { Exit::NotStarted }, error.as_ref())
        }
    }
}

fn options(args: Args) -> Result<Options, StartError> {
    Ok(Options {
        data: args.data.or_else(state_folder).ok_or(StartError::NoDataFolder)?,
        paths: args.paths,
        listen: args.listen,
        admin: args.admin,
        amqp: args.amqp,
        embedded: args.embedded,
        namespace: args.namespace,
        routes: args.route,
        services: args.service,
        sink: args.sink,
        reload: !args.no_reload,
        grace: args.grace,
        hold_limit: start::hold_limit()?,
    })
}

/// By the XDG Base Directory Specification, which ignores a relative path.
fn state_folder() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state")))?;
    Some(state.join("stagepost"))
}
