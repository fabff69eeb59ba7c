//! Blocks of another engine: claimed, waited for, released.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::super::app::App;
use super::super::driver::Ticket;
use super::super::peer;
use super::super::refusal::Refusal;
use super::Offer;
use crate::config::LoadFailure;
use crate::{Request, Transfer};

/// Seconds that an engine which was never met has for its answer: vLLM's time-out of the first handshake.
const HANDSHAKE_S: f64 = 5.0;
/// Claims per lease.
const BEATS: f64 = 6.0;
pub(crate) const CLAIM_PATH: &str = "/sim/kv/claim";
pub(crate) const RELEASE_PATH: &str = "/sim/kv/release";

/// Which blocks a claim or a release is about.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Notice {
    pub(crate) engine_id: String,
    pub(crate) request_id: String,
}

/// Blocks that another engine keeps for this one. Dropping it releases them, once they were claimed.
struct Claim {
    app: Arc<App>,
    rank: usize,
    offer: Offer,
    claimed: AtomicBool,
}

/// The KV does not come.
#[derive(Debug)]
struct Lost;

/// The request in the engine, with a first token, its prompt fetched from the engine that offers it.
///
/// # Errors
/// The KV does not come, and the policy is to fail.
///
/// # Cancel safety
/// Dropping it takes the request out of the engine, and releases what was claimed.
pub(crate) async fn fetch(
    app: Arc<App>,
    rank: usize,
    request: Request,
    offer: Offer,
) -> Result<Ticket, Refusal> {
    let us_per_token = app.handoffs.config.us_per_token;
    let policy = app.handoffs.config.load_failure_policy;
    let spare = (policy == LoadFailure::Recompute).then(|| request.clone());
    let claim = Claim { app: Arc::clone(&app), rank, offer, claimed: AtomicBool::new(false) };
    let fetched = async {
        claim.meet().await?;
        let ticket = app.ranks[rank].submit(request, Transfer::Receive { us_per_token });
        tokio::select! {
            _ = poll_fn(|cx| ticket.poll_beyond(0, cx)) => Ok(ticket),
            lost = claim.keep_up() => Err(lost),
        }
    };
    let fetched: Result<Ticket, Lost> = fetched.await;
    if let Ok(ticket) = fetched {
        return Ok(ticket);
    }
    app.handoffs.note(rank, |tally| tally.failed += 1);
    if let Some(request) = spare {
        return Ok(app.ranks[rank].submit(request, Transfer::None));
    }
    app.handoffs.note(rank, |tally| tally.errors += 1);
    Err(Refusal::internal())
}

// === impl Claim ===

impl Claim {
    /// The first claim. Who was never met has time to appear; who was met before and is gone shows at once.
    async fn meet(&self) -> Result<(), Lost> {
        let handoffs = &self.app.handoffs;
        let met = handoffs.state.lock().met.contains(&self.offer.engine_id);
        let patience = handoffs.real(HANDSHAKE_S);
        let until = Instant::now() + patience;
        match timeout_at(until, self.send(CLAIM_PATH)).await {
            Ok(Ok(true)) => {
                handoffs.state.lock().met.insert(self.offer.engine_id.clone());
                self.claimed.store(true, Ordering::Relaxed);
                Ok(())
            }
            Ok(Err(_)) if !met && !self.app.rushes() => {
                sleep_until(until).await;
                Err(Lost)
            }
            _ => Err(Lost),
        }
    }

    /// Renews the claim for as long as that goes well: until the blocks are gone, or nobody answers for a whole lease.
    async fn keep_up(&self) -> Lost {
        let handoffs = &self.app.handoffs;
        let lease = handoffs.real(handoffs.config.lease_s);
        let beat = lease.div_f64(BEATS).max(Duration::from_millis(1));
        loop {
            let over = Instant::now() + lease;
            sleep(beat).await;
            if !matches!(timeout_at(over, self.send(CLAIM_PATH)).await, Ok(Ok(true))) {
                return Lost;
            }
        }
    }

    /// True if the other engine still keeps the blocks.
    fn send(&self, path: &'static str) -> impl Future<Output = std::io::Result<bool>> + use<> {
        let Offer { engine_id, request_id, host, port, .. } = self.offer.clone();
        let notice = serde_json::to_string(&Notice { engine_id, request_id });
        async move {
            let status = peer::post(&host, port, path, notice?).await?;
            Ok(status == StatusCode::OK)
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.claimed.load(Ordering::Relaxed) {
            return;
        }
        let (app, rank, release) = (Arc::clone(&self.app), self.rank, self.send(RELEASE_PATH));
        let patience = app.handoffs.real(HANDSHAKE_S).max(Duration::from_millis(100));
        self.app.handoffs.release(async move {
            let heard = timeout_at(Instant::now() + patience, release).await;
            if !matches!(heard, Ok(Ok(_))) {
                app.handoffs.note(rank, |tally| tally.unheard += 1);
            }
        });
    }
}
