use std::collections::BTreeSet;

use proptest::prelude::*;
use rmp::encode::{write_array_len, write_bin, write_map_len, write_nil, write_sint, write_str};
use serde_json::Value as Json;

use super::*;

const VLLM: &str = include_str!("../../../tests/data/kv_events_vllm.json");
const MOCKER: &str = include_str!("../../../tests/data/kv_events_mocker.json");

/// The last two frames of a captured message.
pub(in crate::kv_events) fn frames(message: &Json) -> (u64, Vec<u8>) {
    let frames = message.as_array().unwrap();
    let bytes = |frame: &Json| -> Vec<u8> {
        let hex = frame.as_str().unwrap();
        let pairs = (0..hex.len()).step_by(2);
        pairs.map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    };
    let [.., seq, payload] = &frames[..] else { panic!("two frames") };
    (u64::from_be_bytes(bytes(seq).try_into().unwrap()), bytes(payload))
}

pub(in crate::kv_events) fn vllm() -> Json {
    serde_json::from_str(VLLM).unwrap()
}

pub(in crate::kv_events) fn mocker() -> Json {
    serde_json::from_str(MOCKER).unwrap()
}

fn bytes(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

/// A batch around the bytes of one event.
fn around(event: &[u8]) -> Vec<u8> {
    let mut payload = vec![0x93, 0xCB, 0, 0, 0, 0, 0, 0, 0, 0, 0x91];
    payload.extend(event);
    payload.push(0xC0);
    payload
}

fn numbers(json: &Json) -> Vec<u64> {
    json.as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).collect()
}

#[test]
fn what_vllm_sent_reads_as_it_says() {
    let captured = vllm();
    let samples =
        ["plain", "eviction"].map(|name| captured[name].as_array().unwrap().clone()).concat();
    assert!(samples.len() > 10);
    for sample in samples {
        let (_, payload) = frames(&sample["frames_hex"]);
        let said = &sample["decoded"];
        let read = batch(&payload).unwrap();
        assert_eq!((read.undecodable, read.encoding), (0, Some(Encoding::Map)));
        let apart = ts(&payload).unwrap() - said[0].as_f64().unwrap();
        assert!(apart.abs() < 1e-5, "but for how JSON rounds");
        assert_eq!(rank(&payload).map(u64::from), said[2].as_u64());
        assert_eq!(read.changes.len(), said[1].as_array().unwrap().len());
        for (change, said) in read.changes.iter().zip(said[1].as_array().unwrap()) {
            match change {
                Change::Stored(stored) => {
                    assert_eq!(stored.hashes, numbers(&said["block_hashes"]));
                    assert_eq!(stored.parent, said["parent_block_hash"].as_u64());
                    let tokens: Vec<u64> = stored.tokens.iter().map(|&id| id.into()).collect();
                    assert_eq!(tokens, numbers(&said["token_ids"]));
                    assert_eq!(Some(u64::from(stored.block_size)), said["block_size"].as_u64());
                    assert_eq!((stored.medium, stored.group), (Medium::Gpu, Some(0)));
                    assert_eq!((stored.lora_id, stored.lora_name), (None, None));
                    assert_eq!(stored.kind, said["kv_cache_spec_kind"].as_str());
                    assert!(stored.extra_keys.is_some());
                }
                Change::Removed { hashes, medium, group } => {
                    assert_eq!(hashes, &numbers(&said["block_hashes"]));
                    assert_eq!((medium, group), (&Medium::Gpu, &Some(0)));
                }
                Change::Cleared => assert_eq!(said["type"], "AllBlocksCleared"),
            }
        }
    }
}

#[test]
fn digests_name_the_blocks_that_their_last_eight_bytes_do() {
    let captured = vllm();
    let stored = |sample: &Json| -> BTreeSet<u64> {
        let (_, payload) = frames(&sample["frames_hex"]);
        let read = batch(&payload).unwrap();
        assert_eq!(read.undecodable, 0);
        let names = |change| match change {
            Change::Stored(stored) => stored.hashes,
            Change::Removed { hashes, .. } => hashes,
            Change::Cleared => Vec::new(),
        };
        read.changes.into_iter().flat_map(names).collect()
    };
    let by_digest = stored(&captured["bytes_hashes"][0]);
    assert_eq!(by_digest.len(), 50);
    // The same prompt, on an engine that publishes integers.
    let by_number = stored(&captured["eviction"][0]);
    assert!(by_digest.iter().filter(|name| by_number.contains(name)).count() > 10);
    let digest: Vec<u8> = (0..32).collect();
    assert_eq!(hash(Value::Bin(&digest)), Some(0x1819_1A1B_1C1D_1E1F));
    assert_eq!(hash(Value::Bin(&[1, 2])), Some(0x0102));
    assert_eq!(hash(Value::Bin(&[])), None);
    assert_eq!(hash(Value::Int(-1)), Some(u64::MAX));
}

