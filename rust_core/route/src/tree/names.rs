//! What an engine calls its blocks.

use std::hash::{BuildHasherDefault, Hash, Hasher};

use hashbrown::HashMap;

use super::node::NodeId;
use crate::event::Tier;

/// One tier of one rank: what an engine's names are unique in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pool {
    pub(super) rank: u32,
    pub(super) tier: Tier,
}

/// Where a block was stored. Splits may since have moved it to a tail of `node`; see [`super::node::Node::tail`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) node: NodeId,
    /// Blocks before this one in the whole chain.
    pub(super) depth: u32,
}

/// One pool's names. Each stands for one block that the pool holds exactly, and each such block has one name.
#[derive(Debug, Default)]
pub(super) struct Names {
    places: HashMap<u64, Place, BuildHasherDefault<Folded>>,
}

/// The names are hashes already: one multiplication spreads even small numbers over all bits.
#[derive(Default)]
pub(super) struct Folded(u64);

// === impl Pool ===

impl Pool {
    /// Every tier of a rank, the best first.
    pub(super) fn all(rank: u32) -> impl Iterator<Item = Pool> {
        Tier::ALL.into_iter().map(move |tier| Pool { rank, tier })
    }
}

impl Hash for Pool {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from(self.rank) << 2 | self.tier as u64);
    }
}

// === impl Names ===

impl Names {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Bytes of the table, room for more included.
    pub(super) fn bytes(&self) -> u64 {
        self.places.allocation_size() as u64
    }

    pub(super) fn place(&self, name: u64) -> Option<Place> {
        self.places.get(&name).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, Place)> {
        self.places.iter().map(|(name, place)| (*name, *place))
    }

    /// Gives a block its name; `false` where another block has it.
    pub(super) fn insert(&mut self, name: u64, place: Place) -> bool {
        self.places.try_insert(name, place).is_ok()
    }

    /// True if one of these names stands for a block.
    pub(super) fn knows_any(&self, names: &[u64]) -> bool {
        // Without a way out in the middle no look-up waits for another, and their cache misses overlap.
        names.iter().fold(false, |any, name| any | self.places.contains_key(name))
    }

    /// Takes names away and appends the places that they stood for, in order; unknown names are passed over.
    pub(super) fn take(&mut self, names: &[u64], places: &mut Vec<Place>) {
        // All of them before any place is looked at, so that their cache misses overlap.
        places.extend(names.iter().filter_map(|name| self.places.remove(name)));
        self.tidy();
    }

    /// Returns memory after many removals. The table's own capacity does not tell: places once used count against it.
    fn tidy(&mut self) {
        let used = self.places.len() * size_of::<(u64, Place)>();
        if self.places.allocation_size() > 8 * used {
            self.places.shrink_to(2 * self.places.len());
        }
    }
}

// === impl Folded ===

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        let product =
            u128::from(word ^ 0x9e37_79b9_7f4a_7c15) * u128::from(0xd6e8_feb8_6659_fd93_u64);
        #[expect(clippy::cast_possible_truncation, reason = "both halves are folded into one")]
        let folded = (product >> 64) as u64 ^ product as u64;
        self.0 = folded;
    }
}
