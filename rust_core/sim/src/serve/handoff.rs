//! Prefill and decode on different engines: what is offered to others, and what others offer.
//!
//! The face is that of vLLM's NIXL connector in pull mode. The engine that computes a prompt (P) keeps its blocks and says
//! in `kv_transfer_params` where they are; the engine that answers (D) is given these parameters with the request, claims
//! the blocks, waits for the transfer, and releases them. Between engines of this crate the claim travels over P's own
//! HTTP port. A claim renews the lease, and is repeated while D's request waits.

mod claim;
mod params;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

pub(crate) use self::claim::{CLAIM_PATH, Notice, RELEASE_PATH, fetch};
pub(crate) use self::params::{Kept, Offer, Wanted, offer_json, request_name};

use super::driver::Driver;
use crate::config::TransferConfig;

/// What has been handed off, and to whom.
pub(crate) struct Handoffs {
    pub(crate) config: TransferConfig,
    /// Real seconds in a virtual one; as at speed 1 where nothing is waited for.
    pace: f64,
    state: Mutex<State>,
    /// Releases on their way.
    releases: Mutex<JoinSet<()>>,
    runtime: Handle,
}

#[derive(Default)]
struct State {
    /// Of each rank, as long as the process lives.
    engine_ids: Vec<String>,
    tallies: Vec<Tally>,
    /// Engines that answered before: their silence shows at once.
    met: HashSet<String>,
}

/// What went wrong at one rank.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Transfers that did not come about.
    pub(crate) failed: u64,
    /// Requests that ended for that.
    pub(crate) errors: u64,
    /// Releases that the other engine did not hear.
    pub(crate) unheard: u64,
    /// Releases of blocks that were kept no more.
    pub(crate) late: u64,
}

// === impl Handoffs ===

impl Handoffs {
    pub(crate) fn new(config: &TransferConfig, speed: f64, runtime: Handle) -> Handoffs {
        Handoffs {
            config: config.clone(),
            pace: if speed > 0.0 { speed.recip() } else { 1.0 },
            state: Mutex::default(),
            releases: Mutex::default(),
            runtime,
        }
    }

    /// Forgets everything, as a process does that ends; each rank has a new name.
    pub(crate) fn restart(&self, ranks: usize, rng: &mut fastrand::Rng) {
        let id = uuid(rng);
        let name = |rank| if ranks == 1 { id.clone() } else { format!("{id}_dp{rank}") };
        *self.state.lock() = State {
            engine_ids: (0..ranks).map(name).collect(),
            tallies: vec![Tally::default(); ranks],
            met: HashSet::new(),
        };
    }

    /// Drops the releases that are on their way, and returns once they are gone.
    pub(crate) async fn stop(&self) {
        let mut releases = std::mem::take(&mut *self.releases.lock());
        releases.shutdown().await;
    }

    /// True if the engine shares KV at all.
    pub(crate) fn on(&self) -> bool {
        self.config.role.is_some()
    }

    pub(crate) fn engine_id(&self, rank: usize) -> String {
        self.state.lock().engine_ids.get(rank).cloned().unwrap_or_default()
    }

    /// The rank of this name.
    pub(crate) fn rank(&self, engine_id: &str) -> Option<usize> {
        self.state.lock().engine_ids.iter().position(|id| id == engine_id)
    }

    pub(crate) fn tallies(&self) -> Vec<Tally> {
        self.state.lock().tallies.clone()
    }

    pub(crate) fn note(&self, rank: usize, note: impl FnOnce(&mut Tally)) {
        if let Some(tally) = self.state.lock().tallies.get_mut(rank) {
            note(tally);
        }
    }

    /// Real time of virtual seconds.
    fn real(&self, seconds: f64) -> Duration {
        Duration::from_secs_f64((seconds * self.pace).clamp(0.0, 1e6))
    }

    /// Runs a release in the background.
    fn release(&self, release: impl Future<Output = ()> + Send + 'static) {
        let mut releases = self.releases.lock();
        while releases.try_join_next().is_some() {}
        releases.spawn_on(release, &self.runtime);
    }

    /// What another engine asks of a rank: to keep blocks a while longer, or to give them back. False if there are none.
    pub(crate) fn serve(&self, ranks: &[Arc<Driver>], notice: &Notice, release: bool) -> bool {
        let found = self.rank(&notice.engine_id).zip(params::sequence(&notice.request_id));
        let Some((rank, id)) = found else { return false };
        let held = if release { ranks[rank].release(id) } else { ranks[rank].renew(id) };
        if release && !held {
            self.note(rank, |tally| tally.late += 1);
        }
        held
    }
}

/// A random name in the form of a UUID, version 4.
fn uuid(rng: &mut fastrand::Rng) -> String {
    let bits = (rng.u128(..) & !(0xF << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
