//! Who may write to the terminal: log lines, printed lines, and a table that stays below both.
//!
//! Inputs: whole lines, and the rows of the table. Outputs: stdout and stderr, never interleaved. It knows nothing
//! of what the rows say. Where stdout is no terminal there is no table, and lines go straight through.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

static TABLE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Rows beyond this are not drawn: a table higher than the terminal can't be erased.
const MAX_ROWS: usize = 18;

/// Whether a table can be shown: stdout is a terminal that understands control sequences.
pub fn is_interactive() -> bool {
    io::stdout().is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

/// Whether colour is wanted on `stream` (`NO_COLOR` is not set, or empty).
pub fn colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints a line on stdout, above the table. Output that nobody takes any more is no reason to stop.
pub fn print(line: &str) {
    let table = lock();
    let mut out = io::stdout().lock();
    let _ = erase(&mut out, &table)
        .and_then(|()| writeln!(out, "{line}"))
        .and_then(|()| draw(&mut out, &table))
        .and_then(|()| out.flush());
}

/// Replaces the table. No rows: none is shown.
pub fn show(rows: Vec<String>) {
    let mut table = lock();
    let mut out = io::stdout().lock();
    let _ = erase(&mut out, &table).and_then(|()| draw(&mut out, &rows)).and_then(|()| out.flush());
    *table = rows;
}

fn lock() -> MutexGuard<'static, Vec<String>> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of terminal lines the table takes.
fn height(rows: &[String]) -> usize {
    if rows.len() > MAX_ROWS { MAX_ROWS + 1 } else { rows.len() }
}

/// Moves to the table's first line and clears to the end of the screen.
fn erase(out: &mut impl Write, rows: &[String]) -> io::Result<()> {
    match height(rows) {
        0 => Ok(()),
        lines => write!(out, "\x1b[{lines}A\r\x1b[J"),
    }
}

/// Draws without line wrapping, so that a row is one line however narrow the terminal is.
fn draw(out: &mut impl Write, rows: &[String]) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    write!(out, "\x1b[?7l")?;
    for row in rows.iter().take(MAX_ROWS) {
        writeln!(out, "{row}")?;
    }
    if rows.len() > MAX_ROWS {
        writeln!(out, "... and {} more: stagepost status", rows.len() - MAX_ROWS)?;
    }
    write!(out, "\x1b[?7h")
}

/// Log lines on stderr; above the table where both go to a terminal.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogWriter;

/// One log line being written. tracing-subscriber hands over each line whole.
#[derive(Debug)]
pub struct LogLine(());

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = LogLine;

    fn make_writer(&'a self) -> LogLine {
        LogLine(())
    }
}

impl Write for LogLine {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let table = lock();
        let mut err = io::stderr().lock();
        if table.is_empty() || !err.is_terminal() {
            return err.write_all(line).map(|()| line.len());
        }
        let mut out = io::stdout().lock();
        erase(&mut out, &table)?;
        out.flush()?;
        err.write_all(line)?;
        draw(&mut out, &table)?;
        out.flush()?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(rows: &[String]) -> String {
        let mut out = Vec::new();
        draw(&mut out, rows).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn erasing_goes_up_as_many_lines_as_were_drawn() {
        for count in [1, 2, MAX_ROWS, MAX_ROWS + 1, 100] {
            let rows: Vec<String> = (0..count).map(|row| row.to_string()).collect();
            let mut out = Vec::new();
            erase(&mut out, &rows).unwrap();
            let lines = drawn(&rows).matches('\n').count();
            assert_eq!(String::from_utf8(out).unwrap(), format!("\x1b[{lines}A\r\x1b[J"));
        }
    }

    #[test]
    fn without_rows_nothing_is_drawn() {
        assert_eq!(drawn(&[]), "");
    }
}
