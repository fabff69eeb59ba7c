//! What a tree must say: per rank, sets of chain hashes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use nebula_route::tree::Applied;
use nebula_route::{Event, Millis, Overlap, RankId, Tier};

use crate::{Step, chain};

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub now: Millis,
    /// Every chain that was ever named, to ask for.
    pub chains: BTreeSet<Vec<u64>>,
    ranks: BTreeMap<u32, Held>,
    limits: BTreeMap<u32, u64>,
    notes: u64,
}

#[derive(Clone, Debug, Default)]
struct Held {
    pools: BTreeMap<Tier, Pool>,
    routed: HashMap<u64, Routed>,
}

/// One tier: the engine's names, and the blocks that they stand for.
#[derive(Clone, Debug, Default)]
struct Pool {
    names: HashMap<u64, u64>,
    exact: HashSet<u64>,
}

#[derive(Clone, Debug)]
struct Routed {
    until: Millis,
    /// The latest note, and of one note the last block is used first.
    used: (u64, Reverse<usize>),
}

// === impl Model ===

impl Model {
    pub fn step(&mut self, step: &Step) -> Applied {
        match step {
            Step::Note { rank, chain, until } => self.note(*rank, chain, *until),
            Step::Apply { rank, tier, event } => return self.apply(*rank, *tier, event),
            Step::RemoveRanks(ranks) => {
                self.ranks.retain(|rank, _| !ranks.contains(rank));
            }
            Step::Expire(now) => {
                self.now = self.now.max(*now);
                for held in self.ranks.values_mut() {
                    held.routed.retain(|_, routed| routed.until > self.now);
                }
            }
            Step::Limit { rank, blocks } => {
                self.limits.insert(*rank, *blocks);
                self.recede(*rank);
            }
        }
        Applied::default()
    }

    fn note(&mut self, rank: u32, chain: &[u64], until: Millis) {
        self.chains.insert(chain.to_vec());
        if until <= self.now {
            return;
        }
        self.notes += 1;
        let routed = |depth| Routed { until, used: (self.notes, Reverse(depth)) };
        let blocks = chain.iter().enumerate().map(|(depth, hash)| (*hash, routed(depth)));
        self.ranks.entry(rank).or_default().routed.extend(blocks);
        self.recede(rank);
    }

    /// One by one, the least recently used first, as an engine evicts.
    fn recede(&mut self, rank: u32) {
        let (Some(limit), Some(held)) = (self.limits.get(&rank), self.ranks.get_mut(&rank)) else {
            return;
        };
        let oldest = |held: &Held| {
            let oldest = held.routed.iter().min_by_key(|(_, routed)| routed.used);
            oldest.map(|(hash, _)| *hash)
        };
        while held.routed.len() as u64 > *limit
            && let Some(hash) = oldest(held)
        {
            held.routed.remove(&hash);
        }
    }

    fn apply(&mut self, rank: u32, tier: Tier, event: &Event) -> Applied {
        let mut applied = Applied::default();
        let held = self.ranks.entry(rank).or_default();
        match event {
            Event::Stored { engine_hashes, locals, .. } if locals.is_empty() => {
                return held.take_up(tier, engine_hashes);
            }
            Event::Stored { engine_hashes, parent, seed, locals } => {
                let before =
                    |held: &Held| parent.map_or(Some(*seed), |parent| held.block(tier, parent));
                let blocks = engine_hashes.len().min(locals.len());
                let Some(first) = before(held) else {
                    return Applied { orphans: blocks as u64, ..applied };
                };
                let chain = chain(first, &locals[..blocks]);
                for (name, hash) in engine_hashes.iter().zip(&chain) {
                    let known = held.pools.get(&tier).and_then(|pool| pool.names.get(name));
                    if known.is_some_and(|block| block != hash) {
                        applied.removed += u64::from(held.forget(tier, *name));
                    }
                }
                if before(held) != Some(first) {
                    return Applied { orphans: blocks as u64, ..applied };
                }
                applied.stored = held.pools.entry(tier).or_default().store(engine_hashes, &chain);
                if parent.is_none() {
                    self.chains.insert(chain);
                }
            }
            Event::Removed { engine_hashes } => {
                for name in engine_hashes {
                    let known = held.forget(tier, *name);
                    applied.removed += u64::from(known);
                    applied.unknown_removed += u64::from(!known);
                }
            }
            Event::Cleared => {
                applied.removed = held.pools.values().map(|pool| pool.names.len() as u64).sum();
                *held = Held::default();
            }
        }
        applied
    }

