//! From the runtime's thread to Python's event loop: a queue of waiters and one wake-up for all of them.
//!
//! The runtime never takes the interpreter's lock. It notes which waiter has something to fetch, and writes to a file
//! descriptor if nobody has been woken since; the event loop then fetches everything that is ready by then.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::task::Wake;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};

/// Exchanges whose next part can be fetched, and the descriptor that says so.
pub(crate) struct Bridge {
    ready: Mutex<Vec<u64>>,
    wakeup: OwnedFd,
}

/// Wakes whoever waits for one exchange; holds its id alone, so that a forgotten exchange is dropped and cancelled.
pub(crate) struct Waiter {
    pub(crate) bridge: Arc<Bridge>,
    pub(crate) exchange: u64,
}

impl Bridge {
    pub(crate) fn new() -> std::io::Result<Bridge> {
        let wakeup = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Bridge { ready: Mutex::default(), wakeup })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.wakeup.as_raw_fd()
    }

    /// The ids of all exchanges that became ready since the last call.
    pub(crate) fn take(&self) -> Vec<u64> {
        // First the descriptor, then the queue: whoever comes between the two finds an empty queue and writes again.
        let mut count = [0; 8];
        let _ = read(&self.wakeup, &mut count);
        std::mem::take(&mut self.ready.lock())
    }

    fn push(&self, exchange: u64) {
        let first = {
            let mut ready = self.ready.lock();
            ready.push(exchange);
            ready.len() == 1
        };
        if first {
            // It fails only when the counter is full, and then the loop is awake already.
            let _ = write(&self.wakeup, &1u64.to_ne_bytes());
        }
    }
}

impl Wake for Waiter {
    fn wake(self: Arc<Self>) {
        self.bridge.push(self.exchange);
    }
}
