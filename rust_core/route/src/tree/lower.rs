//! Who holds how much of an edge below the GPU.

use smallvec::SmallVec;

use super::node::ALLOCATION;

/// What one rank holds of one edge below the GPU: leading blocks, by the engine's word.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lower {
    pub(super) rank: u32,
    pub(super) cpu: u32,
    pub(super) storage: u32,
}

/// All ranks that hold some of one edge below the GPU, sorted. Without any, a pointer.
#[derive(Debug, Default)]
pub(super) struct Lowers(Option<Box<SmallVec<[Lower; 2]>>>);

// === impl Lower ===

impl Lower {
    /// Leading blocks that it claims.
    pub(super) fn span(&self) -> u32 {
        self.cpu.max(self.storage)
    }

    fn behind(&self, at: u32) -> Option<Lower> {
        let cpu = self.cpu.saturating_sub(at);
        let storage = self.storage.saturating_sub(at);
        (cpu.max(storage) > 0).then_some(Lower { cpu, storage, ..*self })
    }
}

// === impl Lowers ===

impl Lowers {
    pub(super) fn all(&self) -> &[Lower] {
        self.0.as_ref().map_or(&[], |lowers| lowers.as_slice())
    }

    /// What a rank holds; nothing where it has no entry.
    pub(super) fn of(&self, rank: u32) -> Lower {
        let lowers = self.all();
        let at = lowers.binary_search_by_key(&rank, |lower| lower.rank);
        at.map_or(Lower { rank, ..Lower::default() }, |at| lowers[at])
    }

    /// Replaces what a rank holds.
    pub(super) fn set(&mut self, new: Lower) {
        let lowers = self.0.get_or_insert_default();
        match lowers.binary_search_by_key(&new.rank, |lower| lower.rank) {
            Ok(at) => lowers[at] = new,
            Err(at) => lowers.insert(at, new),
        }
        self.retain(|lower| lower.span() > 0);
    }

    pub(super) fn forget(&mut self, rank: u32) {
        self.retain(|lower| lower.rank != rank);
    }

    /// Keeps what is claimed of the first `at` blocks and gives the rest.
    pub(super) fn split_off(&mut self, at: u32) -> Lowers {
        let rest: SmallVec<[Lower; 2]> =
            self.all().iter().filter_map(|lower| lower.behind(at)).collect();
        for lower in self.0.iter_mut().flat_map(|lowers| lowers.iter_mut()) {
            lower.cpu = lower.cpu.min(at);
            lower.storage = lower.storage.min(at);
        }
        Lowers((!rest.is_empty()).then(|| Box::new(rest)))
    }

    /// The most blocks that any rank claims.
    pub(super) fn reach(&self) -> u32 {
        self.all().iter().map(Lower::span).max().unwrap_or(0)
    }

    /// (block, rank) pairs claimed, one for each tier.
    pub(super) fn pairs(&self) -> u64 {
        self.all().iter().map(|lower| u64::from(lower.cpu) + u64::from(lower.storage)).sum()
    }

    /// Bytes allocated behind the pointer.
    pub(super) fn heap(&self) -> u64 {
        let Some(lowers) = &self.0 else { return 0 };
        let mut bytes = size_of::<SmallVec<[Lower; 2]>>() + ALLOCATION;
        if lowers.spilled() {
            bytes += lowers.capacity() * size_of::<Lower>() + ALLOCATION;
        }
        bytes as u64
    }

    fn retain(&mut self, keep: impl Fn(&Lower) -> bool) {
        let Some(lowers) = &mut self.0 else { return };
        lowers.retain(|lower| keep(lower));
        if lowers.is_empty() {
            self.0 = None;
        } else if lowers.spilled() && lowers.capacity() > 4 * lowers.len() {
            lowers.shrink_to_fit();
        }
    }
}
