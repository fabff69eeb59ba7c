//! A decision with all its terms, and nothing booked.

use serde::Serialize;

use crate::candidate::Candidate;
use crate::router::runner_up;
use crate::{Cached, Error, KeySpec, Load, Millis, Query, Router, Status, Terms};

/// What [`Router::route`] would choose, and why.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// The model asked for.
    pub model: String,
    /// The policy that chooses.
    pub policy: &'static str,
    /// Prompt tokens as the chosen engine counts them.
    pub prompt_tokens: u32,
    /// Every rank that could take the request, the cheapest first.
    pub ranks: Vec<Explained>,
    /// What is chosen.
    pub choice: Option<Place>,
    /// What the shadow policy would choose; `None` without one.
    pub shadow: Option<Shadow>,
}

/// One rank and its price.
#[derive(Debug, Serialize)]
pub struct Explained {
    #[serde(flatten)]
    place: Place,
    status: Status,
    chosen: bool,
    runner_up: bool,
    key: Option<KeySpec>,
    block_tokens: f32,
    blocks: usize,
    overlap: Cached,
    credit: f32,
    load: Load,
    terms: Terms,
}

/// A rank by name.
#[derive(Debug, Serialize)]
pub struct Place {
    /// The engine's name.
    pub engine: String,
    /// The rank within it.
    pub rank: u32,
}

/// What another policy would choose.
#[derive(Debug, Serialize)]
pub struct Shadow {
    policy: &'static str,
    #[serde(flatten)]
    place: Place,
}

impl Router {
    /// What would be chosen now. Nothing is booked or noted; where the choice is a random one, the next may differ.
    ///
    /// # Errors
    /// As [`Router::route`].
    pub fn explain(&self, query: &Query<'_>, now: Millis) -> Result<Explanation, Error> {
        let fleet = self.fleet();
        let candidates = self.priced(&fleet, query, now)?;
        // The choices of requests stay what they are, whoever looks on.
        let mut rng = self.rng.lock().clone();
        let chosen = self.policy().choose(&candidates, query.session, &mut rng);
        let next = chosen.and_then(|chosen| runner_up(&candidates, chosen));
        let shadow = self.shadow.and_then(|policy| {
            let at = policy.choose(&candidates, query.session, &mut rng)?;
            Some(Shadow { policy: policy.name(), place: Place::of(&candidates[at]) })
        });
        let mut ranks: Vec<Explained> = (0..candidates.len())
            .map(|at| Explained::of(&candidates[at], chosen == Some(at), next == Some(at)))
            .collect();
        ranks.sort_by(|a, b| a.terms.total.total_cmp(&b.terms.total));
        let chain = chosen.map_or(query.chain, |at| candidates[at].chain);
        Ok(Explanation {
            model: query.model.to_owned(),
            policy: self.policy().name(),
            prompt_tokens: chain.prompt_tokens(),
            ranks,
            choice: chosen.map(|at| Place::of(&candidates[at])),
            shadow,
        })
    }
}

impl Explained {
    fn of(candidate: &Candidate<'_>, chosen: bool, runner_up: bool) -> Explained {
        Explained {
            place: Place::of(candidate),
            status: candidate.engine.status(),
            chosen,
            runner_up,
            key: candidate.engine.intake().map(|intake| intake.key),
            block_tokens: candidate.chain.tokens_per_block(),
            blocks: candidate.chain.hashes().len(),
            overlap: candidate.cached,
            credit: candidate.credit,
            load: candidate.load,
            terms: candidate.terms,
        }
    }
}

impl Place {
    fn of(candidate: &Candidate<'_>) -> Place {
        Place { engine: candidate.engine.spec().name.clone(), rank: candidate.rank_index }
    }
}