    pub fn matches(&self, chain: &[u64]) -> Vec<(RankId, u32)> {
        let blocks = |held: &Held| {
            let blocks = chain.iter().take_while(|hash| held.tier(**hash) == Some(Tier::Gpu));
            u32::try_from(blocks.count()).unwrap_or(u32::MAX)
        };
        let all = self.ranks.iter().map(|(rank, held)| (RankId(*rank), blocks(held)));
        all.filter(|(_, blocks)| *blocks > 0).collect()
    }

    pub fn overlaps(&self, chain: &[u64]) -> Vec<(RankId, Overlap)> {
        let all = self.ranks.iter().map(|(rank, held)| (RankId(*rank), held.overlap(chain)));
        all.filter(|(_, overlap)| overlap.total() > 0).collect()
    }

    /// (block, rank) pairs held in GPU memory.
    pub fn blocks(&self) -> usize {
        let none = Pool::default();
        let all = |held: &Held| {
            let exact = &held.pools.get(&Tier::Gpu).unwrap_or(&none).exact;
            exact.iter().chain(held.routed.keys()).collect::<HashSet<_>>().len()
        };
        self.ranks.values().map(all).sum()
    }

    /// The same below it, one for each tier.
    pub fn offloaded(&self) -> usize {
        let pools = self.ranks.values().flat_map(|held| &held.pools);
        pools.filter(|(tier, _)| **tier != Tier::Gpu).map(|(_, pool)| pool.exact.len()).sum()
    }

    /// Blocks that a rank holds exactly, in whatever tier.
    pub fn named(&self, rank: u32) -> usize {
        Tier::ALL.into_iter().map(|tier| self.names(rank, tier).len()).sum()
    }

    pub fn is_limited(&self, rank: u32) -> bool {
        self.limits.contains_key(&rank)
    }

    pub fn names(&self, rank: u32, tier: Tier) -> Vec<u64> {
        let pool = self.ranks.get(&rank).and_then(|held| held.pools.get(&tier));
        let mut names: Vec<u64> =
            pool.into_iter().flat_map(|pool| pool.names.keys().copied()).collect();
        names.sort_unstable();
        names
    }
}

// === impl Held ===

impl Held {
    /// The best tier that holds a block.
    fn tier(&self, hash: u64) -> Option<Tier> {
        if self.routed.contains_key(&hash) {
            return Some(Tier::Gpu);
        }
        // Sorted, the best first.
        let mut pools = self.pools.iter();
        pools.find(|(_, pool)| pool.exact.contains(&hash)).map(|(tier, _)| *tier)
    }

    fn overlap(&self, chain: &[u64]) -> Overlap {
        let mut overlap = Overlap::default();
        for tier in chain.iter().map_while(|hash| self.tier(*hash)) {
            match tier {
                Tier::Gpu => overlap.gpu += 1,
                Tier::Cpu => overlap.cpu += 1,
                Tier::Storage => overlap.storage += 1,
            }
        }
        overlap
    }

    /// The block of a name: in this tier, else in the best one that knows it.
    fn block(&self, tier: Tier, name: u64) -> Option<u64> {
        let named = |tier: Tier| self.pools.get(&tier)?.names.get(&name).copied();
        named(tier).or_else(|| Tier::ALL.into_iter().find_map(named))
    }

    /// The blocks that other tiers know by these names are in this one too.
    fn take_up(&mut self, tier: Tier, names: &[u64]) -> Applied {
        let mut applied = Applied::default();
        let others = || Tier::ALL.into_iter().filter(|other| *other != tier);
        let known = |held: &Held, tier, name| held.pools.get(&tier)?.names.get(&name).copied();
        let elsewhere = |held: &Held, name| others().find_map(|other| known(held, other, name));
        for name in names {
            let (here, there) = (known(self, tier, *name), elsewhere(self, *name));
            if there.is_some() && here.is_some() && here != there {
                applied.removed += u64::from(self.forget(tier, *name));
            }
            applied.orphans += u64::from(here.is_none() && there.is_none());
        }
        for name in names {
            if let Some(hash) = elsewhere(self, *name) {
                applied.stored += self.pools.entry(tier).or_default().store(&[*name], &[hash]);
            }
        }
        applied
    }

    fn forget(&mut self, tier: Tier, name: u64) -> bool {
        let pool = self.pools.entry(tier).or_default();
        let Some(hash) = pool.names.remove(&name) else { return false };
        pool.exact.remove(&hash);
        if tier == Tier::Gpu {
            self.routed.remove(&hash);
        }
        true
    }
}

// === impl Pool ===

impl Pool {
    fn store(&mut self, names: &[u64], chain: &[u64]) -> u64 {
        let mut stored = 0;
        for (name, hash) in names.iter().zip(chain) {
            if self.exact.contains(hash) {
                continue;
            }
            if self.names.contains_key(name) {
                break;
            }
            self.names.insert(*name, *hash);
            self.exact.insert(*hash);
            stored += 1;
        }
        stored
    }
}
