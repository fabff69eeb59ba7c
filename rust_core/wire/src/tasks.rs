//! The runtime thread and the owner of every spawned task; `tokio::spawn` stands nowhere else.
//!
//! One thread drives all sockets: it needs no locks between tasks, a request wakes one thread instead of several, and
//! Python's event loop is busy long before it is. Work that would hold it up (long prompts) goes to a bounded pool.

use std::future::Future;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nebula_route::Millis;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::Error;

/// Threads for what blocks: names that are resolved, and long prompts.
const POOL_THREADS: usize = 64;
/// Long prompts that are read at once; the others wait here, so that they never keep a name from being resolved.
static LONG_PROMPTS: Semaphore = Semaphore::const_new(4);

pub(crate) struct Tasks {
    handle: Handle,
    tracker: TaskTracker,
    stop: CancellationToken,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Tasks {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system refuses a thread or a poller.
    pub(crate) fn start() -> Result<Tasks, Error> {
        let refused = |cause: std::io::Error| {
            Error::internal(format!("cannot start the I/O thread: {cause}"))
        };
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(POOL_THREADS)
            .build()
            .map_err(refused)?;
        let (handle, tracker, stop) =
            (runtime.handle().clone(), TaskTracker::new(), CancellationToken::new());
        let (tasks, stopped) = (tracker.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("nebula-wire".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    stopped.cancelled().await;
                    tasks.close();
                    tasks.wait().await;
                });
            })
            .map_err(refused)?;
        Ok(Tasks { handle, tracker, stop, thread: Mutex::new(Some(thread)) })
    }

    /// Spawns a task that ends by itself or by its handle, at the latest when the thread stops.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let stop = self.stop.clone();
        let until_stopped = async move { stop.run_until_cancelled(task).await.unwrap_or_default() };
        self.tracker.spawn_on(until_stopped, &self.handle).abort_handle()
    }

    /// Stops every task and waits for the thread; tasks that are still running are dropped where they wait.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.lock().take() {
            // A thread that panicked has nothing left to stop.
            let _ = thread.join();
        }
    }

    /// Spawns for a library that needs to (a connection's own task), under the same owner.
    pub(crate) fn executor(&self) -> Executor {
        Executor {
            handle: self.handle.clone(),
            tracker: self.tracker.clone(),
            stop: self.stop.clone(),
        }
    }

    #[cfg(test)]
    pub(crate) fn live(&self) -> usize {
        self.tracker.len()
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Hands a library's tasks to [`Tasks`].
#[derive(Clone)]
pub(crate) struct Executor {
    handle: Handle,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl<F: Future + Send + 'static> hyper::rt::Executor<F> for Executor
where
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        let stop = self.stop.clone();
        let until_stopped = async move { stop.run_until_cancelled(task).await.map(drop) };
        self.tracker.spawn_on(until_stopped, &self.handle);
    }
}

/// The monotonic clock of the process, in the unit that `route` takes.
#[derive(Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock(Instant::now())
    }

    pub(crate) fn now(self) -> Millis {
        Millis::try_from(self.0.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }
}

/// Runs `work` on the pool.
///
/// # Errors
/// The pool is gone because the gateway is stopping, or the work panicked.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    // Never closed, so there is always a permit in the end.
    let _turn = LONG_PROMPTS.acquire().await;
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|cause| Error::internal(format!("work off the I/O thread failed: {cause}")))
}

/// `period`, give or take a tenth, so that many engines are not probed in one beat.
pub(crate) fn jittered(period: Duration) -> Duration {
    period.mul_f64(0.9 + 0.2 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stopping_leaves_no_task_and_no_thread() {
        let tasks = Tasks::start().unwrap();
        let (dropped, seen) = tokio::sync::oneshot::channel::<()>();
        tasks.spawn(async move {
            let _held = dropped;
            std::future::pending::<()>().await;
        });
        hyper::rt::Executor::execute(&tasks.executor(), std::future::pending::<()>());
        assert_eq!(tasks.live(), 2);
        tasks.stop();
        assert_eq!(tasks.live(), 0);
        assert!(seen.blocking_recv().is_err(), "the task was dropped where it waited");
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        let period = Duration::from_secs(1);
        assert!((0..1_000).all(|_| (900..=1_100).contains(&jittered(period).as_millis())));
    }
}
