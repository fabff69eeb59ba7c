//! The latest decisions and what became of them, for people who ask why.

use std::collections::VecDeque;

use parking_lot::Mutex;
use serde::Serialize;

use crate::prompt::Origin;

/// A ring of the latest.
pub(crate) struct Decisions {
    latest: Mutex<VecDeque<Decision>>,
    kept: usize,
}

/// One decision and its outcome. Never a word of the prompt.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Decision {
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
    pub(crate) id: String,
    pub(crate) model: String,
    pub(crate) path: &'static str,
    pub(crate) engine: String,
    pub(crate) rank: u32,
    pub(crate) policy: &'static str,
    /// What its blocks were cut from: `tokens` or `text`.
    pub(crate) key: &'static str,
    pub(crate) source: Origin,
    /// Whether the prediction can be right to the block.
    pub(crate) exact: bool,
    pub(crate) prompt_tokens: u32,
    pub(crate) overlap_tokens: u32,
    /// As the engine reported them.
    pub(crate) cached_tokens: Option<u64>,
    pub(crate) cost: f32,
    pub(crate) runner_up: Option<Elsewhere>,
    /// What the shadow policy would have chosen; its cost is what it saves.
    pub(crate) shadow: Option<Elsewhere>,
    pub(crate) candidates: u32,
    pub(crate) attempts: u32,
    pub(crate) ttft_ms: Option<f64>,
    pub(crate) total_ms: f64,
    pub(crate) status: u16,
}

/// A rank that was not chosen.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Elsewhere {
    pub(crate) engine: String,
    pub(crate) rank: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cost: Option<f32>,
    /// How much cheaper it seemed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gain: Option<f32>,
}

impl Decisions {
    /// Room for `kept` decisions; 0 keeps none.
    pub(crate) fn new(kept: usize) -> Decisions {
        Decisions { latest: Mutex::default(), kept }
    }

    /// Whether any are kept.
    pub(crate) fn are_kept(&self) -> bool {
        self.kept > 0
    }

    /// Keeps one, and drops the oldest where there is no room.
    pub(crate) fn keep(&self, decision: Decision) {
        let mut latest = self.latest.lock();
        if latest.len() >= self.kept {
            latest.pop_front();
        }
        latest.push_back(decision);
    }

    /// The latest `limit`, the newest first.
    pub(crate) fn latest(&self, limit: usize) -> Vec<Decision> {
        self.latest.lock().iter().rev().take(limit).cloned().collect()
    }
}
