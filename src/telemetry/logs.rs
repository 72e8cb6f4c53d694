//! Structured logs on stderr.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::console;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

impl LogFormat {
    /// As on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// The format that is wanted: text on a terminal and JSON elsewhere, if nothing is said.
pub fn format(wanted: Option<LogFormat>) -> LogFormat {
    let terminal = std::io::stderr().is_terminal();
    wanted.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json })
}

/// Starts logging. `RUST_LOG` wins over `level`.
///
/// Fails on a `RUST_LOG` or level that can't be read.
pub fn start(format: LogFormat, level: &str) -> Result<(), InvalidLogFilter> {
    let text = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty()).unwrap_or_else(|| level.to_owned());
    // The AMQP client tells of every channel that the broker closes as an error; what matters is said by those who use
    // it. And it logs each message that comes back, with its body and headers: that stays off, whatever is asked for.
    let filter = EnvFilter::try_new(format!("lapin=off,{text}")).map_err(|_| InvalidLogFilter(text))?;
    let filter = match "lapin::returned_messages=off".parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    };
    let colour = console::colour(&std::io::stderr());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(console::LogWriter);
    // A second start in one process (tests) keeps the first: nothing is lost by it.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(colour).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// A log level or filter that can't be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not a log level or filter; use error, warn, info, debug, trace, or a filter like info,stagepost=debug"
)]
pub struct InvalidLogFilter(String);
