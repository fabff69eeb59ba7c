//! Log lines go to standard error in batches, from a thread of their own: a slow terminal never holds up a request,
//! and a busy gateway wakes the thread 20 times a second instead of once per line.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use pyo3::prelude::*;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::error::invalid;

/// How long lines gather before they are written.
const GATHER: Duration = Duration::from_millis(50);
/// Most bytes that wait; lines beyond are counted and left out.
const HELD_BYTES: usize = 4 * 1024 * 1024;

/// Writes what is left when it is dropped.
#[pyclass(frozen, module = "nebula_router._core")]
pub(crate) struct Log {
    lines: Arc<Lines>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Lines {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    left_out: u64,
    closed: bool,
}

/// Starts the log of this process: `format` is `text` or `json`, `level` one of tracing's level names.
#[pyfunction]
pub(crate) fn start_log(format: &str, level: &str) -> PyResult<Log> {
    let filter = EnvFilter::try_new(level)
        .map_err(|cause| invalid(format!("log_level {level}: {cause}")))?;
    let lines = Arc::new(Lines::default());
    let writer = Arc::clone(&lines);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || Line(Arc::clone(&writer)))
        .with_ansi(false);
    let started = match format {
        "json" => log.json().flatten_event(true).finish().try_init(),
        _ => log.finish().try_init(),
    };
    started.map_err(|_| invalid("the log of this process was started before"))?;
    let written = Arc::clone(&lines);
    let thread =
        std::thread::Builder::new().name("nebula-log".to_owned()).spawn(move || written.write())?;
    Ok(Log { lines, thread: Mutex::new(Some(thread)) })
}

#[pymethods]
impl Log {
    /// Writes what is left and ends the thread.
    fn close(&self, py: Python<'_>) {
        self.lines.state.lock().closed = true;
        self.lines.changed.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            // It has nothing to say if it failed.
            let _ = py.detach(|| thread.join());
        }
    }
}

impl Lines {
    fn write(&self) {
        let mut batch = Vec::new();
        let mut closed = false;
        while !closed {
            let left_out = {
                let mut state = self.state.lock();
                while state.bytes.is_empty() && !state.closed {
                    self.changed.wait(&mut state);
                }
                // Woken by the first line: the next ones of the batch are on their way.
                self.changed.wait_while_for(&mut state, |state| !state.closed, GATHER);
                closed = state.closed;
                std::mem::swap(&mut batch, &mut state.bytes);
                std::mem::take(&mut state.left_out)
            };
            if left_out > 0 {
                batch.extend_from_slice(
                    format!("{left_out} log lines were left out: standard error is too slow\n")
                        .as_bytes(),
                );
            }
            // Nobody is left to tell if standard error is gone.
            let _ = io::stderr().write_all(&batch);
            batch.clear();
        }
    }
}

/// One line on its way into the batch.
struct Line(Arc<Lines>);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state.lock();
        if state.bytes.len() + line.len() > HELD_BYTES {
            state.left_out += 1;
            return Ok(line.len());
        }
        let first = state.bytes.is_empty();
        state.bytes.extend_from_slice(line);
        drop(state);
        if first {
            self.0.changed.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
