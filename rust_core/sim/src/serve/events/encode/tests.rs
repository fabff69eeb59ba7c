//! Compared, byte for byte, with what a real engine published.

use serde_json::Value;

use super::*;

fn captured() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/kv_events.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn unhex(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// What the cache must have told for vLLM's event, and the salt of its first block.
fn told(event: &Value) -> (CacheEvent, Option<&str>) {
    let hashes = |name: &str| -> Vec<u64> {
        event[name].as_array().unwrap().iter().map(|hash| hash.as_u64().unwrap()).collect()
    };
    match event["type"].as_str().unwrap() {
        "AllBlocksCleared" => (CacheEvent::Cleared, None),
        "BlockRemoved" => (CacheEvent::Removed { hash: hashes("block_hashes")[0] }, None),
        _ => {
            let tokens = hashes("token_ids").into_iter().map(|id| u32::try_from(id).unwrap());
            let stored = CacheEvent::Stored {
                parent: event["parent_block_hash"].as_u64(),
                hashes: hashes("block_hashes"),
                tokens: tokens.collect(),
            };
            (stored, event["extra_keys"][0][0].as_str())
        }
    }
}

/// The time of a batch, to the last bit.
fn ts(payload: &[u8]) -> f64 {
    f64::from_be_bytes(payload[2..10].try_into().unwrap())
}

fn encoder(encoding: Encoding, hashes: Hashes) -> Encoder {
    Encoder { encoding, hashes, block_size: 32, rank: 0 }
}

#[test]
fn maps_are_those_of_vllm() {
    for sample in captured()["int"].as_array().unwrap() {
        let mut salts = Salts::new(8);
        let mut events = Vec::new();
        for event in sample["batch"][1].as_array().unwrap() {
            let (event, salt) = told(event);
            if let (CacheEvent::Stored { hashes, .. }, Some(salt)) = (&event, salt) {
                salts.note(hashes[0], salt);
            }
            events.push(event);
        }
        let theirs = unhex(&sample["payload"]);
        let ours = encoder(Encoding::Map, Hashes::Int).batch(ts(&theirs), &events, &salts);
        assert_eq!(ours, theirs);
    }
}

#[test]
fn byte_hashes_have_the_frame_of_vllm_and_end_in_the_number() {
    let sample = &captured()["bytes"][0];
    let theirs = unhex(&sample["payload"]);
    let event = &sample["batch"][1][0];
    let digest = |hash: &Value| unhex(&hash["__bytes__"]);
    let number = |hash: &Value| u64::from_be_bytes(digest(hash)[24..].try_into().unwrap());
    let tokens = event["token_ids"].as_array().unwrap().iter();
    let stored = CacheEvent::Stored {
        parent: Some(number(&event["parent_block_hash"])),
        hashes: vec![number(&event["block_hashes"][0])],
        tokens: tokens.map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect(),
    };
    let ours = encoder(Encoding::Map, Hashes::Bytes).batch(ts(&theirs), &[stored], &Salts::new(1));
    // All but the 24 bytes of a digest that its number does not tell.
    let mask = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        for hash in [&event["block_hashes"][0], &event["parent_block_hash"]] {
            let low = digest(hash)[24..].to_vec();
            let at = bytes.windows(8).position(|eight| eight == low).expect("the number is there");
            bytes[at - 24..at].fill(0);
        }
        bytes
    };
    assert_eq!(mask(&ours), mask(&theirs));
}

#[test]
fn arrays_hold_the_values_of_maps_without_names() {
    let events = [
        CacheEvent::Stored { parent: None, hashes: vec![u64::MAX], tokens: vec![1; 32] },
        CacheEvent::Removed { hash: 7 },
        CacheEvent::Cleared,
    ];
    let mut salts = Salts::new(1);
    salts.note(u64::MAX, "s");
    let ours = encoder(Encoding::Array, Hashes::Int).batch(0.5, &events, &salts);
    let mut wanted = vec![0x93, 0xcb, 0x3f, 0xe0, 0, 0, 0, 0, 0, 0, 0x93];
    wanted.extend([0x9a, 0xab]);
    wanted.extend(b"BlockStored\x91\xcf\xff\xff\xff\xff\xff\xff\xff\xff\xc0\xdc\x00\x20");
    wanted.extend([1; 32]);
    wanted.extend(b"\x20\xc0\xa3GPU\xc0\x91\x91\xa1s\x00");
    wanted.extend(b"\x94\xacBlockRemoved\x91\x07\xa3GPU\x00");
    wanted.extend(b"\x91\xb0AllBlocksCleared\x00");
    assert_eq!(ours, wanted);
}

#[test]
fn the_oldest_salt_is_forgotten_first() {
    let mut salts = Salts::new(2);
    for (hash, salt) in [(1, "a"), (2, "b"), (1, "a"), (3, "c")] {
        salts.note(hash, salt);
    }
    assert_eq!([1, 2, 3].map(|hash| salts.of(hash)), [None, Some("b"), Some("c")]);
}
