//! A run on a thread of its own: its progress, its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use nebula_sim::workload::Workload;
use parking_lot::{Condvar, Mutex};
use serde::Deserialize;
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

use crate::ask::{Asker, Clock};
use crate::chunk::Chunks;
use crate::client::Client;
use crate::config::Config;
use crate::error::Error;
use crate::player::{Counters, Player};
use crate::report::{End, Report};
use crate::source::Source;
use crate::warm::Warm;

/// A run. Dropping it stops it.
pub struct Load {
    requests: usize,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A run as one JSON document.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    run: Config,
    source: Source,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Requests of the workload.
    pub requests: usize,
    /// Requests sent.
    pub sent: u64,
    /// Requests whose reply was whole and right.
    pub completed: u64,
    /// Requests without one, and turns that were not asked because of that.
    pub failed: u64,
    /// Requests in flight.
    pub inflight: u64,
    /// Since the first request was due; 0 while the server is not ready or warms up.
    pub seconds: f64,
}

#[derive(Default)]
struct Shared {
    counters: Arc<Counters>,
    stop: CancellationToken,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    clock: Option<Clock>,
    ended: Option<Result<Report, Error>>,
}

// === impl Load ===

impl Load {
    /// Starts what a document describes: `{"run": …}` as [`Config`], `{"source": …}` as [`Source`]; `record` is the file
    /// that the workload is read from, if it is.
    ///
    /// # Errors
    /// As [`Load::start`]; a document or a file that is not as it must be.
    pub fn from_json(document: &[u8], record: Option<&[u8]>) -> Result<Load, Error> {
        let Document { run, source } = serde_json::from_slice(document).map_err(Error::Document)?;
        Load::start(run, source.workload(record)?)
    }

    /// Starts to play `workload`.
    ///
    /// # Errors
    /// A setting that cannot be used, a workload that asks nothing, a thread that the system refuses.
    pub fn start(config: Config, workload: Workload) -> Result<Load, Error> {
        let config = config.check()?;
        let requests = workload.requests();
        if requests == 0 {
            return Err(Error::NoRequest);
        }
        let client = Client::new(&config)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::new(Shared::default());
        let run = Run { config, client, workload: Arc::new(workload), shared: Arc::clone(&shared) };
        let thread =
            std::thread::Builder::new().name("nebula-load".to_owned()).spawn(move || {
                let shared = Arc::clone(&run.shared);
                let ended = runtime.block_on(run.run());
                // Connections that are still open end with the runtime, before anyone is told.
                drop(runtime);
                shared.state.lock().ended = Some(ended);
                shared.changed.notify_all();
            })?;
        Ok(Load { requests, shared, thread: Mutex::new(Some(thread)) })
    }

    /// Where it is now.
    pub fn progress(&self) -> Progress {
        let counters = &self.shared.counters;
        let seconds = self.shared.state.lock().clock.map_or(0, Clock::now) as f64 / 1e9;
        Progress {
            requests: self.requests,
            sent: counters.sent.load(Ordering::Relaxed),
            completed: counters.completed.load(Ordering::Relaxed),
            failed: counters.failed.load(Ordering::Relaxed)
                + counters.skipped.load(Ordering::Relaxed),
            inflight: counters.inflight.load(Ordering::Relaxed),
            seconds,
        }
    }

    /// Ends it soon: requests in flight break off, and the report holds what was measured so far.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }

    /// The report, once, if the run ends within `patience`.
    ///
    /// # Errors
    /// Why nothing could be measured; [`Error::Lost`] once the report was taken.
    pub fn wait(&self, patience: Duration) -> Option<Result<Report, Error>> {
        let mut state = self.shared.state.lock();
        let thread_ended = || self.thread.lock().as_ref().is_none_or(JoinHandle::is_finished);
        if state.ended.is_none() && !thread_ended() {
            self.shared.changed.wait_for(&mut state, patience);
        }
        match state.ended.take() {
            Some(ended) => {
                drop(state);
                self.join();
                Some(ended)
            }
            None => thread_ended().then_some(Err(Error::Lost)),
        }
    }

    /// The same as JSON.
    ///
    /// # Errors
    /// As [`Load::wait`].
    pub fn wait_json(&self, patience: Duration) -> Result<Option<Vec<u8>>, Error> {
        let report = self.wait(patience).transpose()?;
        report.map(|report| serde_json::to_vec(&report)).transpose().map_err(Error::Document)
    }

    fn join(&self) {
        if let Some(thread) = self.thread.lock().take() {
            // A thread that panicked has nothing left to end.
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
        self.join();
    }
}

/// What the thread does.
struct Run {
    config: Config,
    client: Client,
    workload: Arc<Workload>,
    shared: Arc<Shared>,
}

// === impl Progress ===

impl From<Progress> for (usize, u64, u64, u64, u64, f64) {
    fn from(it: Progress) -> Self {
        (it.requests, it.sent, it.completed, it.failed, it.inflight, it.seconds)
    }
}

// === impl Run ===

impl Run {
    async fn run(self) -> Result<Report, Error> {
        let Run { config, client, workload, shared } = self;
        let asker = Arc::new(Asker {
            client,
            chunks: Chunks::new(config.endpoint),
            timeout: Duration::from_millis(config.timeout_ms),
        });
        let warm = Warm::new(&config, Arc::clone(&asker), &workload);
        let warming = async {
            warm.ready(Duration::from_millis(config.ready_timeout_ms)).await?;
            Ok::<usize, Error>(warm.up(config.warmups, config.most_inflight()).await)
        };
        let failed_warmups = shared.stop.run_until_cancelled(warming).await.transpose()?;
        let counters = Arc::clone(&shared.counters);
        let mut player = Player::new(&config, asker, Arc::clone(&workload), counters)?;
        let clock = Clock::start();
        shared.state.lock().clock = Some(clock);
        let end = shared.stop.run_until_cancelled(player.play(clock)).await;
        let seconds = clock.now() as f64 / 1e9;
        let stopped = end.is_none();
        end.transpose()?;
        let end = End { stopped, seconds, failed_warmups: failed_warmups.unwrap_or_default() };
        Ok(Report::new(&player, &workload, &end, &config.percentiles))
    }
}
