use super::*;

const TEXT: &[u8] = b"the quick brown fox jumps over the lazy dog";

fn scope(kind: KeyKind, block: u32) -> Scope<'static> {
    Scope { model: "m", cache_salt: None, block, kind }
}

#[test]
fn a_text_has_the_hashes_of_the_reference() {
    let scope = Scope {
        model: "meta-llama/Llama-3.1-8B-Instruct",
        cache_salt: Some("tenant-1"),
        block: 8,
        kind: KeyKind::Text,
    };
    let golden = [
        17_688_603_501_877_499_400,
        4_857_695_146_963_056_668,
        13_010_451_483_302_032_819,
        15_565_065_537_673_456_279,
        7_214_976_109_331_031_611,
    ];
    assert_eq!(Chain::from_text(&scope, TEXT, 4.0).hashes(), golden);
}

#[test]
fn tokens_have_the_hashes_of_the_reference() {
    let tokens: Vec<u32> = (0..10).collect();
    let golden = [10_577_405_328_699_641_591, 11_475_978_618_523_205_046];
    assert_eq!(Chain::from_tokens(&scope(KeyKind::Tokens, 4), &tokens).hashes(), golden);
}

#[test]
fn an_event_can_build_the_same_chain_from_its_parts() {
    let scope = scope(KeyKind::Tokens, 4);
    let tokens: Vec<u32> = (0..8).collect();
    let first = link(scope.seed(), local(&tokens[..4]));
    let second = link(first, local(&tokens[4..]));
    assert_eq!(Chain::from_tokens(&scope, &tokens).hashes(), [first, second]);
}

#[test]
fn a_block_that_is_not_full_is_dropped() {
    let text =
        |len: usize| Chain::from_text(&scope(KeyKind::Text, 8), &TEXT[..len], 4.0).hashes().len();
    assert_eq!([text(0), text(7), text(8), text(15), text(16)], [0, 0, 1, 1, 2]);
}

#[test]
fn a_shared_prefix_is_shared_and_no_more() {
    let mut other = TEXT.to_vec();
    other[17] = b'F';
    let scope = scope(KeyKind::Text, 8);
    let (one, two) = (Chain::from_text(&scope, TEXT, 4.0), Chain::from_text(&scope, &other, 4.0));
    assert_eq!(one.hashes()[..2], two.hashes()[..2]);
    assert!(one.hashes()[2..].iter().zip(&two.hashes()[2..]).all(|(one, two)| one != two));
}

#[test]
fn every_part_of_the_scope_counts() {
    let base = scope(KeyKind::Text, 8);
    let others = [
        Scope { model: "n", ..base },
        Scope { cache_salt: Some("s"), ..base },
        Scope { block: 4, ..base },
        Scope { kind: KeyKind::Tokens, ..base },
        Scope { model: "ms", cache_salt: Some(""), ..base },
    ];
    for other in others {
        assert_ne!(base.seed(), other.seed(), "{other:?}");
    }
    assert_ne!(
        Scope { model: "ab", cache_salt: Some("c"), ..base }.seed(),
        Scope { model: "a", cache_salt: Some("bc"), ..base }.seed(),
        "the parts are not merely written one after the other"
    );
    assert_eq!(base.seed(), Scope { cache_salt: Some(""), ..base }.seed(), "an empty salt is none");
}

#[test]
fn tokens_are_counted_or_estimated_and_never_above_the_prompt() {
    let text = Chain::from_text(&scope(KeyKind::Text, 8), TEXT, 4.0);
    assert_eq!(text.prompt_tokens(), 11, "43 bytes at 4 bytes a token");
    assert_eq!([0, 1, 5, 6, u32::MAX].map(|blocks| text.tokens(blocks)), [0, 2, 10, 11, 11]);

    let tokens = Chain::from_tokens(&scope(KeyKind::Tokens, 16), &[7; 40]);
    assert_eq!([0, 1, 2, 3].map(|blocks| tokens.tokens(blocks)), [0, 16, 32, 32]);
    let whole = Chain::from_tokens(&scope(KeyKind::Tokens, 16), &[7; 32]);
    assert_eq!([1, 2].map(|blocks| whole.tokens(blocks)), [16, 16], "the last token is computed");

    assert_eq!((Chain::empty(99).prompt_tokens(), Chain::empty(99).tokens(1)), (99, 0));
}

#[test]
fn tokens_and_then_text_share_with_what_begins_alike() {
    let scope = scope(KeyKind::Tokens, 4);
    let tokens: Vec<u32> = (0..10).collect();
    let plain = Chain::from_tokens(&scope, &tokens);
    let of = |text: &[u8]| Chain::from_tokens_then_text(&scope, &tokens, text, 4.0);
    let (one, other) =
        (of(b"a picture, and what is said of it"), of(b"a picture, and another remark"));
    let alike = |a: &Chain, b: &Chain| {
        a.hashes().iter().zip(b.hashes()).take_while(|(a, b)| a == b).count()
    };
    assert!(plain.is_exact() && !one.is_exact());
    assert_eq!(alike(&plain, &one), plain.hashes().len());
    assert_eq!(alike(&one, &other), 3, "two blocks of tokens, and the first 8 bytes of text");
    assert_eq!(one.prompt_tokens(), 10 + 8);
}

#[test]
fn strange_sizes_give_empty_chains_and_no_panic() {
    for kind in [KeyKind::Text, KeyKind::Tokens] {
        assert!(Chain::from_text(&scope(kind, 0), TEXT, 4.0).hashes().is_empty());
        assert!(Chain::from_tokens(&scope(kind, 0), &[1, 2, 3]).hashes().is_empty());
        assert!(Chain::from_text(&scope(kind, u32::MAX), TEXT, f32::NAN).hashes().is_empty());
    }
    assert_eq!(Chain::from_text(&scope(KeyKind::Text, 8), TEXT, 0.0).prompt_tokens(), u32::MAX);
}
