//! What goes into a block's hash besides its tokens: `extra_keys`.
//!
//! vLLM writes one entry per block, nil or a list of: the `LoRA` adapter's name, an (identifier, offset) pair per
//! multimodal item, the `cache_salt` (in the block that opens a prompt), the digest of prompt embeddings. The adapter and
//! the salt are in the seed of the chain, so they are taken out here; all else is part of the block itself.

use nebula_route::block::local;
use xxhash_rust::xxh3::xxh3_64;

use super::decode::Stored;
use super::msgpack::{Reader, Value};

/// The blocks of an event as the index hashes them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hashed<'a> {
    /// [`local`] of each block; where a block has extras, `xxh3(token bytes, canonical bytes of the extras)`.
    pub(super) locals: Vec<u64>,
    /// The salt of a prompt that opens here.
    pub(super) salt: Option<&'a str>,
}

/// The blocks of `stored`, whose lengths agree; `None` if its extra keys do not belong to its blocks.
pub(super) fn hashed<'a>(stored: &Stored<'a>) -> Option<Hashed<'a>> {
    let blocks = stored.tokens.chunks_exact(stored.block_size.max(1) as usize);
    let Some(raw) = stored.extra_keys else {
        return Some(Hashed { locals: blocks.map(local).collect(), salt: None });
    };
    let mut reader = Reader::new(raw);
    let Value::Array(len) = reader.value()? else { return None };
    if len as usize != stored.hashes.len() {
        return None;
    }
    let mut hashed = Hashed { locals: Vec::with_capacity(stored.hashes.len()), salt: None };
    for (at, tokens) in blocks.enumerate() {
        let opens = at == 0 && stored.parent.is_none();
        let entry = reader.skip()?;
        let (extras, salt) = extras(entry, stored.lora_name, opens)?;
        hashed.salt = salt.or(hashed.salt);
        hashed.locals.push(if extras.is_empty() {
            local(tokens)
        } else {
            let mut bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
            bytes.extend(extras);
            xxh3_64(&bytes)
        });
    }
    Some(hashed)
}

/// The canonical bytes of one entry without adapter and salt, and the salt.
fn extras<'a>(
    entry: &'a [u8],
    lora: Option<&str>,
    opens: bool,
) -> Option<(Vec<u8>, Option<&'a str>)> {
    let mut reader = Reader::new(entry);
    let len = match reader.value()? {
        Value::Nil => return Some((Vec::new(), None)),
        Value::Array(len) => len,
        _ => return None,
    };
    let mut items = Vec::new();
    for _ in 0..len {
        items.push(reader.skip()?);
    }
    let kind = |at: usize| items.get(at).and_then(|item: &&'a [u8]| Reader::new(item).value());
    let first = usize::from(lora.is_some() && kind(0).and_then(Value::text) == lora);
    // An identifier may stand beside its offset instead of in a pair with it; a salt stands alone.
    let alone = |at: usize| !matches!(kind(at + 1), Some(Value::Uint(_) | Value::Int(_)));
    let salt_at = (first..items.len())
        .rev()
        .find(|&at| opens && matches!(kind(at), Some(Value::Text(_))) && alone(at));
    let salt = salt_at.and_then(|at| kind(at)?.text());
    let mut bytes = Vec::new();
    for (at, item) in items.iter().enumerate().skip(first) {
        if salt.is_none() || salt_at != Some(at) {
            canonical(item, &mut bytes)?;
        }
    }
    Some((bytes, salt))
}

/// Writes a value so that equal values give equal bytes, however the engine wrote them: a byte of type, then a number in
/// eight bytes, or a length in eight and what it measures; every integer is little endian.
fn canonical(item: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut reader = Reader::new(item);
    while !reader.is_empty() {
        let (kind, number, bytes): (u8, u64, &[u8]) = match reader.value()? {
            Value::Nil => (0, 0, b""),
            Value::Bool(on) => (1, on.into(), b""),
            Value::Uint(number) => (2, number, b""),
            Value::Int(number) => (3, number.cast_unsigned(), b""),
            Value::Float(number) => (4, number.to_bits(), b""),
            Value::Text(text) => (5, text.len() as u64, text),
            Value::Bin(bytes) => (6, bytes.len() as u64, bytes),
            Value::Array(len) => (7, len.into(), b""),
            Value::Map(len) => (8, len.into(), b""),
            Value::Ext(bytes) => (9, bytes.len() as u64, bytes),
        };
        out.push(kind);
        out.extend(number.to_le_bytes());
        out.extend(bytes);
    }
    Some(())
}

#[cfg(test)]
mod tests;
