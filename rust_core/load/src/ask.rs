//! One request, to the end of its reply.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use nebula_sim::timing::Nanos;

use crate::chunk::{self, Chunks};
use crate::client::{Client, root_cause};
use crate::failure::{Failure, Kind};
use crate::reply::{Answer, Expect, Reply};

/// Most of an error's body that is read.
const ERROR_BYTES: usize = 64 * 1024;

/// What every request of a run shares.
pub(crate) struct Asker {
    pub(crate) client: Client,
    pub(crate) chunks: Chunks,
    pub(crate) timeout: Duration,
}

/// One request.
pub(crate) struct Call {
    pub(crate) body: Bytes,
    /// Names its conversation.
    pub(crate) key: u64,
    pub(crate) expect: Expect,
}

/// Nanoseconds since a run began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

/// What one request came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// When it was sent.
    pub(crate) sent: Nanos,
    /// When its reply was over, or known to be bad.
    pub(crate) ended: Nanos,
    pub(crate) result: Result<Answer, Failure>,
}

// === impl Asker ===

impl Asker {
    /// Sends a request and reads the reply, for at most the timeout.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection, which takes the request out of the engine.
    pub(crate) async fn ask(&self, clock: Clock, call: Call) -> Outcome {
        let sent = clock.now();
        let exchange = tokio::time::timeout(self.timeout, self.exchange(clock, call));
        let result = exchange.await.unwrap_or_else(|_| {
            let seconds = self.timeout.as_secs_f64();
            Err(Failure::new(Kind::Timeout, format!("the reply was not over after {seconds} s")))
        });
        Outcome { sent, ended: clock.now(), result }
    }

    async fn exchange(&self, clock: Clock, call: Call) -> Result<Answer, Failure> {
        let Call { body, key, expect } = call;
        let response = self.client.post(body, key).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response).await);
        }
        if expect.stream && !is_event_stream(&response) {
            let kind = response.headers().get(http::header::CONTENT_TYPE);
            let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or("unknown");
            return Err(Failure::new(Kind::NotAStream, format!("content-type is {kind}")));
        }
        let mut reply = Reply::new(&self.chunks, expect);
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|cause| Failure::new(Kind::Cut, root_cause(&cause)))?;
            if let Some(bytes) = frame.data_ref() {
                reply.feed(bytes, clock.now())?;
            }
        }
        reply.end()
    }
}

// === impl Clock ===

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock(Instant::now())
    }

    pub(crate) fn now(self) -> Nanos {
        Nanos::try_from(self.0.elapsed().as_nanos()).unwrap_or(Nanos::MAX)
    }

    /// The moment `after` nanoseconds from the start.
    pub(crate) fn at(self, after: Nanos) -> Instant {
        self.0 + Duration::from_nanos(after)
    }
}

fn is_event_stream(response: &Response<Incoming>) -> bool {
    let kind = response.headers().get(http::header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

async fn refusal(response: Response<Incoming>) -> Failure {
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), ERROR_BYTES).collect().await;
    let detail =
        body.map_or_else(|cause| cause.to_string(), |body| chunk::message(&body.to_bytes()));
    Failure::new(Kind::Status(status), detail)
}
