//! The exact claims: what an engine says of its own cache.

use std::ops::Range;

use super::grow::{At, Run};
use super::names::{Names, Place};
use super::node::NONE;
use super::{Applied, Tree};
use crate::RankId;
use crate::block::link;
use crate::event::Event;

/// The names and own hashes of consecutive blocks, and what stands before them.
struct Stored<'a> {
    names: &'a [u64],
    locals: &'a [u64],
    parent: Option<u64>,
    seed: u64,
}

impl Tree {
    /// Applies what `rank` says of its cache.
    ///
    /// A block is held while either claim to it stands: the exact one, from `Stored` to `Removed`, or a routed one,
    /// until its time is up. `Removed` is the engine's own word, so it ends both; so does `Cleared`, for every block.
    /// What is routed after it counts again.
    ///
    /// Each name stands for one block: a second name for a held block is not learned, and a name that comes again for
    /// another block leaves the first one, as if that had been removed.
    ///
    /// # Cost
    /// O(blocks of the event); `Cleared` as [`Tree::remove_rank`].
    pub fn apply(&mut self, rank: RankId, event: &Event) -> Applied {
        self.apply_part(rank, event, 0..event.blocks())
    }

    /// Applies some consecutive blocks of an event, behind those before them.
    pub(super) fn apply_part(
        &mut self,
        rank: RankId,
        event: &Event,
        part: Range<usize>,
    ) -> Applied {
        let names_before = self.names.get(&rank.0).map_or(0, Names::bytes);
        let applied = match event {
            Event::Stored { engine_hashes, parent, seed, locals } => {
                let before = part.start.checked_sub(1).map(|before| engine_hashes[before]);
                let (names, locals) = (&engine_hashes[part.clone()], &locals[part]);
                let parent = before.or(*parent);
                self.store(rank.0, &Stored { names, locals, parent, seed: *seed })
            }
            Event::Removed { engine_hashes } => self.unstore(rank.0, &engine_hashes[part]),
            Event::Cleared => {
                let removed = self.names.get(&rank.0).map_or(0, |names| names.len() as u64);
                self.remove_rank(rank);
                return Applied { removed, ..Applied::default() };
            }
        };
        let names_now = self.names.get(&rank.0).map_or(0, Names::bytes);
        self.names_bytes = self.names_bytes + names_now - names_before;
        self.orphans += applied.orphans;
        self.evict();
        applied
    }

    fn store(&mut self, rank: u32, event: &Stored) -> Applied {
        let mut applied = Applied::default();
        let blocks = event.names.len() as u64;
        if self.bytes() > self.max_bytes {
            applied.refused = blocks;
            return applied;
        }
        let Some((mut at, before)) = self.parent(rank, event) else {
            applied.orphans = blocks;
            return applied;
        };
        let mut chain = std::mem::take(&mut self.chain);
        chain.clear();
        chain.extend(event.locals.iter().scan(before, |last, local| {
            *last = link(*last, *local);
            Some(*last)
        }));
        if self.names.get(&rank).is_some_and(|table| table.knows_any(event.names)) {
            for (name, hash) in event.names.iter().zip(&chain) {
                if self.find(rank, *name).is_some_and(|run| self.hash(run) != *hash) {
                    applied.removed += self.unstore(rank, &[*name]).removed;
                }
            }
            // The parent may have been among the blocks that lost their name, or is elsewhere now.
            match self.parent(rank, event) {
                Some((parent, _)) => at = parent,
                None => applied.orphans = blocks,
            }
        }
        if applied.orphans == 0 {
            applied.stored = self.insert(rank, at, event.names, &chain);
        }
        self.chain = chain;
        applied
    }

    /// Claims `chain` behind `at`; gives how many blocks the rank did not hold exactly before.
    fn insert(&mut self, rank: u32, mut at: At, mut names: &[u64], mut chain: &[u64]) -> u64 {
        let mut stored = 0;
        while !chain.is_empty() {
            let run = self.reach(at, chain);
            let node = &self.arena[run.node];
            let start = node.start;
            let known = node.holder(rank).map_or(0, |holder| holder.exact).max(run.from);
            let mut exact = known;
            let table = self.names.entry(rank).or_default();
            while exact < run.to {
                let place = Place { node: run.node, depth: start + exact };
                if !table.insert(names[(exact - run.from) as usize], place) {
                    break;
                }
                exact += 1;
            }
            if exact > known {
                stored += u64::from(exact - known);
                self.arena.edit(run.node, |node| node.holder_mut(rank).exact = exact);
            }
            if exact < run.to {
                // One name twice in one event: what follows is not believed.
                self.trim(run.node);
                return stored;
            }
            at = run.end();
            names = &names[run.len() as usize..];
            chain = &chain[run.len() as usize..];
        }
        stored
    }

    fn unstore(&mut self, rank: u32, names: &[u64]) -> Applied {
        let mut applied = Applied::default();
        let mut places = std::mem::take(&mut self.places);
        if let Some(table) = self.names.get_mut(&rank) {
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
                self.release(rank, run);
            }
            run = joined.or_else(|| self.locate(*place));
        }
        if let Some(run) = run {
            self.release(rank, run);
        }
        applied.removed = places.len() as u64;
        applied.unknown_removed = (names.len() - places.len()) as u64;
        places.clear();
        self.places = places;
        applied
    }

    /// Ends both claims of a rank to some blocks. What it holds behind them it keeps, in a node of its own.
    fn release(&mut self, rank: u32, blocks: Run) {
        let now = self.now;
        if self.arena[blocks.node].holder(rank).is_some_and(|holder| holder.held(now) > blocks.to) {
            self.split(blocks.node, blocks.to);
        }
        self.arena.edit(blocks.node, |node| {
            node.holder_mut(rank).cut(blocks.from);
            node.holders.retain(|holder| holder.span() > 0);
        });
        self.loosen(blocks.node);
    }

    /// Where the event's first block goes, and the hash before it; `None` for an orphan.
    fn parent(&self, rank: u32, event: &Stored) -> Option<(At, u64)> {
        let Some(parent) = event.parent else {
            return Some((At::ROOT, event.seed));
        };
        let block = self.find(rank, parent)?;
        Some((block.end(), self.hash(block)))
    }

    /// The block that a rank calls `name`.
    ///
    /// # Cost
    /// As [`Tree::locate`].
    pub(super) fn find(&self, rank: u32, name: u64) -> Option<Run> {
        self.locate(self.names.get(&rank)?.place(name)?)
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
