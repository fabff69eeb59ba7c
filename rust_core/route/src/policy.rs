//! The named ways to choose among the engines that can take a request.

use std::str::FromStr;

use fastrand::Rng;
use xxhash_rust::xxh3::xxh3_64;

use crate::candidate::Candidate;
use crate::{Error, pick};

/// The policies' names, the default first.
pub const POLICIES: [&str; ALL.len()] = {
    let mut names = [""; ALL.len()];
    let mut at = 0;
    while at < ALL.len() {
        names[at] = ALL[at].name();
        at += 1;
    }
    names
};

/// How an engine is chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Policy {
    /// The lowest price of overlap and load.
    Kv,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The lowest price of load alone.
    LeastLoaded,
    /// The less loaded of two at random.
    PowerOfTwo,
    /// Always the same for one session while the fleet stays (rendezvous hashing); without a session, as least loaded.
    Session,
}

const ALL: [Policy; 6] = [
    Policy::Kv,
    Policy::RoundRobin,
    Policy::Random,
    Policy::LeastLoaded,
    Policy::PowerOfTwo,
    Policy::Session,
];

impl Policy {
    /// Its name, as settings write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Policy::Kv => "kv",
            Policy::RoundRobin => "round_robin",
            Policy::Random => "random",
            Policy::LeastLoaded => "least_loaded",
            Policy::PowerOfTwo => "power_of_two",
            Policy::Session => "session",
        }
    }

    /// Whether the choice depends on what the ranks hold.
    pub(crate) fn reads_tree(self) -> bool {
        self == Policy::Kv
    }

    /// The index of the chosen candidate; `None` only if there is none.
    pub(crate) fn choose(
        self,
        candidates: &[Candidate<'_>],
        session: Option<&str>,
        rng: &mut Rng,
    ) -> Option<usize> {
        let prices = || candidates.iter().map(|candidate| candidate.terms.total);
        let loads = || candidates.iter().map(|candidate| candidate.terms.load());
        match self {
            _ if candidates.is_empty() => None,
            Policy::Kv => pick::lowest(prices(), rng),
            Policy::LeastLoaded => pick::lowest(loads(), rng),
            // The one that waited longest: fair also where requests are tried again or models share engines.
            Policy::RoundRobin => (0..candidates.len()).min_by_key(|&index| candidates[index].turn),
            Policy::Random => Some(rng.usize(..candidates.len())),
            Policy::PowerOfTwo => Some(less_loaded_of_two(candidates, rng)),
            Policy::Session => match session {
                Some(session) => rendezvous(candidates, session),
                None => pick::lowest(loads(), rng),
            },
        }
    }
}

fn less_loaded_of_two(candidates: &[Candidate<'_>], rng: &mut Rng) -> usize {
    let first = rng.usize(..candidates.len());
    if candidates.len() == 1 {
        return first;
    }
    // Another one: drawn from the rest, shifted past the first.
    let second = (first + 1 + rng.usize(..candidates.len() - 1)) % candidates.len();
    if candidates[second].terms.load() < candidates[first].terms.load() { second } else { first }
}

/// Highest random weight (Thaler and Ravishankar, 1998): an engine that comes or goes moves only its own sessions.
fn rendezvous(candidates: &[Candidate<'_>], session: &str) -> Option<usize> {
    let weight = |candidate: &Candidate<'_>| {
        let mut key = Vec::with_capacity(session.len() + candidate.engine.spec().name.len() + 5);
        key.extend_from_slice(session.as_bytes());
        key.push(0);
        key.extend_from_slice(candidate.engine.spec().name.as_bytes());
        key.extend_from_slice(&candidate.rank_index.to_le_bytes());
        xxh3_64(&key)
    };
    (0..candidates.len()).max_by_key(|&index| weight(&candidates[index]))
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(name: &str) -> Result<Policy, Error> {
        ALL.into_iter().find(|policy| policy.name() == name).ok_or_else(|| unknown(name))
    }
}

fn unknown(name: &str) -> Error {
    let mut nearest = POLICIES;
    nearest.sort_by_key(|known| strsim::damerau_levenshtein(known, name));
    Error::UnknownPolicy { name: name.to_owned(), nearest: nearest[0], known: POLICIES.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_policy_and_an_unknown_one_is_refused_with_the_nearest() {
        for name in POLICIES {
            assert_eq!(name.parse::<Policy>().map(Policy::name), Ok(name));
        }
        let error = "round-robin".parse::<Policy>().unwrap_err();
        assert!(matches!(error, Error::UnknownPolicy { nearest: "round_robin", .. }), "{error}");
    }
}
