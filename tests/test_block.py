"""The key of a prompt, once more in Python: the core must agree bit for bit."""

import struct
from collections.abc import Iterable

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from nebula_router.core import chain_from_text, chain_from_tokens

TOKENS, TEXT = 0, 1
NAMES = st.text(max_size=40)
SALTS = st.none() | NAMES
BLOCKS = st.integers(min_value=1, max_value=70)


def seed(kind: int, model: str, salt: str | None, block: int) -> int:
    parts = struct.pack("<BI", kind, block)
    for text in (model.encode(), (salt or "").encode()):
        parts += struct.pack("<I", len(text)) + text
    return xxhash.xxh3_64_intdigest(parts)


def chain(before: int, blocks: Iterable[bytes]) -> list[int]:
    hashes = []
    for block in blocks:
        before = xxhash.xxh3_64_intdigest(struct.pack("<QQ", before, xxhash.xxh3_64_intdigest(block)))
        hashes.append(before)
    return hashes


def full_blocks(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data) - size + 1, size)]


@given(model=NAMES, salt=SALTS, block=BLOCKS, text=st.binary(max_size=600))
def test_a_text_has_the_key_of_the_reference(model: str, salt: str | None, block: int, text: bytes) -> None:
    expected = chain(seed(TEXT, model, salt, block), full_blocks(text, block))
    assert chain_from_text(model, salt, block, text) == expected


@given(
    model=NAMES,
    salt=SALTS,
    block=BLOCKS,
    tokens=st.lists(st.integers(min_value=0, max_value=2**32 - 1), max_size=150),
)
def test_tokens_have_the_key_of_the_reference(model: str, salt: str | None, block: int, tokens: list[int]) -> None:
    data = struct.pack(f"<{len(tokens)}I", *tokens)
    expected = chain(seed(TOKENS, model, salt, block), full_blocks(data, 4 * block))
    assert chain_from_tokens(model, salt, block, tokens) == expected


def test_the_key_does_not_change_between_releases() -> None:
    text = b"the quick brown fox jumps over the lazy dog"
    assert chain_from_text("meta-llama/Llama-3.1-8B-Instruct", "tenant-1", 8, text) == [
        17688603501877499400,
        4857695146963056668,
        13010451483302032819,
        15565065537673456279,
        7214976109331031611,
    ]
    assert chain_from_tokens("m", None, 4, range(10)) == [10577405328699641591, 11475978618523205046]


def test_a_block_of_no_size_gives_no_chain() -> None:
    assert chain_from_text("m", None, 0, b"text") == []
    assert chain_from_tokens("m", None, 0, [1, 2, 3]) == []


@pytest.mark.parametrize("token", [-1, 2**32])
def test_a_number_that_is_no_token_id_is_refused(token: int) -> None:
    with pytest.raises(OverflowError):
        chain_from_tokens("m", None, 1, [token])
