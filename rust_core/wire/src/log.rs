//! Log lines go to standard error in batches, from a thread of their own: a slow terminal never holds up a request,
//! and a busy gateway wakes the thread 20 times a second instead of once per line.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How long lines gather before they are written.
const GATHER: Duration = Duration::from_millis(50);
/// Most bytes that wait; lines beyond are counted and left out.
const HELD_BYTES: usize = 4 * 1024 * 1024;

/// The thread that writes, and what waits for it.
#[derive(Debug)]
pub struct Log {
    lines: Arc<Lines>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Takes one line into the batch.
#[derive(Debug)]
pub struct Line(Arc<Lines>);

#[derive(Debug, Default)]
struct Lines {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    left_out: u64,
    closed: bool,
}

// === impl Log ===

impl Log {
    /// A log whose thread runs.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start() -> io::Result<Log> {
        let lines = Arc::new(Lines::default());
        let written = Arc::clone(&lines);
        let thread = std::thread::Builder::new()
            .name("nebula-log".to_owned())
            .spawn(move || written.write())?;
        Ok(Log { lines, thread: Mutex::new(Some(thread)) })
    }

    /// Makes a writer for each line.
    pub fn writer(&self) -> impl Fn() -> Line + Send + Sync + 'static {
        let lines = Arc::clone(&self.lines);
        move || Line(Arc::clone(&lines))
    }

    /// Writes what is left and ends the thread.
    pub fn close(&self) {
        self.lines.state.lock().closed = true;
        self.lines.changed.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            // It has nothing to say if it failed.
            let _ = thread.join();
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.close();
    }
}

// === impl Lines ===

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

// === impl Line ===

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
