//! Which of an engine's events the index can use: those of one full-attention group, in blocks of one size.
//!
//! An engine of a hybrid model keeps a KV cache group per kind of attention, and each group tells of the same tokens. A
//! prompt is a hit as far as full attention reaches, so the lowest group of that kind stands for all. Its block size is
//! the largest that it publishes: smaller ones are of blocks that are not full yet.

use nebula_route::block::Scope;
use nebula_route::{Event, KeyKind};

use super::decode::{Change, Medium, Stored};
use super::extras::hashed;

/// What is known of an engine's cache, from its own events.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Layout {
    group: Option<u32>,
    block_size: Option<u32>,
}

/// Kinds whose blocks are all kept: a block that is in the cache serves any prompt that begins with it.
const FULL: [&str; 3] = ["full_attention", "mla_attention", "sink_full_attention"];

// === impl Layout ===

impl Layout {
    /// Tokens in a block, as soon as one came.
    pub(super) fn block_size(self) -> Option<u32> {
        self.block_size
    }

    /// Adds to `out` what the change means for the index; false if it means nothing there.
    pub(super) fn read(&mut self, change: &Change<'_>, out: &mut Vec<(Medium, Event)>) -> bool {
        match change {
            Change::Stored(stored) => self.stored(stored, out),
            Change::Removed { hashes, medium, group } => {
                let ours = group.is_none_or(|group| self.group == Some(group));
                if *medium == Medium::Other || !ours {
                    return false;
                }
                out.push((*medium, Event::Removed { engine_hashes: hashes.clone() }));
                true
            }
            Change::Cleared => {
                out.push((Medium::Gpu, Event::Cleared));
                true
            }
        }
    }

    fn stored(&mut self, stored: &Stored<'_>, out: &mut Vec<(Medium, Event)>) -> bool {
        let full = stored.kind.is_none_or(|kind| FULL.contains(&kind));
        // An adapter without a name cannot be told from others, nor from the base model.
        let nameless = stored.lora_id.is_some_and(|id| id > 0) && stored.lora_name.is_none();
        if stored.medium == Medium::Other || !full || nameless {
            return false;
        }
        if stored.medium != Medium::Gpu && stored.tokens.is_empty() {
            // Blocks that move are told by name alone; the index knows what they hold.
            let engine_hashes = stored.hashes.clone();
            let moved =
                Event::Stored { engine_hashes, parent: stored.parent, seed: 0, locals: Vec::new() };
            out.push((stored.medium, moved));
            return true;
        }
        let blocks = stored.hashes.len();
        let consistent = (stored.block_size as usize).checked_mul(blocks);
        if blocks == 0 || stored.block_size == 0 || consistent != Some(stored.tokens.len()) {
            return false;
        }
        let Some(hashed) = hashed(stored) else { return false };
        if !self.fits(stored, out) {
            return false;
        }
        // An engine's base model goes without a name: the key of a prompt says "" for it, so that aliases and paths
        // under which engines serve one model never part its prompts. An adapter's name is in the seed and nowhere else.
        let scope = Scope {
            model: stored.lora_name.unwrap_or_default(),
            cache_salt: hashed.salt,
            block: stored.block_size,
            kind: KeyKind::Tokens,
        };
        let event = Event::Stored {
            engine_hashes: stored.hashes.clone(),
            parent: stored.parent,
            seed: scope.seed(),
            locals: hashed.locals,
        };
        out.push((stored.medium, event));
        true
    }

    /// True if group and block size are those that count. What was learned from others before is wrong: it is cleared,
    /// at most once per group and size, as the one only falls and the other only grows.
    fn fits(&mut self, stored: &Stored<'_>, out: &mut Vec<(Medium, Event)>) -> bool {
        if stored.medium != Medium::Gpu {
            return self.block_size.is_none_or(|size| size == stored.block_size);
        }
        let group = stored.group.unwrap_or(0);
        let (known_group, known_size) = (self.group.unwrap_or(group), self.block_size);
        let better = group < known_group
            || group == known_group && known_size.is_some_and(|size| size < stored.block_size);
        if better && known_size.is_some() {
            out.push((Medium::Gpu, Event::Cleared));
        }
        if better || known_size.is_none() {
            *self = Layout { group: Some(group), block_size: Some(stored.block_size) };
        }
        self.group == Some(group) && self.block_size == Some(stored.block_size)
    }
}

#[cfg(test)]
mod tests;
