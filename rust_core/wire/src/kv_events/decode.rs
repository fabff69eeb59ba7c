//! What an engine wrote: batches of events, as tagged lists (vLLM to 0.23) or tagged maps (from 0.24 on).
//!
//! Both are read as fields, each still the bytes of its value, so that what a field means is told once. Lists may be
//! short, maps may lack fields, and what is not known is passed over.

use serde::Serialize;

use super::msgpack::{Reader, Value};

/// What one step of an engine did to its cache.
#[derive(Debug, Default)]
pub struct Batch<'a> {
    /// In order; those that cannot be read are left out.
    pub changes: Vec<Change<'a>>,
    /// Events that cannot be read.
    pub undecodable: u64,
    /// How the events are written; `None` where there are none.
    pub encoding: Option<Encoding>,
}

/// How an engine writes an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// A list: the name, then the fields in order.
    Array,
    /// A map of names and fields.
    Map,
}

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Medium {
    /// The accelerator's memory; also where an engine names none.
    Gpu,
    /// The host's memory.
    Cpu,
    /// A disk, or storage that engines share.
    Storage,
    /// One that is not known; its events are counted and passed over.
    Other,
}

/// One event.
#[derive(Debug, PartialEq)]
pub enum Change<'a> {
    /// Blocks came.
    Stored(Stored<'a>),
    /// Blocks went.
    Removed {
        /// Their names.
        hashes: Vec<u64>,
        /// From where.
        medium: Medium,
        /// The KV cache group that lost them.
        group: Option<u32>,
    },
    /// All blocks went.
    Cleared,
}

/// Consecutive blocks of one prompt, and what their content is.
#[derive(Debug, PartialEq)]
pub struct Stored<'a> {
    /// The engine's names of the blocks.
    pub hashes: Vec<u64>,
    /// The engine's name of the block before them.
    pub parent: Option<u64>,
    /// The tokens of all blocks; none where blocks move between media.
    pub tokens: Vec<u32>,
    /// Tokens in a block.
    pub block_size: u32,
    /// Where they lie.
    pub medium: Medium,
    /// The adapter's number; releases that tell no name have only this.
    pub lora_id: Option<u64>,
    /// The adapter's name.
    pub lora_name: Option<&'a str>,
    /// The bytes of `extra_keys`.
    pub extra_keys: Option<&'a [u8]>,
    /// The KV cache group.
    pub group: Option<u32>,
    /// What kind of attention reads them.
    pub kind: Option<&'a str>,
}

const STORED: [&str; 10] = [
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
];
const REMOVED: [&str; 3] = ["block_hashes", "medium", "group_idx"];

/// One event that is not read yet.
struct Tagged<'a> {
    encoding: Encoding,
    tag: &'a str,
    /// The fields: what follows the tag, or the whole map.
    fields: Reader<'a>,
    len: u32,
}

/// The batch in `payload`; `None` if it is none, or cut off: then nothing of it counts.
///
/// # Cost
/// O(bytes); what it allocates is in proportion to the bytes that are there, whatever lengths they claim.
#[must_use]
pub fn batch(payload: &[u8]) -> Option<Batch<'_>> {
    let mut reader = Reader::new(payload);
    let Value::Array(2..) = reader.value()? else { return None };
    reader.skip()?;
    let mut batch = Batch::default();
    let Value::Array(events) = reader.value()? else { return None };
    for _ in 0..events {
        let raw = reader.skip()?;
        let event = tagged(raw);
        batch.encoding = event.as_ref().map(|event| event.encoding).or(batch.encoding);
        match event.and_then(Tagged::change) {
            Some(change) => batch.changes.push(change),
            None => batch.undecodable += 1,
        }
    }
    Some(batch)
}

/// The time of the batch in `payload`, without reading the rest.
#[must_use]
pub fn ts(payload: &[u8]) -> Option<f64> {
    let mut reader = Reader::new(payload);
    let Value::Array(1..) = reader.value()? else { return None };
    time(reader.value()?)
}

/// The data-parallel rank of the batch in `payload`; what is in its events is not looked at.
#[must_use]
pub fn rank(payload: &[u8]) -> Option<u32> {
    let mut reader = Reader::new(payload);
    let Value::Array(3..) = reader.value()? else { return None };
    reader.skip()?;
    reader.skip()?;
    reader.value()?.u32()
}

fn time(value: Value<'_>) -> Option<f64> {
    match value {
        Value::Float(ts) => Some(ts),
        Value::Uint(ts) => Some(ts as f64),
        _ => None,
    }
}

