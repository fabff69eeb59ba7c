use nebula_route::block::local;
use rmp::encode::{write_array_len, write_bin, write_sint, write_str, write_uint};

use super::super::decode::Medium;
use super::*;

type Write = Box<dyn Fn(&mut Vec<u8>)>;

fn text(text: &'static str) -> Write {
    Box::new(move |out| write_str(out, text).unwrap())
}

fn pair(name: &'static str, offset: i64) -> Write {
    Box::new(move |out| {
        write_array_len(out, 2).unwrap();
        write_str(out, name).unwrap();
        let _ = write_sint(out, offset).unwrap();
    })
}

fn digest(bytes: &'static [u8]) -> Write {
    Box::new(move |out| write_bin(out, bytes).unwrap())
}

/// `extra_keys` with one entry per block; an empty one is nil.
fn keys(entries: &[Vec<Write>]) -> Vec<u8> {
    let mut out = Vec::new();
    write_array_len(&mut out, u32::try_from(entries.len()).unwrap()).unwrap();
    for entry in entries {
        if entry.is_empty() {
            out.push(0xC0);
            continue;
        }
        write_array_len(&mut out, u32::try_from(entry.len()).unwrap()).unwrap();
        for write in entry {
            write(&mut out);
        }
    }
    out
}

/// Two blocks of two tokens.
fn stored<'a>(keys: &'a [u8], parent: Option<u64>, lora_name: Option<&'a str>) -> Stored<'a> {
    Stored {
        hashes: vec![1, 2],
        parent,
        tokens: vec![10, 11, 12, 13],
        block_size: 2,
        medium: Medium::Gpu,
        lora_id: None,
        lora_name,
        extra_keys: Some(keys),
        group: None,
        kind: None,
    }
}

fn plain() -> Vec<u64> {
    vec![local(&[10, 11]), local(&[12, 13])]
}

#[test]
fn blocks_without_extras_hash_as_a_prompt_does() {
    let nil = keys(&[vec![], vec![]]);
    let expected = Hashed { locals: plain(), salt: None };
    assert_eq!(hashed(&stored(&nil, None, None)), Some(expected));
    let absent = Stored { extra_keys: None, ..stored(&nil, None, None) };
    assert_eq!(hashed(&absent).unwrap().locals, plain());
}

#[test]
fn the_adapter_and_the_salt_are_in_the_seed_alone() {
    let lora = || text("adapter");
    let both = keys(&[vec![lora(), text("s1")], vec![lora()]]);
    let expected = Hashed { locals: plain(), salt: Some("s1") };
    assert_eq!(hashed(&stored(&both, None, Some("adapter"))), Some(expected));
    let salt = keys(&[vec![text("s1")], vec![]]);
    assert_eq!(hashed(&stored(&salt, None, None)).unwrap().salt, Some("s1"));
}

#[test]
fn a_salt_stands_only_where_a_prompt_opens() {
    let named = keys(&[vec![text("mm-0")], vec![text("mm-0")]]);
    let within = hashed(&stored(&named, Some(7), None)).unwrap();
    assert_eq!(within.salt, None);
    assert!(within.locals.iter().zip(plain()).all(|(found, plain)| *found != plain));
    let opening = hashed(&stored(&named, None, None)).unwrap();
    assert_eq!((opening.salt, opening.locals[0]), (Some("mm-0"), plain()[0]));
    assert_eq!(opening.locals[1], within.locals[1]);
}

#[test]
fn multimodal_items_and_embeddings_are_part_of_their_block() {
    let all = keys(&[
        vec![text("adapter"), pair("mm-0", 3), text("s1"), digest(&[9; 32])],
        vec![text("adapter"), pair("mm-0", -1)],
    ]);
    let read = hashed(&stored(&all, None, Some("adapter"))).unwrap();
    assert_eq!(read.salt, Some("s1"));
    let mut expected = [10_u32, 11].map(u32::to_le_bytes).concat();
    for (kind, number, bytes) in
        [(7_u8, 2_u64, &b""[..]), (5, 4, b"mm-0"), (2, 3, b""), (6, 32, &[9; 32])]
    {
        expected.push(kind);
        expected.extend(number.to_le_bytes());
        expected.extend(bytes);
    }
    assert_eq!(read.locals[0], xxh3_64(&expected));
    let other = keys(&[vec![pair("mm-0", 4)], vec![pair("mm-0", -1)]]);
    let other = hashed(&stored(&other, None, None)).unwrap();
    assert_ne!(other.locals[0], read.locals[0], "the offset counts");
    assert_eq!(other.locals[1], read.locals[1], "the adapter does not");
    let offset: Write = Box::new(|out| {
        let _ = write_uint(out, 3).unwrap();
    });
    let flat = vec![text("mm-0"), offset];
    assert_eq!(hashed(&stored(&keys(&[flat, vec![]]), None, None)).unwrap().salt, None);
}

#[test]
fn equal_extras_give_equal_hashes_however_wide_they_are_written() {
    let narrow = keys(&[vec![pair("mm-0", 3)], vec![]]);
    let wide: Write = Box::new(|out| {
        out.extend([0xDC, 0, 2, 0xD9, 4]);
        out.extend(b"mm-0");
        out.extend([0xD3, 0, 0, 0, 0, 0, 0, 0, 3]);
    });
    let wide = keys(&[vec![wide], vec![]]);
    assert_eq!(hashed(&stored(&narrow, Some(1), None)), hashed(&stored(&wide, Some(1), None)));
}

#[test]
fn keys_that_do_not_belong_to_the_blocks_are_refused() {
    for wrong in [keys(&[vec![]]), vec![0x92, 0xC0, 0x05], vec![0xA1, b'x'], vec![0x92, 0xC0]] {
        assert_eq!(hashed(&stored(&wrong, None, None)), None, "{wrong:?}");
    }
}
