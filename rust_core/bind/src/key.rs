//! The index's key, for the reference implementation in the tests.

use nebula_route::{Chain, KeyKind, Scope};
use pyo3::prelude::*;

/// The rolling hashes of a text's blocks of `block` bytes.
#[pyfunction]
#[pyo3(signature = (model, salt, block, text))]
pub(crate) fn chain_from_text(
    model: &str,
    salt: Option<&str>,
    block: u32,
    text: &[u8],
) -> Vec<u64> {
    let scope = Scope { model, cache_salt: salt, block, kind: KeyKind::Text };
    Chain::from_text(&scope, text, 1.0).hashes().to_vec()
}

/// The rolling hashes of a token sequence's blocks of `block` tokens.
#[pyfunction]
#[pyo3(signature = (model, salt, block, tokens))]
#[expect(clippy::needless_pass_by_value, reason = "PyO3 hands lists over by value")]
pub(crate) fn chain_from_tokens(
    model: &str,
    salt: Option<&str>,
    block: u32,
    tokens: Vec<u32>,
) -> Vec<u64> {
    let scope = Scope { model, cache_salt: salt, block, kind: KeyKind::Tokens };
    Chain::from_tokens(&scope, &tokens).hashes().to_vec()
}