#[test]
fn what_dynamos_simulator_sent_in_short_lists_reads() {
    let captured = mocker();
    let mut stored_blocks = 0;
    let mut removed_blocks = 0;
    for message in captured["frames_hex"].as_array().unwrap() {
        let (_, payload) = frames(message);
        let read = batch(&payload).unwrap();
        assert_eq!((read.undecodable, read.encoding), (0, Some(Encoding::Array)));
        assert_eq!(rank(&payload), Some(0));
        for change in read.changes {
            match change {
                Change::Stored(stored) => {
                    assert_eq!(stored.tokens.len(), 16 * stored.hashes.len());
                    assert_eq!((stored.medium, stored.lora_id), (Medium::Gpu, Some(0)));
                    stored_blocks += stored.hashes.len();
                }
                Change::Removed { hashes, medium, group } => {
                    assert_eq!((medium, group), (Medium::Gpu, None));
                    removed_blocks += hashes.len();
                }
                Change::Cleared => panic!("it clears nothing"),
            }
        }
    }
    let first = frames(&captured["frames_hex"][0]).1;
    let Change::Stored(stored) = &batch(&first).unwrap().changes[0] else { panic!("stored") };
    let prompt = numbers(&captured["requests"][0]["prompt"]);
    assert!(stored.tokens.iter().map(|&id| u64::from(id)).eq(prompt));
    assert_eq!((stored_blocks, removed_blocks), (57, 26));
}

#[test]
fn a_list_as_long_as_0_23_wrote_it_has_every_field() {
    let event = bytes(|out| {
        write_array_len(out, 12).unwrap();
        write_str(out, "BlockStored").unwrap();
        write_array_len(out, 1).unwrap();
        write_sint(out, -2).unwrap();
        write_bin(out, &[7; 32]).unwrap();
        out.extend([0x92, 1, 2]);
        out.extend([2, 5]);
        write_str(out, "cpu").unwrap();
        write_str(out, "adapter").unwrap();
        out.extend([0x91, 0xC0, 3]);
        write_nil(out).unwrap();
        write_str(out, "of a later release").unwrap();
    });
    let payload = around(&event);
    let expected = Change::Stored(Stored {
        hashes: vec![u64::MAX - 1],
        parent: Some(0x0707_0707_0707_0707),
        tokens: vec![1, 2],
        block_size: 2,
        medium: Medium::Cpu,
        lora_id: Some(5),
        lora_name: Some("adapter"),
        extra_keys: Some(&[0x91, 0xC0]),
        group: Some(3),
        kind: None,
    });
    assert_eq!(batch(&payload).unwrap().changes, [expected]);
}

#[test]
fn a_map_may_lack_fields_and_have_others_in_any_order() {
    let event = bytes(|out| {
        write_map_len(out, 4).unwrap();
        write_str(out, "medium").unwrap();
        write_str(out, "TAPE").unwrap();
        write_str(out, "ownership").unwrap();
        out.extend([0x81, 0xA1, b'x', 0x90]);
        write_str(out, "block_hashes").unwrap();
        out.extend([0x91, 9]);
        write_str(out, "type").unwrap();
        write_str(out, "BlockRemoved").unwrap();
    });
    let expected = Change::Removed { hashes: vec![9], medium: Medium::Other, group: None };
    assert_eq!(batch(&around(&event)).unwrap().changes, [expected]);
}

#[test]
fn an_event_that_cannot_be_read_costs_only_itself() {
    let mut payload = vec![0x92, 1, 0x94];
    payload.extend(bytes(|out| {
        write_array_len(out, 2).unwrap();
        write_str(out, "BlockMigrated").unwrap();
        out.push(1);
    }));
    payload.extend([0x81, 0xA1, b'k', 0xC0, 0xC0]);
    payload.extend(bytes(|out| {
        write_array_len(out, 1).unwrap();
        write_str(out, "AllBlocksCleared").unwrap();
    }));
    let read = batch(&payload).unwrap();
    assert_eq!((read.undecodable, read.changes), (3, vec![Change::Cleared]));
    assert_eq!((ts(&payload), rank(&payload)), (Some(1.0), None));
}

#[test]
fn a_batch_that_is_cut_off_says_nothing() {
    let (_, payload) = frames(&vllm()["plain"][6]["frames_hex"]);
    assert_eq!(batch(&payload).unwrap().changes[0], Change::Cleared);
    // The last byte is the rank's, which is not among the changes.
    for len in 0..payload.len() - 1 {
        assert!(batch(&payload[..len]).is_none(), "{len} of {}", payload.len());
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_or_clear(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let cleared = batch(&bytes).is_some_and(|read| read.changes.contains(&Change::Cleared));
        prop_assert!(!cleared, "sixteen bytes in a row by chance");
        let _ = (ts(&bytes), rank(&bytes));
    }

    #[test]
    fn damage_to_what_an_engine_sent_never_makes_a_clear(
        sample in 0_usize..6,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (_, mut payload) = frames(&vllm()["plain"][sample]["frames_hex"]);
        for (at, byte) in damage {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        if let Some(read) = batch(&payload) {
            prop_assert!(!read.changes.contains(&Change::Cleared));
            let tokens = |change: &Change| match change {
                Change::Stored(stored) => stored.tokens.capacity() + stored.hashes.capacity(),
                Change::Removed { hashes, .. } => hashes.capacity(),
                Change::Cleared => 0,
            };
            let room: usize = read.changes.iter().map(tokens).sum();
            prop_assert!(room <= 2 * payload.len(), "memory follows the bytes that are there");
        }
    }
}
