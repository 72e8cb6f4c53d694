//! The flags of `stagepost sink`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::script::parse_delay;
use super::{RecordTo, Script, ScriptError, SinkOptions};

/// Runs a recording HTTP target: every hit is one line of JSON.
#[derive(Debug, Clone, clap::Args)]
pub struct SinkArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9095")]
    pub listen: SocketAddr,
    /// Statuses to answer, one a hit; the last repeats
    #[arg(long, value_name = "STATUS,...", value_delimiter = ',', default_value = "200")]
    pub status: Vec<u16>,
    /// Wait this long before each answer, for example 1s
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_delay)]
    pub delay: Duration,
    /// The body of each answer: the content of this file if there is one, else this text
    #[arg(long, value_name = "FILE|TEXT", default_value = "", hide_default_value = true)]
    pub body: String,
    /// Answer with the body that was sent
    #[arg(long, conflicts_with = "body")]
    pub echo: bool,
    /// A header of each answer; repeatable
    #[arg(long, value_name = "NAME: VALUE")]
    pub header: Vec<String>,
    /// Write the lines to the end of this file instead of standard output
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Write no lines; hits are kept in memory only (GET /__hits)
    #[arg(long, conflicts_with = "record")]
    pub quiet: bool,
}

impl SinkArgs {
    /// What the flags mean.
    pub(super) fn options(self) -> Result<SinkOptions, ScriptError> {
        // A text that is no file's name is the body itself.
        let body = std::fs::read(&self.body).unwrap_or_else(|_| self.body.into_bytes());
        let mut script = Script::default().with_statuses(&self.status)?.with_delay(self.delay).with_body(body);
        if self.echo {
            script = script.echoing();
        }
        for header in &self.header {
            let (name, value) = header.split_once(':').ok_or_else(|| ScriptError::Header(header.clone()))?;
            script = script.with_header(name, value)?;
        }
        let record = match self.record {
            Some(path) => RecordTo::File(path),
            None if self.quiet => RecordTo::Nowhere,
            None => RecordTo::Stdout,
        };
        Ok(SinkOptions { listen: self.listen, script, record })
    }
}
