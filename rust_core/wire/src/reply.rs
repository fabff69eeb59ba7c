//! What is ready of a reply, handed over one wake-up at a time.
//!
//! The runtime's task writes into a [`Sender`]; whoever serves the client polls the [`Exchange`]. Chunks that arrive
//! between two polls leave together, so under load they coalesce by themselves; a slow reader holds at most
//! [`HELD_BYTES`], then the engine's socket is no longer read.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::error::Error;

/// Most bytes that wait for the reader of one reply, apart from a last chunk that crosses the mark.
pub const HELD_BYTES: usize = 64 * 1024;

/// Status and headers of a reply.
#[derive(Debug)]
pub struct Head {
    /// HTTP status.
    pub status: u16,
    /// Headers that the client gets.
    pub headers: HeaderMap,
}

/// All of a reply that is ready now.
#[derive(Debug)]
pub struct Part {
    /// Present in the first part alone.
    pub head: Option<Head>,
    /// Chunks in order; may be empty in a last part.
    pub body: Vec<Bytes>,
    /// Nothing follows.
    pub end: bool,
}

#[derive(Default)]
struct State {
    head: Option<Head>,
    body: Vec<Bytes>,
    held: usize,
    end: Option<Result<(), Error>>,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    space: Notify,
}

/// The reader's end. Dropping it cancels the exchange: the engine's connection closes and the engine stops.
pub struct Exchange {
    shared: Arc<Shared>,
    task: AbortHandle,
    request_id: HeaderValue,
}

/// The writer's end, in the task of the exchange.
pub(crate) struct Sender {
    shared: Arc<Shared>,
    ended: bool,
}

/// The two ends of one reply, where the reader's end still needs its task.
pub(crate) fn channel(request_id: HeaderValue) -> (Sender, impl FnOnce(AbortHandle) -> Exchange) {
    let shared = Arc::new(Shared::default());
    let sender = Sender { shared: Arc::clone(&shared), ended: false };
    (sender, |task| Exchange { shared, task, request_id })
}

// === impl Exchange ===

impl Exchange {
    /// The next part once there is one; after the last part this stays pending.
    ///
    /// # Errors
    /// Why there is no reply, or why it ends early; nothing follows an error.
    ///
    /// # Cancel safety
    /// A part is taken only when it is returned.
    pub fn poll_part(&self, context: &mut Context<'_>) -> Poll<Result<Part, Error>> {
        let mut state = self.shared.state.lock();
        let end = state.end.take();
        if end.is_none() && state.head.is_none() && state.body.is_empty() {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let ended_well = matches!(end, Some(Ok(())));
        if let Some(Err(error)) = end {
            if state.head.is_none() && state.body.is_empty() {
                return Poll::Ready(Err(error));
            }
            // An error waits until the bytes before it have been handed over.
            state.end = Some(Err(error));
        }
        let part = Part {
            head: state.head.take(),
            body: std::mem::take(&mut state.body),
            end: ended_well,
        };
        state.held = 0;
        drop(state);
        self.shared.space.notify_one();
        Poll::Ready(Ok(part))
    }

    /// The request's identity, for a refusal that has no reply headers.
    pub fn request_id(&self) -> &HeaderValue {
        &self.request_id
    }

    /// Stops the exchange: the engine's connection closes and no further part comes.
    pub fn cancel(&self) {
        self.task.abort();
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.cancel();
    }
}

// === impl Sender ===

impl Sender {
    /// Hands over the head together with what is there of the body.
    pub(crate) fn head(&self, head: Head, body: Bytes) {
        self.update(|state| {
            state.head = Some(head);
            state.push(body);
        });
    }

    /// Hands over a chunk, and waits while the reader is more than [`HELD_BYTES`] behind.
    ///
    /// # Cancel safety
    /// The chunk has been handed over before the wait.
    pub(crate) async fn chunk(&self, chunk: Bytes) {
        let mut held = 0;
        self.update(|state| {
            state.push(chunk);
            held = state.held;
        });
        while held >= HELD_BYTES {
            self.shared.space.notified().await;
            held = self.shared.state.lock().held;
        }
    }

    /// Says that nothing follows.
    pub(crate) fn end(mut self, how: Result<(), Error>) {
        self.ended = true;
        self.update(|state| state.end = Some(how));
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let waker = {
            let mut state = self.shared.state.lock();
            change(&mut state);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Sender {
    /// The reader never waits for a task that is gone, whether it was stopped or it panicked.
    fn drop(&mut self) {
        if !self.ended {
            self.update(|state| state.end = Some(Err(Error::cut())));
        }
    }
}

impl State {
    fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.held += chunk.len();
            self.body.push(chunk);
        }
    }
}

#[cfg(test)]
mod tests;
