//! The exact claims: what an engine says of its own cache.

use std::ops::Range;

use super::grow::{At, Run};
use super::names::{Names, Place, Pool};
use super::node::NONE;
use super::{Applied, Tree};
use crate::RankId;
use crate::block::link;
use crate::event::{Event, Tier};

/// The names and own hashes of consecutive blocks, and what stands before them.
struct Stored<'a> {
    names: &'a [u64],
    locals: &'a [u64],
    parent: Option<u64>,
    seed: u64,
}

impl Tree {
    /// Applies what `rank` says of its GPU's memory: [`Tree::apply_tier`] with [`Tier::Gpu`].
    pub fn apply(&mut self, rank: RankId, event: &Event) -> Applied {
        self.apply_tier(rank, Tier::Gpu, event)
    }

    /// Applies what `rank` says of one tier of its cache. `Stored` and `Removed` are about that tier alone, `Cleared`
    /// is about all of them.
    ///
    /// A block is held while either claim to it stands: the exact one, from `Stored` to `Removed`, or a routed one,
    /// until its time is up. `Removed` is the engine's own word, so it ends both; so does `Cleared`, for every block.
    /// What is routed after it counts again. A route is a claim to GPU memory, which no other tier's `Removed` ends.
    ///
    /// Each name stands for one block of a tier: a second name for a held block is not learned, and a name that comes
    /// again for another block leaves the first one, as if that had been removed. A parent may be a block that only
    /// another tier of the rank knows by that name: engines offload what comes after it.
    ///
    /// Blocks that move are told by name alone, and are those that the rank's other tiers know so, the best tier first.
    /// A name that only this tier knows is no news; one that no tier knows is an orphan.
    ///
    /// # Cost
    /// O(blocks of the event); `Cleared` as [`Tree::remove_rank`].
    pub fn apply_tier(&mut self, rank: RankId, tier: Tier, event: &Event) -> Applied {
        self.apply_part(Pool { rank: rank.0, tier }, event, 0..event.blocks())
    }

    /// Applies some consecutive blocks of an event, behind those before them.
    pub(super) fn apply_part(&mut self, pool: Pool, event: &Event, part: Range<usize>) -> Applied {
        let names_before = self.names.get(&pool).map_or(0, Names::bytes);
        let applied = match event {
            Event::Stored { engine_hashes, locals, .. } if locals.is_empty() => {
                self.take_up(pool, &engine_hashes[part])
            }
            Event::Stored { engine_hashes, parent, seed, locals } => {
                let before = part.start.checked_sub(1).map(|before| engine_hashes[before]);
                let (names, locals) = (&engine_hashes[part.clone()], &locals[part]);
                let parent = before.or(*parent);
                self.store(pool, &Stored { names, locals, parent, seed: *seed })
            }
            Event::Removed { engine_hashes } => self.unstore(pool, &engine_hashes[part]),
            Event::Cleared => {
                let pools = Pool::all(pool.rank).filter_map(|pool| self.names.get(&pool));
                let removed = pools.map(|names| names.len() as u64).sum();
                self.remove_rank(RankId(pool.rank));
                return Applied { removed, ..Applied::default() };
            }
        };
        let names_now = self.names.get(&pool).map_or(0, Names::bytes);
        self.names_bytes = self.names_bytes + names_now - names_before;
        self.orphans += applied.orphans;
        self.evict();
        applied
    }