fn tagged(raw: &[u8]) -> Option<Tagged<'_>> {
    let mut reader = Reader::new(raw);
    match reader.value()? {
        Value::Array(len @ 1..) => {
            let tag = reader.value()?.text()?;
            Some(Tagged { encoding: Encoding::Array, tag, fields: reader, len: len - 1 })
        }
        Value::Map(len) => {
            let fields = reader;
            for _ in 0..len {
                let key = reader.value()?;
                if key == Value::Text(b"type") {
                    let tag = reader.value()?.text()?;
                    return Some(Tagged { encoding: Encoding::Map, tag, fields, len });
                }
                reader.skip()?;
            }
            None
        }
        _ => None,
    }
}

// === impl Tagged ===

impl<'a> Tagged<'a> {
    fn change(self) -> Option<Change<'a>> {
        match self.tag {
            "BlockStored" => {
                let [hashes, parent, tokens, block_size, lora_id, medium, lora_name, rest @ ..] =
                    self.fields(&STORED)?;
                let [extra_keys, group, kind] = rest;
                Some(Change::Stored(Stored {
                    hashes: list(hashes?, hash)?,
                    parent: match parent {
                        Some(raw) => Some(hash(Reader::new(raw).value()?)?),
                        None => None,
                    },
                    tokens: list(tokens?, Value::u32)?,
                    block_size: value(block_size)?.u32()?,
                    medium: Medium::of(medium),
                    lora_id: match value(lora_id) {
                        Some(Value::Uint(number)) => Some(number),
                        _ => None,
                    },
                    lora_name: value(lora_name).and_then(Value::text),
                    extra_keys,
                    group: value(group).and_then(Value::u32),
                    kind: value(kind).and_then(Value::text),
                }))
            }
            "BlockRemoved" => {
                let [hashes, medium, group] = self.fields(&REMOVED)?;
                Some(Change::Removed {
                    hashes: list(hashes?, hash)?,
                    medium: Medium::of(medium),
                    group: value(group).and_then(Value::u32),
                })
            }
            "AllBlocksCleared" => Some(Change::Cleared),
            _ => None,
        }
    }

    /// The bytes of the fields of these names; `None` where a field is missing or nil.
    fn fields<const N: usize>(self, names: &[&str; N]) -> Option<[Option<&'a [u8]>; N]> {
        let mut found = [None; N];
        let mut reader = self.fields;
        for place in 0..self.len as usize {
            let at = match self.encoding {
                Encoding::Array => place,
                Encoding::Map => {
                    let key = reader.value()?;
                    let known = |name: &&str| key == Value::Text(name.as_bytes());
                    names.iter().position(known).unwrap_or(N)
                }
            };
            let raw = reader.skip()?;
            if let Some(slot) = found.get_mut(at) {
                *slot = (Reader::new(raw).value()? != Value::Nil).then_some(raw);
            }
        }
        Some(found)
    }
}

// === impl Medium ===

impl Medium {
    /// What is no text names no medium: an engine that writes short lists has another field there.
    fn of(raw: Option<&[u8]>) -> Medium {
        let Some(name) = value(raw).and_then(Value::text) else {
            return Medium::Gpu;
        };
        [("GPU", Medium::Gpu), ("CPU", Medium::Cpu), ("STORAGE", Medium::Storage)]
            .into_iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map_or(Medium::Other, |(_, medium)| medium)
    }
}

fn value(raw: Option<&[u8]>) -> Option<Value<'_>> {
    Reader::new(raw?).value()
}

/// All values of a list; `None` unless each is what `read` takes.
fn list<'a, T>(raw: &'a [u8], read: impl Fn(Value<'a>) -> Option<T>) -> Option<Vec<T>> {
    let mut reader = Reader::new(raw);
    let Value::Array(len) = reader.value()? else { return None };
    let mut values = Vec::with_capacity((len as usize).min(reader.at_most()));
    for _ in 0..len {
        values.push(read(reader.value()?)?);
    }
    Some(values)
}

/// A block's name as a number: of a digest the last eight bytes, highest first, which is what engines publish as an
/// integer; a number below zero is one of 64 bits that was taken for signed.
fn hash(value: Value<'_>) -> Option<u64> {
    match value {
        Value::Uint(number) => Some(number),
        Value::Int(number) => Some(number.cast_unsigned()),
        Value::Bin(bytes @ [_, ..]) => {
            let last = &bytes[bytes.len().saturating_sub(8)..];
            Some(last.iter().fold(0, |high, &byte| high << 8 | u64::from(byte)))
        }
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests;
