//! Batches of KV events in msgpack, field for field as vLLM writes them.

use bytes::Bytes;
use rmp::encode::{
    write_array_len, write_bin, write_f64, write_map_len, write_nil, write_str, write_uint,
};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::salt::Salts;
use crate::CacheEvent;
use crate::config::{Encoding, Hashes};
use crate::hash::BlockHash;

/// Writes the batches of one rank.
#[derive(Debug)]
pub(super) struct Encoder {
    pub(super) encoding: Encoding,
    pub(super) hashes: Hashes,
    pub(super) block_size: u32,
    pub(super) rank: u32,
}

/// The fields of one event, in vLLM's order.
struct Fields<'a> {
    out: &'a mut Vec<u8>,
    encoding: Encoding,
}

const MEDIUM: &str = "GPU";
const SPEC_KIND: &str = "full_attention";

// === impl Encoder ===

impl Encoder {
    /// `[ts, events, data_parallel_rank]`; `ts` in Unix seconds.
    pub(super) fn batch(&self, ts: f64, events: &[CacheEvent], salts: &Salts) -> Bytes {
        let mut out = Vec::with_capacity(64 + events.iter().map(size_hint).sum::<usize>());
        array(&mut out, 3);
        // Writing into memory cannot fail, here and below.
        let _ = write_f64(&mut out, ts);
        array(&mut out, events.len());
        for event in events {
            match event {
                CacheEvent::Stored { parent, hashes, tokens } => {
                    let salt = if parent.is_none() { salts.of(hashes[0]) } else { None };
                    self.stored(*parent, hashes, tokens, salt, &mut out);
                }
                CacheEvent::Removed { hash } => self.removed(*hash, &mut out),
                CacheEvent::Cleared => {
                    Fields::open(&mut out, self.encoding, "AllBlocksCleared", 0);
                }
            }
        }
        uint(&mut out, u64::from(self.rank));
        out.into()
    }

    fn stored(
        &self,
        parent: Option<BlockHash>,
        hashes: &[BlockHash],
        tokens: &[u32],
        salt: Option<&str>,
        out: &mut Vec<u8>,
    ) {
        // The kind of KV cache came after the last release that wrote arrays.
        let fields = if self.encoding == Encoding::Map { 10 } else { 9 };
        let mut event = Fields::open(out, self.encoding, "BlockStored", fields);
        let block_hashes = event.field("block_hashes");
        array(block_hashes, hashes.len());
        for hash in hashes {
            self.hash(*hash, block_hashes);
        }
        match parent {
            Some(parent) => self.hash(parent, event.field("parent_block_hash")),
            None => nil(event.field("parent_block_hash")),
        }
        let token_ids = event.field("token_ids");
        array(token_ids, tokens.len());
        for token in tokens {
            uint(token_ids, u64::from(*token));
        }
        uint(event.field("block_size"), u64::from(self.block_size));
        nil(event.field("lora_id"));
        text(event.field("medium"), MEDIUM);
        nil(event.field("lora_name"));
        let extra_keys = event.field("extra_keys");
        array(extra_keys, hashes.len());
        for block in 0..hashes.len() {
            match salt.filter(|_| block == 0) {
                Some(salt) => {
                    array(extra_keys, 1);
                    text(extra_keys, salt);
                }
                None => nil(extra_keys),
            }
        }
        uint(event.field("group_idx"), 0);
        if self.encoding == Encoding::Map {
            text(event.field("kv_cache_spec_kind"), SPEC_KIND);
        }
    }

    fn removed(&self, hash: BlockHash, out: &mut Vec<u8>) {
        let mut event = Fields::open(out, self.encoding, "BlockRemoved", 3);
        let block_hashes = event.field("block_hashes");
        array(block_hashes, 1);
        self.hash(hash, block_hashes);
        text(event.field("medium"), MEDIUM);
        uint(event.field("group_idx"), 0);
    }

    /// vLLM's digest has 32 bytes; its number is the last eight of them.
    fn hash(&self, hash: BlockHash, out: &mut Vec<u8>) {
        match self.hashes {
            Hashes::Int => uint(out, hash),
            Hashes::Bytes => {
                let number = hash.to_be_bytes();
                let wide = xxh3_128_with_seed(&number, 0).to_be_bytes();
                let more = xxh3_128_with_seed(&number, 1).to_be_bytes();
                let mut digest = [0; 32];
                digest[..16].copy_from_slice(&wide);
                digest[16..24].copy_from_slice(&more[..8]);
                digest[24..].copy_from_slice(&number);
                let _ = write_bin(out, &digest);
            }
        }
    }
}

// === impl Fields ===

impl<'a> Fields<'a> {
    fn open(out: &'a mut Vec<u8>, encoding: Encoding, name: &str, fields: u32) -> Fields<'a> {
        match encoding {
            Encoding::Map => {
                let _ = write_map_len(out, fields + 1);
                text(out, "type");
            }
            Encoding::Array => array(out, fields as usize + 1),
        }
        text(out, name);
        Fields { out, encoding }
    }

    /// Where the value of the next field goes.
    fn field(&mut self, name: &str) -> &mut Vec<u8> {
        if self.encoding == Encoding::Map {
            text(self.out, name);
        }
        self.out
    }
}

/// Most bytes that an event takes, about.
fn size_hint(event: &CacheEvent) -> usize {
    match event {
        CacheEvent::Stored { hashes, tokens, .. } => 192 + 36 * hashes.len() + 5 * tokens.len(),
        CacheEvent::Removed { .. } | CacheEvent::Cleared => 96,
    }
}

fn array(out: &mut Vec<u8>, len: usize) {
    let _ = write_array_len(out, u32::try_from(len).unwrap_or(u32::MAX));
}

fn uint(out: &mut Vec<u8>, value: u64) {
    let _ = write_uint(out, value);
}

fn text(out: &mut Vec<u8>, value: &str) {
    let _ = write_str(out, value);
}

fn nil(out: &mut Vec<u8>) {
    let _ = write_nil(out);
}

#[cfg(test)]
mod tests;