    fn store(&mut self, pool: Pool, event: &Stored) -> Applied {
        let mut applied = Applied::default();
        let blocks = event.names.len() as u64;
        if self.bytes() > self.max_bytes {
            applied.refused = blocks;
            return applied;
        }
        let Some((mut at, before)) = self.parent(pool, event) else {
            applied.orphans = blocks;
            return applied;
        };
        let mut chain = std::mem::take(&mut self.chain);
        chain.clear();
        chain.extend(event.locals.iter().scan(before, |last, local| {
            *last = link(*last, *local);
            Some(*last)
        }));
        if self.names.get(&pool).is_some_and(|table| table.knows_any(event.names)) {
            for (name, hash) in event.names.iter().zip(&chain) {
                applied.removed += self.free(pool, *name, *hash);
            }
            // The parent may have been among the blocks that lost their name, or is elsewhere now. Another tier's word
            // for it is as good, but not for another block.
            match self.parent(pool, event) {
                Some((parent, hash)) if hash == before => at = parent,
                _ => applied.orphans = blocks,
            }
        }
        if applied.orphans == 0 {
            applied.stored = self.insert(pool, at, event.names, &chain);
        }
        self.chain = chain;
        applied
    }

    /// Claims `chain` behind `at`; gives how many blocks the pool did not hold exactly before.
    fn insert(&mut self, pool: Pool, mut at: At, mut names: &[u64], mut chain: &[u64]) -> u64 {
        let mut stored = 0;
        while !chain.is_empty() {
            let run = self.reach(at, chain);
            let (held, new) = self.hold(pool, run, names.iter().copied());
            stored += u64::from(new);
            if held.len() < run.len() {
                // One name twice in one event: what follows is not believed.
                self.trim(held.node);
                return stored;
            }
            at = held.end();
            names = &names[run.len() as usize..];
            chain = &chain[run.len() as usize..];
        }
        stored
    }

    /// Claims the blocks that the rank's other tiers know by these names.
    fn take_up(&mut self, pool: Pool, names: &[u64]) -> Applied {
        let mut applied = Applied::default();
        if self.bytes() > self.max_bytes {
            applied.refused = names.len() as u64;
            return applied;
        }
        if self.names.get(&pool).is_some_and(|table| table.knows_any(names)) {
            for name in names {
                if let Some(block) = self.elsewhere(pool, *name) {
                    applied.removed += self.free(pool, *name, self.hash(block));
                }
            }
        }
        let mut blocks = Vec::with_capacity(names.len());
        for name in names {
            match self.elsewhere(pool, *name) {
                Some(block) => blocks.push((block, *name)),
                None => applied.orphans += u64::from(self.find(pool, *name).is_none()),
            }
        }
        // Engines move neighbours in either direction: what is adjacent is claimed in one step. Of two names for one
        // block the first counts.
        let place = |(block, _): &(Run, u64)| (block.node, block.from);
        blocks.sort_by_key(place);
        blocks.dedup_by_key(|block| place(block));
        // From the end: what is before a cut stays where it was found.
        for blocks in blocks.chunk_by(|(one, _), (next, _)| one.joined(*next).is_some()).rev() {
            let runs = blocks.iter().map(|(block, _)| *block);
            let Some(run) = runs.reduce(|run, next| Run { to: next.to, ..run }) else { continue };
            let (_, new) = self.hold(pool, run, blocks.iter().map(|(_, name)| *name));
            applied.stored += u64::from(new);
        }
        applied
    }

    /// Claims a run under these names; gives what the pool holds of it now, and how many blocks are new there. It ends
    /// before a block whose name stands for another one.
    fn hold(&mut self, pool: Pool, mut run: Run, names: impl Iterator<Item = u64>) -> (Run, u32) {
        if self.arena[run.node].exact(pool) < run.from {
            // Another tier's block: what is before the run is not in this pool, so the run opens an edge.
            let tail = self.split(run.node, run.from);
            run = Run { node: tail, from: 0, to: run.len() };
        }
        let node = &self.arena[run.node];
        let start = node.start;
        let known = node.exact(pool).max(run.from);
        let mut exact = known;
        let table = self.names.entry(pool).or_default();
        for (at, name) in (known..run.to).zip(names.skip((known - run.from) as usize)) {
            if !table.insert(name, Place { node: run.node, depth: start + at }) {
                break;
            }
            exact = at + 1;
        }
        if exact > known {
            self.arena.edit(run.node, |node| node.set_exact(pool, exact));
        }
        (Run { to: exact.min(run.to), ..run }, exact - known)
    }

