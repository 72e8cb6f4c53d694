//! The command line: flags, exit codes, dispatch. Users' scripts rely on every name here.
//!
//! Inputs: arguments and environment. Outputs: text on stdout, one line for each error on stderr, an exit code.

mod check;
mod cluster;
mod controller;
mod crds;
mod remote;
mod render;
mod run;
mod start;
mod table;
mod worker;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::sink::SinkArgs;
use crate::telemetry::logs::{self, LogFormat};

/// Store-and-forward messaging: accept over HTTP, store durably, deliver later.
#[derive(Debug, Parser)]
#[command(name = "stagepost", version, about, arg_required_else_help = true, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How log lines look; text on a terminal, else json
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// error, warn, info, debug, trace, or a filter like info,stagepost=debug; `RUST_LOG` wins
    #[arg(long, global = true, default_value = "info", value_name = "LEVEL")]
    log_level: String,
}

// One value in a process: its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Subcommand)]
enum Command {
    /// Run all objects in these files or folders, in one process, without a cluster
    Run(run::Args),
    /// Validate manifests, start nothing
    Check(check::Args),
    /// The operator: looks after the objects of a cluster
    Controller(controller::Args),
    /// Show what the objects make of a message: rule, transforms, routing key, answer, request to the target
    Render(render::Args),
    /// A recording HTTP target, for trying things out and for tests
    Sink(SinkArgs),
    /// The state of the objects of a local run, or of a cluster
    Status(remote::StatusArgs),
    /// End the Deactivated state of a processor
    Reactivate(remote::ReactivateArgs),
    /// What an ingress pod runs
    #[command(hide = true)]
    Ingress(worker::IngressArgs),
    /// What a forwarding pod runs
    #[command(hide = true)]
    Forward(worker::ForwardArgs),
    /// Print the custom resource definitions
    Crds(crds::Args),
    /// Stop the controller and remove our finalizers, before the chart goes
    #[command(hide = true)]
    Cleanup(controller::CleanupArgs),
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// How a command ended. The numbers are part of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or stopped after a clean drain.
    Done,
    /// Invalid manifests.
    Invalid,
    /// Wrong usage.
    Usage,
    /// Could not start.
    NotStarted,
    /// What was under way was cut off: by the grace period, or by a bug.
    CutOff,
    /// The other side could not be reached, or refused.
    Refused,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Invalid => 1,
            Exit::Usage => 2,
            Exit::NotStarted => 3,
            Exit::CutOff => 4,
            Exit::Refused => 5,
        })
    }
}

/// Parses, dispatches, and says how it ended.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let log_format = logs::format(cli.log_format);
    if let Err(error) = logs::start(log_format, &cli.log_level) {
        return failed(Exit::Usage, &error).into();
    }
    match cli.command {
        Command::Run(args) => run::run(args),
        Command::Check(args) => check::run(&args),
        Command::Render(args) => render::run(&args),
        Command::Sink(args) => run::sink(args),
        Command::Status(args) => remote::status(&args),
        Command::Reactivate(args) => remote::reactivate(&args),
        Command::Controller(args) => controller::run(args, log_format.as_str(), &cli.log_level),
        Command::Cleanup(args) => controller::cleanup(args),
        Command::Ingress(args) => worker::ingress(args),
        Command::Forward(args) => worker::forward(args),
        Command::Crds(args) => crds::run(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "stagepost", &mut std::io::stdout());
            Exit::Done
        }
    }
    .into()
}

/// One line on stderr, its causes included.
fn failed(exit: Exit, error: &dyn std::error::Error) -> Exit {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        // Some errors already say what their cause says.
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = inner.source();
    }
    eprintln!("error: {}", line.replace('\n', " "));
    exit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
