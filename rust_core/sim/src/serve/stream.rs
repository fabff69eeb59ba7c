//! A reply as server-sent events.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, Sleep};
use xxhash_rust::xxh3::Xxh3;

use super::body::{Died, Ending};
use super::driver::{Progress, Ticket};
use super::refusal::Refusal;
use super::shape::{Chunks, Face, Usage};

/// Most tokens in one write; with the chunks around them about 64 KiB.
const WRITE_TOKENS: u32 = 256;
const DONE: &[u8] = b"data: [DONE]\n\n";

/// The events of one reply. All that are ready leave in one write. Dropping it aborts the request.
pub(crate) struct Stream {
    source: Source,
    chunks: Chunks,
    /// Tokens sent.
    sent: u32,
    phase: Phase,
    mishap: Option<Mishap>,
    pace: Option<Pace>,
    checksum: Option<Box<Checksum>>,
}

/// Where the tokens come from.
pub(crate) enum Source {
    Running(Ticket),
    /// The prompt's KV is on its way from another engine.
    Fetching(Pin<Box<dyn Future<Output = Result<Ticket, Refusal>> + Send>>),
}

/// How the stream ends before its time: after so many more events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mishap {
    pub(crate) after_chunks: u32,
    pub(crate) ending: Ending,
}

enum Phase {
    Open,
    Ending(Ending),
    Closed,
}

/// Stretches the time of a reply.
struct Pace {
    factor: f64,
    started: Instant,
    /// What is ready but must wait.
    held: Option<(Progress, Pin<Box<Sleep>>)>,
}

#[derive(Default)]
struct Checksum {
    hash: Xxh3,
    bytes: usize,
}

// === impl Stream ===

impl Stream {
    pub(crate) fn new(source: Source, chunks: Chunks) -> Stream {
        Stream {
            source,
            chunks,
            sent: 0,
            phase: Phase::Open,
            mishap: None,
            pace: None,
            checksum: None,
        }
    }

    /// Ends the stream before its time.
    pub(crate) fn set_mishap(&mut self, mishap: Mishap) {
        self.mishap = Some(mishap);
    }

    /// Makes every gap of the stream `factor` times as long.
    pub(crate) fn set_slow(&mut self, factor: f64) {
        self.pace = Some(Pace { factor, started: Instant::now(), held: None });
    }

    /// Adds the comment line that tells how many bytes the stream has, and their hash.
    pub(crate) fn set_checksum(&mut self) {
        self.checksum = Some(Box::default());
    }

    /// All events that are ready, once there is one.
    pub(crate) fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Died>>> {
        if let Phase::Open = self.phase {
            let bytes = match self.poll_progress(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(progress)) => self.write(progress),
                Poll::Ready(Err(refusal)) => self.fail(refusal),
            };
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(bytes)));
            }
        }
        match &mut self.phase {
            Phase::Ending(ending) => ending.poll(cx),
            Phase::Open | Phase::Closed => Poll::Ready(None),
        }
    }

    fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<Result<Progress, Refusal>> {
        let ticket = match &mut self.source {
            Source::Running(ticket) => ticket,
            Source::Fetching(fetching) => match fetching.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(refusal)) => return Poll::Ready(Err(refusal)),
                Poll::Ready(Ok(ticket)) => {
                    self.source = Source::Running(ticket);
                    return self.poll_progress(cx);
                }
            },
        };
        let Some(pace) = &mut self.pace else {
            return ticket.poll_beyond(self.sent, cx).map(Ok);
        };
        loop {
            if let Some((progress, sleep)) = &mut pace.held {
                if sleep.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                if progress.produced > self.sent {
                    return Poll::Ready(Ok(*progress));
                }
            }
            let Poll::Ready(progress) = ticket.poll_beyond(self.sent, cx) else {
                return Poll::Pending;
            };
            let due = pace.started + pace.started.elapsed().mul_f64(pace.factor);
            pace.held = Some((progress, Box::pin(tokio::time::sleep_until(due))));
        }
    }

    /// The head is on its way: the error is an event, as Python writes it.
    fn fail(&mut self, refusal: Refusal) -> Bytes {
        let mut out = BytesMut::new();
        if self.chunks.shape().face == Face::Chat {
            self.chunks.role(&mut out);
        }
        out.extend_from_slice(refusal.into_event().as_bytes());
        out.extend_from_slice(DONE);
        self.phase = Phase::Closed;
        out.freeze()
    }

    fn write(&mut self, progress: Progress) -> Bytes {
        let upto = progress.produced.min(self.sent + WRITE_TOKENS);
        let mut out =
            BytesMut::with_capacity((upto - self.sent + 2) as usize * self.chunks.len_hint());
        if self.sent == 0 && self.chunks.shape().face == Face::Chat && self.may_send() {
            self.chunks.role(&mut out);
        }
        while self.sent < upto && self.may_send() {
            self.chunks.token(self.sent, &mut out);
            self.sent += 1;
        }
        let whole = progress.finished && self.sent == progress.produced;
        let usage = self.chunks.shape().usage != Usage::Never;
        if whole && usage && self.may_send() {
            self.chunks.usage(progress, &mut out);
        }
        if let Some(checksum) = &mut self.checksum {
            checksum.add(&out);
        }
        if whole && matches!(self.phase, Phase::Open) {
            if let Some(checksum) = &self.checksum {
                out.extend_from_slice(checksum.line().as_bytes());
            }
            out.extend_from_slice(DONE);
            self.phase = Phase::Closed;
        }
        out.freeze()
    }

    /// Counts an event; false once the stream's time has come.
    fn may_send(&mut self) -> bool {
        match &mut self.mishap {
            Some(Mishap { after_chunks: 0, ending }) => {
                self.phase = Phase::Ending(*ending);
                false
            }
            Some(mishap) => {
                mishap.after_chunks -= 1;
                true
            }
            None => true,
        }
    }
}

// === impl Checksum ===

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes += bytes.len();
    }

    fn line(&self) -> String {
        format!(": xxh3={:016x} bytes={}\n\n", self.hash.digest(), self.bytes)
    }
}
