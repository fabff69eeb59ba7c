use nebula_route::block::local;

use super::super::decode::{self, tests as captured};
use super::*;

fn stored(block_size: u32, group: Option<u32>, kind: Option<&'static str>) -> Stored<'static> {
    Stored {
        hashes: vec![1],
        parent: None,
        tokens: (0..block_size).collect(),
        block_size,
        medium: Medium::Gpu,
        lora_id: None,
        lora_name: None,
        extra_keys: None,
        group,
        kind,
    }
}

fn read(layout: &mut Layout, stored: Stored<'_>) -> Vec<(Medium, Event)> {
    let mut out = Vec::new();
    let used = layout.read(&Change::Stored(stored), &mut out);
    assert_eq!(used, matches!(out.last(), Some((_, Event::Stored { .. }))));
    out
}

fn seed_of(events: &[(Medium, Event)]) -> u64 {
    match events {
        [(_, Event::Stored { seed, .. })] => *seed,
        other => panic!("one event, not {other:?}"),
    }
}

#[test]
fn a_captured_prompt_becomes_the_chain_that_its_tokens_have() {
    let samples = captured::vllm();
    let (_, payload) = captured::frames(&samples["plain"][5]["frames_hex"]);
    let batch = decode::batch(&payload).unwrap();
    let (mut layout, mut out) = (Layout::default(), Vec::new());
    assert!(layout.read(&batch.changes[0], &mut out));
    let Change::Stored(said) = &batch.changes[0] else { panic!("stored") };
    let scope = Scope { model: "", cache_salt: Some("s1"), block: 32, kind: KeyKind::Tokens };
    let expected = Event::Stored {
        engine_hashes: said.hashes.clone(),
        parent: None,
        seed: scope.seed(),
        locals: said.tokens.chunks(32).map(local).collect(),
    };
    assert_eq!(out, [(Medium::Gpu, expected)]);
    assert_eq!(layout.block_size(), Some(32));
}

#[test]
fn an_adapters_name_is_the_model_of_its_prompts_and_the_base_model_has_none() {
    let scope = |model| Scope { model, cache_salt: None, block: 2, kind: KeyKind::Tokens };
    let base = read(&mut Layout::default(), Stored { lora_id: Some(0), ..stored(2, None, None) });
    assert_eq!(seed_of(&base), scope("").seed());
    let lora = Stored { lora_id: Some(3), lora_name: Some("fr"), ..stored(2, None, None) };
    assert_eq!(seed_of(&read(&mut Layout::default(), lora)), scope("fr").seed());
    let nameless = Stored { lora_id: Some(3), ..stored(2, None, None) };
    assert_eq!(read(&mut Layout::default(), nameless), []);
}

#[test]
fn only_full_attention_counts_and_of_that_the_lowest_group() {
    let mut layout = Layout::default();
    for kind in ["sliding_window", "mamba", "chunked_local_attention", "unknown"] {
        assert_eq!(read(&mut layout, stored(4, Some(0), Some(kind))), [], "{kind}");
    }
    for kind in [None, Some("full_attention"), Some("mla_attention")] {
        assert_eq!(read(&mut layout, stored(4, Some(2), kind)).len(), 1);
    }
    assert_eq!(read(&mut layout, stored(4, Some(3), None)), []);
    let removed = |group| Change::Removed { hashes: vec![1], medium: Medium::Gpu, group };
    let mut out = Vec::new();
    assert!(!layout.read(&removed(Some(3)), &mut out));
    assert!(layout.read(&removed(Some(2)), &mut out));
    assert!(layout.read(&removed(None), &mut out));
    assert_eq!(out.len(), 2);
    let lower = read(&mut layout, stored(4, Some(1), None));
    assert_eq!(lower[0], (Medium::Gpu, Event::Cleared));
    assert_eq!(lower.len(), 2);
    assert_eq!(read(&mut layout, stored(4, Some(2), None)), []);
}

#[test]
fn blocks_of_another_size_are_passed_over_and_a_larger_one_is_the_true_one() {
    let mut layout = Layout::default();
    assert_eq!(read(&mut layout, stored(16, None, None)).len(), 1);
    assert_eq!(read(&mut layout, stored(8, None, None)), []);
    assert_eq!(layout.block_size(), Some(16));
    let larger = read(&mut layout, stored(64, None, None));
    assert_eq!((larger.len(), &larger[0].1), (2, &Event::Cleared));
    assert_eq!(read(&mut layout, stored(16, None, None)), []);
    assert_eq!(layout.block_size(), Some(64));
}

#[test]
fn lengths_that_do_not_agree_are_passed_over() {
    let mut layout = Layout::default();
    let short = Stored { tokens: vec![1; 7], ..stored(8, None, None) };
    assert_eq!(read(&mut layout, short), []);
    let masked = Stored { hashes: vec![1], tokens: vec![1; 16], ..stored(8, None, None) };
    assert_eq!(read(&mut layout, masked), []);
    assert_eq!(read(&mut layout, Stored { hashes: Vec::new(), ..stored(0, None, None) }), []);
    assert_eq!(layout.block_size(), None);
}

#[test]
fn other_media_keep_their_name_and_teach_nothing() {
    let mut layout = Layout::default();
    let moved = Stored {
        tokens: Vec::new(),
        block_size: 0,
        medium: Medium::Cpu,
        hashes: vec![4, 5],
        ..stored(0, None, None)
    };
    let expected =
        Event::Stored { engine_hashes: vec![4, 5], parent: None, seed: 0, locals: Vec::new() };
    assert_eq!(read(&mut layout, moved), [(Medium::Cpu, expected)]);
    let whole = Stored { medium: Medium::Storage, ..stored(8, None, None) };
    assert_eq!(read(&mut layout, whole)[0].0, Medium::Storage);
    assert_eq!(layout.block_size(), None);
    let unknown = Stored { medium: Medium::Other, ..stored(8, None, None) };
    assert_eq!(read(&mut layout, unknown), []);
}
