//! The JSON lines: a thread of its own writes them, so that a slow terminal or disk never holds a runtime thread.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use super::SinkError;
use super::hit::Hit;

/// Hits that wait for the writer. When it is full, answers wait: nothing is left out.
const WAITING: usize = 1024;

/// Where the JSON lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordTo {
    /// One line a hit on standard output.
    Stdout,
    /// One line a hit at the end of this file.
    File(PathBuf),
    /// Nowhere: hits are only kept in memory.
    Nowhere,
}

/// The hand-over to the writer.
#[derive(Debug)]
pub(super) struct Recorder(Mutex<Option<mpsc::Sender<Arc<Hit>>>>);

impl Recorder {
    pub(super) async fn write(&self, hit: Arc<Hit>) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(sender) = sender {
            // The writer ends early only when writing failed, which it has logged.
            let _ = sender.send(hit).await;
        }
    }

    /// What was handed over is still written; nothing more is taken.
    pub(super) fn close(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// The writer at work.
#[derive(Debug)]
pub(super) struct Writing(oneshot::Receiver<()>);

impl Writing {
    /// Waits until everything that was handed over before the recorder was closed is written.
    pub(super) async fn finished(self) {
        let _ = self.0.await;
    }
}

pub(super) fn start(to: &RecordTo) -> Result<(Recorder, Option<Writing>), SinkError> {
    let output: Box<dyn Write + Send> = match to {
        RecordTo::Nowhere => return Ok((Recorder(Mutex::new(None)), None)),
        RecordTo::Stdout => Box::new(io::stdout()),
        RecordTo::File(path) => {
            let file = OpenOptions::new().append(true).create(true).open(path);
            Box::new(file.map_err(|source| SinkError::Record { path: path.clone(), source })?)
        }
    };
    let (sender, hits) = mpsc::channel(WAITING);
    let (done, finished) = oneshot::channel();
    std::thread::spawn(move || {
        if let Err(error) = write_lines(hits, output) {
            tracing::error!("the sink stops recording: {error}");
        }
        let _ = done.send(());
    });
    Ok((Recorder(Mutex::new(Some(sender))), Some(Writing(finished))))
}

/// One write for all the hits that are waiting.
fn write_lines(mut hits: mpsc::Receiver<Arc<Hit>>, mut output: Box<dyn Write + Send>) -> io::Result<()> {
    let mut lines = Vec::new();
    while let Some(first) = hits.blocking_recv() {
        let mut next = Some(first);
        while let Some(hit) = next {
            hit.write_json(&mut lines);
            lines.push(b'\n');
            next = hits.try_recv().ok();
        }
        output.write_all(&lines)?;
        output.flush()?;
        lines.clear();
    }
    Ok(())
}
