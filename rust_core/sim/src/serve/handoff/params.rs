//! `kv_transfer_params`, as vLLM's NIXL connector writes and reads them.

use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_64;

use crate::SeqId;

/// What a request wants of other engines.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Wanted {
    /// Nothing.
    Nothing,
    /// Its blocks are kept for another engine.
    Keep,
    /// Another engine has computed its prompt.
    Fetch(Offer),
}

/// Blocks that another engine keeps.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Offer {
    pub(crate) engine_id: String,
    pub(crate) request_id: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Tokens that the other engine found in its cache, if it says so.
    pub(crate) cached: Option<u32>,
}

/// Blocks that are kept here.
pub(crate) struct Kept<'a> {
    pub(crate) engine_id: &'a str,
    pub(crate) request_id: &'a str,
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) blocks: &'a [u32],
    /// Tokens whose KV exists.
    pub(crate) tokens: u32,
    /// Prompt tokens that were in the cache; none if the reply went on after its first token.
    pub(crate) cached: Option<u32>,
}

// === impl Wanted ===

impl Wanted {
    /// What `params` say. An offer that lacks where it is counts as none.
    pub(crate) fn of(params: &Map<String, Value>) -> Wanted {
        let says = |name: &str| params.get(name).and_then(Value::as_bool).unwrap_or(false);
        let text = |name: &str| params.get(name)?.as_str().map(str::to_owned);
        if says("do_remote_prefill") {
            let offer = || {
                Some(Offer {
                    engine_id: text("remote_engine_id")?,
                    request_id: text("remote_request_id")?,
                    host: text("remote_host")?,
                    port: u16::try_from(params.get("remote_port")?.as_u64()?).ok()?,
                    cached: params
                        .get("remote_prefill_cached_tokens")
                        .and_then(Value::as_u64)
                        .map(|cached| u32::try_from(cached).unwrap_or(u32::MAX)),
                })
            };
            return offer().map_or(Wanted::Nothing, Wanted::Fetch);
        }
        if says("do_remote_decode") { Wanted::Keep } else { Wanted::Nothing }
    }
}

/// The parameters that tell another engine where the blocks are.
pub(crate) fn offer_json(kept: &Kept<'_>) -> String {
    let Kept { engine_id, request_id, host, port, blocks, tokens, cached } = kept;
    let (engine_id, request_id, host, blocks) =
        (json!(engine_id), json!(request_id), json!(host), json!(blocks));
    let cached = cached
        .map_or(String::new(), |cached| format!(r#","remote_prefill_cached_tokens":{cached}"#));
    format!(
        r#"{{"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":[{blocks}],"remote_engine_id":{engine_id},"remote_request_id":{request_id},"remote_host":{host},"remote_port":{port},"tp_size":1,"dcp_size":1,"pp_size":1,"remote_num_tokens":{tokens},"remote_blocks_expiry_time":null,"transfer_mode":"pull"{cached}}}"#
    )
}

/// The name of a sequence for other engines: the request's own id, and eight digits that no other request of this process
/// has with it.
pub(crate) fn request_name(id: &str, sequence: SeqId) -> String {
    format!("{id}-{:08x}", low(sequence) ^ mask(id))
}

/// The sequence of such a name.
pub(super) fn sequence(name: &str) -> Option<SeqId> {
    let (id, digits) = name.rsplit_once('-')?;
    let digits = u32::from_str_radix(digits, 16).ok()?;
    Some(SeqId::from(digits ^ mask(id)))
}

fn mask(id: &str) -> u32 {
    low(xxh3_64(id.as_bytes()))
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
fn low(number: u64) -> u32 {
    number as u32
}
