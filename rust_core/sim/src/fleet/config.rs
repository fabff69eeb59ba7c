//! What is simulated. Every default lives with the caller; a missing or unknown field is refused.

use nebula_route::{KeyKind, Scope};
use serde::{Deserialize, Serialize};

use super::rule;
use crate::workload::{Workload, WorkloadError};
use crate::{EngineConfig, Error};

/// A fleet of equal engines, the rule that chooses among them, and how fast its users live.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetConfig {
    /// Each engine.
    pub engine: EngineConfig,
    /// How many there are.
    pub engines: u32,
    /// The rule by name, one of [`super::SIM_POLICIES`].
    pub policy: String,
    /// The router's settings, for the rules that are the router's own.
    pub route: nebula_route::Config,
    /// Seed of all that is left to chance.
    pub seed: u64,
    /// How many times faster than written the users live.
    pub speed: f64,
    /// How the engines' events reach the rule; none if they do not, and the index knows only what was routed.
    pub events: Option<Delivery>,
    /// What a good request is.
    pub slo: Slo,
}

/// How events travel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delivery {
    /// Milliseconds from the end of a step to the rule.
    pub delay_ms: f64,
    /// Share of the batches that never arrive, 0 to 1.
    pub loss: f64,
}

/// What a good request is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slo {
    /// Longest time to the first token.
    pub ttft_ms: f64,
    /// Longest mean time between two tokens.
    pub itl_ms: f64,
}

/// Why a fleet cannot be simulated.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The document of settings.
    #[error("settings of a simulation: {0}")]
    Document(#[from] serde_json::Error),
    /// The engine's settings.
    #[error(transparent)]
    Engine(#[from] Error),
    /// A setting of the fleet.
    #[error("{field} {reason}")]
    Setting {
        /// Its name.
        field: &'static str,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// The longest request is one that no engine could hold.
    #[error(
        "request {request} of the workload has {tokens} tokens of prompt and reply, an engine takes {most}: raise max_model_len, and kv_blocks if needed"
    )]
    TooLong {
        /// Its place in the workload, the first is 1.
        request: usize,
        /// Its tokens.
        tokens: u64,
        /// `max_model_len`.
        most: u32,
    },
    /// The workload.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// The router refused.
    #[error(transparent)]
    Rule(#[from] nebula_route::Error),
}

// === impl FleetConfig ===

impl FleetConfig {
    /// What the prompts' blocks are cut by: one model, no salt, the engines' own block size.
    pub(super) fn scope(&self) -> Scope<'static> {
        Scope {
            model: rule::MODEL,
            cache_salt: None,
            block: self.engine.block_size,
            kind: KeyKind::Tokens,
        }
    }

    pub(super) fn check(&self) -> Result<(), FleetError> {
        let refuse =
            |field, reason: &str| Err(FleetError::Setting { field, reason: reason.to_owned() });
        self.engine.check()?;
        if !(1..=100_000).contains(&self.engines) {
            return refuse("engines", "must be 1 to 100000");
        }
        if let Some(Delivery { delay_ms, loss }) = self.events {
            if !(0.0..=1e9).contains(&delay_ms) {
                return refuse("events.delay_ms", "must be 0 to 1000000000");
            }
            if !(0.0..=1.0).contains(&loss) {
                return refuse("events.loss", "must be a share, 0 to 1");
            }
        }
        Ok(())
    }

    pub(super) fn check_fits(&self, workload: &Workload) -> Result<(), FleetError> {
        let most = self.engine.max_model_len;
        let mut request = 0;
        let mut longest = (0, 0);
        for session in &workload.sessions {
            let mut tokens = 0;
            for turn in &session.turns {
                request += 1;
                tokens += turn.token_count() + u64::from(turn.output_tokens);
                if turn.token_count() == 0 && tokens == u64::from(turn.output_tokens) {
                    let reason = format!("is empty: request {request} has no prompt");
                    return Err(FleetError::Setting { field: "workload", reason });
                }
                if tokens > longest.1 {
                    longest = (request, tokens);
                }
            }
        }
        match longest {
            (request, tokens) if tokens > u64::from(most) => {
                Err(FleetError::TooLong { request, tokens, most })
            }
            _ => Ok(()),
        }
    }
}
