"""Names of blocks: the same for what gives the same bits, and for nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.cases import random_tokens
from penstock.models.kv_cache import BLOCK_SLOTS
from penstock.prefix_cache import keys
from penstock.prefix_cache.keys import block_keys, root_key

ROOT = bytes(32)
KV = {"layers": 2, "kv_heads": 2, "head_dim": 8, "dtype": "bf16"}


@given(length=st.integers(BLOCK_SLOTS, 5 * BLOCK_SLOTS), place=st.integers(0), seed=st.integers(0, 9))
def test_a_token_changes_the_keys_from_its_block_on(length: int, place: int, seed: int) -> None:
    tokens, count = random_tokens(length, 90, seed), length // BLOCK_SLOTS
    other = list(tokens)
    other[place % length] += 1
    first = place % length // BLOCK_SLOTS
    before, after = block_keys(ROOT, tokens, count), block_keys(ROOT, other, count)
    assert len(set(before)) == count
    assert before[:first] == after[:first]
    assert not set(before[first:]) & set(after[first:])


def test_the_first_keys_are_those_of_the_first_tokens() -> None:
    tokens = random_tokens(4 * BLOCK_SLOTS, 90, 1)
    assert block_keys(ROOT, tokens, 4)[:2] == block_keys(ROOT, tokens[: 2 * BLOCK_SLOTS + 5], 2)
    assert block_keys(ROOT, tokens, 0) == []


def test_all_that_the_bits_depend_on_is_in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    roots = {root_key(b"a", KV), root_key(b"b", KV), root_key(b"a", KV, "d1"), root_key(b"a", KV, "d2")}
    roots |= {root_key(b"a", KV | {"dtype": "f32"}), root_key(b"a", KV | {"layers": 3})}
    monkeypatch.setattr(keys, "version", lambda name: "0.0.0")
    roots.add(root_key(b"a", KV))
    monkeypatch.setattr(keys, "BITS", keys.BITS + 1)
    roots.add(root_key(b"a", KV))
    assert len(roots) == 8
