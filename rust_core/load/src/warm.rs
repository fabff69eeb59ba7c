//! What is asked before anything counts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nebula_sim::workload::{Message, Piece, Role, Session, Workload};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::ask::{Asker, Call, Clock};
use crate::config::Config;
use crate::error::Error;
use crate::failure::Failure;
use crate::reply::Expect;
use crate::transcript::Form;

/// Chooses words that the workload does not use: nothing of it is in a cache before its time.
const SEED: u64 = 0x6E65_6275_6C61;
/// Between two tries to reach a server that is not ready.
const PAUSE: Duration = Duration::from_millis(200);

/// Requests that are no part of the workload, of the size of its first one.
pub(crate) struct Warm {
    asker: Arc<Asker>,
    body: Bytes,
    expect: Expect,
}

// === impl Warm ===

impl Warm {
    pub(crate) fn new(config: &Config, asker: Arc<Asker>, workload: &Workload) -> Warm {
        let first = workload.sessions.first().and_then(first_turn);
        let (tokens, output_tokens) = first.unwrap_or((1, 1));
        let form = Form::new(config);
        let message = Message::new(Role::User, Piece::Words { seed: SEED, tokens });
        let expect = Expect {
            stream: config.stream,
            tokens: config.ignore_eos.then_some(output_tokens),
            checksum: config.checksum,
            text: false,
        };
        Warm { asker, body: form.body(&form.of(message), output_tokens), expect }
    }

    /// Asks until there is a good reply; not at all where there is no patience.
    ///
    /// # Errors
    /// [`Error::NotReady`] once `patience` is over.
    pub(crate) async fn ready(&self, patience: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + patience;
        let mut last = "no reply".to_owned();
        while Instant::now() < deadline {
            match tokio::time::timeout_at(deadline, self.once()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(failure)) => last = format!("{}: {}", failure.kind, failure.detail),
                Err(_) => break,
            }
            tokio::time::sleep(PAUSE).await;
        }
        if patience.is_zero() {
            return Ok(());
        }
        Err(Error::NotReady { seconds: patience.as_secs(), last })
    }

    /// Asks `count` times, at most `most` at once; how many of them failed.
    pub(crate) async fn up(&self, count: usize, most: usize) -> usize {
        let mut asking = JoinSet::new();
        let mut failed = 0;
        for left in (0..count).rev() {
            let (asker, call) = (Arc::clone(&self.asker), self.call());
            asking.spawn(async move { asker.ask(Clock::start(), call).await.result.is_err() });
            while asking.len() >= most || (left == 0 && !asking.is_empty()) {
                failed += usize::from(!matches!(asking.join_next().await, Some(Ok(false))));
            }
        }
        failed
    }

    async fn once(&self) -> Result<(), Failure> {
        let outcome = self.asker.ask(Clock::start(), self.call()).await;
        outcome.result.map(drop)
    }

    fn call(&self) -> Call {
        Call { body: self.body.clone(), key: SEED, expect: self.expect }
    }
}

/// The tokens that the first turn asks and wants.
fn first_turn(session: &Session) -> Option<(u32, u32)> {
    let turn = session.turns.first()?;
    let tokens = u32::try_from(turn.token_count()).unwrap_or(u32::MAX);
    Some((tokens.max(1), turn.output_tokens))
}
