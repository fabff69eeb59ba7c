//! How a rule is asked, and what it is told.

use nebula_route::event::Event;
use nebula_route::{Chain, POLICIES, Policy};

use super::affinity::Affinity;
use super::blocks::Blocks;
use super::host::Host;
use super::oracle::Oracle;
use super::production::Production;
use super::queueing::Queueing;
use super::scores::Scores;
use super::{FleetConfig, FleetError};
use crate::timing::Nanos;

/// The model that all engines serve.
pub(super) const MODEL: &str = "m";

/// The rules by name: the router's own, then those of others.
pub const SIM_POLICIES: [&str; POLICIES.len() + OTHERS.len()] = {
    let mut all = [""; POLICIES.len() + OTHERS.len()];
    let mut i = 0;
    while i < all.len() {
        all[i] = if i < POLICIES.len() { POLICIES[i] } else { OTHERS[i - POLICIES.len()] };
        i += 1;
    }
    all
};

const OTHERS: [&str; 5] = ["cache_aware", "dynamo", "smg_least_load", "llm_d", "oracle"];

/// One request, as a rule sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    /// Names the request in what the rule is told later; counted from 0.
    pub(super) id: usize,
    pub(super) chain: &'a Chain,
    pub(super) tokens: &'a [u32],
    /// Names the conversation.
    pub(super) session: u64,
}

/// A choice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chosen {
    pub(super) host: usize,
    /// Prompt tokens that the rule believes to be cached there.
    pub(super) predicted: u32,
}

/// Chooses an engine for each request.
pub(super) trait Rule: Send {
    /// The engine for a request.
    fn choose(&mut self, ask: &Ask<'_>, hosts: &[Host], now: Nanos) -> Result<Chosen, FleetError>;

    /// Whether it listens to what the engines say of their caches.
    fn wants_events(&self) -> bool {
        false
    }

    /// The first token of a request is there.
    fn answered(&mut self, _id: usize, _now: Nanos) {}

    /// A request is done.
    fn ended(&mut self, _id: usize) {}

    /// What happened to a cache.
    fn told(&mut self, _host: usize, _events: &[Event]) {}

    /// About a second has passed.
    fn tick(&mut self, _hosts: &[Host], _now: Nanos) {}
}

/// Whether there is such a rule.
#[must_use]
pub fn is_policy(name: &str) -> bool {
    SIM_POLICIES.contains(&name)
}

/// The rule that the configuration names.
pub(super) fn of(config: &FleetConfig) -> Result<Box<dyn Rule>, FleetError> {
    Ok(match config.policy.as_str() {
        "cache_aware" => Box::new(Affinity::new(config)),
        "dynamo" => Box::new(Blocks::new(config)),
        "smg_least_load" => Box::new(Queueing::new(config)),
        "llm_d" => Box::new(Scores::new(config)),
        "oracle" => Box::new(Oracle::new(config)),
        own if own.parse::<Policy>().is_ok() => Box::new(Production::new(config)?),
        other => {
            let known = SIM_POLICIES.join(", ");
            let reason = format!("`{other}` does not exist; known: {known}");
            return Err(FleetError::Setting { field: "policy", reason });
        }
    })
}
