//! What travels back: a whole reply, a stream, or the ruins of either.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::stream::Stream;

/// The body of a reply.
pub(crate) enum Body {
    /// All of it, known at the head.
    Whole(Bytes),
    /// Server-sent events.
    Stream(Box<Stream>),
    /// The first `part` of a reply that announces `announced` bytes; then the connection ends or hangs.
    Cut { part: Bytes, announced: u64, ending: Ending },
    /// Nothing is left to send.
    Done,
}

/// How a reply ends that does not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The connection is dropped as soon as what was sent is on its way.
    Dies { flushed: bool },
    /// Nothing more comes.
    Hangs,
}

/// The engine died: hyper drops the connection where it stands.
#[derive(Debug, thiserror::Error)]
#[error("the engine died, as it was told to")]
pub(crate) struct Died;

// === impl Ending ===

impl Ending {
    pub(crate) const DIES: Ending = Ending::Dies { flushed: false };

    /// Waits, and then fails if the engine dies.
    pub(crate) fn poll<T>(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T, Died>>> {
        match self {
            Ending::Hangs => Poll::Pending,
            Ending::Dies { flushed: true } => Poll::Ready(Some(Err(Died))),
            Ending::Dies { flushed } => {
                // hyper flushes when a body has nothing to give, and not once it has failed.
                *flushed = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

// === impl Body ===

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Died;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Died>>> {
        match &mut *self {
            Body::Done => Poll::Ready(None),
            Body::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Body::Done;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Body::Stream(stream) => {
                stream.poll_bytes(cx).map(|next| next.map(|bytes| bytes.map(Frame::data)))
            }
            Body::Cut { part, .. } if !part.is_empty() => {
                let part = std::mem::take(part);
                Poll::Ready(Some(Ok(Frame::data(part))))
            }
            Body::Cut { ending, .. } => ending.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Done => true,
            Body::Whole(bytes) => bytes.is_empty(),
            Body::Stream(_) | Body::Cut { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Done => SizeHint::with_exact(0),
            Body::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Cut { announced, .. } => SizeHint::with_exact(*announced),
            Body::Stream(_) => SizeHint::default(),
        }
    }
}