    /// Frees a name for a block; gives how many others lost it.
    fn free(&mut self, pool: Pool, name: u64, hash: u64) -> u64 {
        let other = self.find(pool, name).is_some_and(|block| self.hash(block) != hash);
        if other { self.unstore(pool, &[name]).removed } else { 0 }
    }

    fn unstore(&mut self, pool: Pool, names: &[u64]) -> Applied {
        let mut applied = Applied::default();
        let mut places = std::mem::take(&mut self.places);
        if let Some(table) = self.names.get_mut(&pool) {
            table.take(names, &mut places);
        }
        let mut run: Option<Run> = None;
        for place in &places {
            // Engines evict neighbours one after the other: what is adjacent goes in one step.
            let block = self.locate(*place);
            let joined = run.and_then(|run| run.joined(block?));
            if joined.is_none()
                && let Some(run) = run
            {
                self.release(pool, run);
            }
            run = joined.or_else(|| self.locate(*place));
        }
        if let Some(run) = run {
            self.release(pool, run);
        }
        applied.removed = places.len() as u64;
        applied.unknown_removed = (names.len() - places.len()) as u64;
        places.clear();
        self.places = places;
        applied
    }

    /// Ends every claim of a pool to some blocks. What it holds behind them it keeps, in a node of its own.
    fn release(&mut self, pool: Pool, blocks: Run) {
        let Run { node: id, from, to } = blocks;
        if pool.tier != Tier::Gpu {
            if self.arena[id].exact(pool) > to {
                self.split(id, to);
            }
            self.arena.edit(id, |node| node.set_exact(pool, from));
            return self.loosen(id);
        }
        let (rank, now) = (pool.rank, self.now);
        if self.arena[id].holder(rank).is_some_and(|holder| holder.held(now) > to) {
            self.split(id, to);
        }
        let limits = &mut self.limits;
        self.arena.edit(id, |node| {
            let holder = node.holder_mut(rank);
            let routed = holder.routed;
            holder.cut(from);
            limits.change(rank, id, routed, holder.routed);
            node.holders.retain(|holder| holder.span() > 0);
        });
        self.loosen(id);
    }

    /// Where the event's first block goes, and the hash before it; `None` for an orphan.
    fn parent(&self, pool: Pool, event: &Stored) -> Option<(At, u64)> {
        let Some(parent) = event.parent else {
            return Some((At::ROOT, event.seed));
        };
        let block = self.find(pool, parent).or_else(|| self.elsewhere(pool, parent))?;
        Some((block.end(), self.hash(block)))
    }

    /// The block that the rank's other tiers call `name`, by the best one that knows it.
    fn elsewhere(&self, pool: Pool, name: u64) -> Option<Run> {
        let mut others = Pool::all(pool.rank).filter(|other| *other != pool);
        others.find_map(|other| self.find(other, name))
    }

    /// The block that is called `name` in a pool.
    ///
    /// # Cost
    /// As [`Tree::locate`].
    pub(super) fn find(&self, pool: Pool, name: u64) -> Option<Run> {
        self.locate(self.names.get(&pool)?.place(name)?)
    }

    /// Where a block is that was stored at `place`.
    ///
    /// # Cost
    /// O(1 + splits of its node since the block was stored).
    fn locate(&self, place: Place) -> Option<Run> {
        let mut id = place.node;
        loop {
            let node = self.arena.node(id)?;
            if place.depth < node.end() {
                let from = place.depth.checked_sub(node.start)?;
                return Some(Run { node: id, from, to: from + 1 });
            }
            id = if node.tail == NONE { return None } else { node.tail };
        }
    }

    fn hash(&self, block: Run) -> u64 {
        self.arena[block.node].edge[block.from as usize]
    }
}

#[cfg(test)]
mod tests;
