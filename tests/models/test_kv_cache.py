from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from checkpoints import tiny_config
from hypothesis import given
from hypothesis import strategies as st
from numerics_oracles import same_bits, to_bf16

from penstock.architectures.registry import parse_config
from penstock.compute.kernels import F32, Kernels
from penstock.errors import UsageError
from penstock.models.kv_cache import BLOCK_SLOTS, KvCache
from penstock.models.kv_planes import KvShape

KERNELS = Kernels(1)
SHAPES = {dtype: KvShape(layers=2, kv_heads=3, head_dim=4, dtype=dtype) for dtype in ("bf16", "f32")}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> KvShape:
    return SHAPES[request.param]


def vectors(shape: KvShape, slot: int, layer: int) -> tuple[F32, F32]:
    """A key and a value [1, kv_heads, head_dim], different for every slot and layer, exact in BF16."""
    rng = np.random.default_rng([slot, layer])
    k, v = to_bf16(rng.standard_normal((2, 1, shape.kv_heads, shape.head_dim)).astype(np.float32))
    return k, v


def store(cache: KvCache, slots: range) -> None:
    cache.reserve(slots.stop)
    for layer in range(cache.shape.layers):
        for slot in slots:
            KERNELS.store_kv(*vectors(cache.shape, slot, layer), np.array([slot], np.int32), cache.layer(layer))


def attended(cache: KvCache, layer: int, path: list[int]) -> F32:
    """What a query that sees the slots of `path` gets: it depends on all of their keys and values."""
    shape = cache.shape
    q = np.random.default_rng(1).standard_normal((1, shape.kv_heads, shape.head_dim)).astype(np.float32)
    out, offsets = np.empty_like(q), np.array([0, len(path)], np.int32)
    slots = np.array(path, np.int32)
    KERNELS.attention(q, np.zeros(1, np.int32), offsets, slots, 0.5, cache.layer(layer), out)
    return out


def test_bytes(shape: KvShape) -> None:
    item = {"bf16": 2, "f32": 4}[shape.dtype]
    assert shape.plane_bytes == 3 * BLOCK_SLOTS * 4 * item
    assert shape.block_bytes == 2 * 2 * shape.plane_bytes
    assert [shape.bytes_for(n) // shape.block_bytes for n in (0, 1, BLOCK_SLOTS, BLOCK_SLOTS + 1)] == [0, 1, 1, 2]


def test_the_shape_of_a_model() -> None:
    config = parse_config(tiny_config(num_key_value_heads=2, head_dim=6), "config.json")
    assert KvShape.of(config, "f32", 5) == KvShape(layers=5, kv_heads=2, head_dim=6, dtype="f32")


@pytest.mark.parametrize("dtype", ["f16", "bfloat16", "", "BF16"])
def test_unknown_types(dtype: str) -> None:
    with pytest.raises(UsageError) as caught:
        KvShape.of(parse_config(tiny_config(), "config.json"), dtype, 2)
    assert caught.value.problem == f"kv_dtype={dtype!r} is not known."
    assert caught.value.remedy == "Use one of: bf16, f32."


def test_the_layout_of_a_block(shape: KvShape) -> None:
    """[layers][key, value][kv_heads][BLOCK_SLOTS][head_dim], as the kernels are told."""
    cache = KvCache(shape)
    store(cache, range(BLOCK_SLOTS + 3))
    for slot in (0, 5, BLOCK_SLOTS - 1, BLOCK_SLOTS, BLOCK_SLOTS + 2):
        raw = cache._blocks[slot // BLOCK_SLOTS]
        items: Any = raw.view(np.uint16).astype(np.uint32) << 16 if shape.dtype == "bf16" else raw.view(np.uint32)
        block = items.view(np.float32).reshape(2, 2, 3, BLOCK_SLOTS, 4)
        for layer in range(2):
            for plane, expected in enumerate(vectors(shape, slot, layer)):
                assert same_bits(block[layer, plane, :, slot % BLOCK_SLOTS], expected[0])


def test_growing_moves_nothing(shape: KvShape) -> None:
    cache = KvCache(shape)
    assert cache.nbytes == 0
    store(cache, range(10))
    before, address = attended(cache, 1, list(range(10))), cache._blocks[0].ctypes.data
    cache.reserve(5 * BLOCK_SLOTS + 1)
    assert cache.nbytes == 6 * shape.block_bytes
    assert cache._blocks[0].ctypes.data == address
    assert same_bits(attended(cache, 1, list(range(10))), before)
    cache.reserve(3)
    assert cache.nbytes == 6 * shape.block_bytes


def test_truncating_frees_whole_blocks(shape: KvShape) -> None:
    cache = KvCache(shape)
    store(cache, range(3 * BLOCK_SLOTS))
    before = attended(cache, 0, list(range(BLOCK_SLOTS + 1)))
    for length, blocks in ((3 * BLOCK_SLOTS, 3), (2 * BLOCK_SLOTS + 1, 3), (2 * BLOCK_SLOTS, 2), (BLOCK_SLOTS + 1, 2)):
        cache.truncate(length)
        assert (cache.length, cache.nbytes) == (length, blocks * shape.block_bytes)
    assert same_bits(attended(cache, 0, list(range(BLOCK_SLOTS + 1))), before)
    cache.truncate(0)
    assert (cache.length, cache.nbytes) == (0, 0)


@given(
    committed=st.integers(0, 2 * BLOCK_SLOTS + 3),
    nodes=st.integers(1, BLOCK_SLOTS + 5),
    dtype=st.sampled_from(["bf16", "f32"]),
    data=st.data(),
)
def test_keeping_a_path_is_as_if_it_alone_had_been_stored(committed: int, nodes: int, dtype: str, data: Any) -> None:
    shape = SHAPES[dtype]
    kept = sorted(data.draw(st.sets(st.integers(committed, committed + nodes - 1))))
    cache = KvCache(shape)
    store(cache, range(committed + nodes))
    cache.length = committed
    path = [*range(committed), *kept]
    before = [attended(cache, layer, path) for layer in range(2)] if path else []
    cache.keep(np.array(kept, np.int64))
    assert cache.length == committed + len(kept)
    assert cache.nbytes == shape.bytes_for(cache.length)
    for layer, expected in enumerate(before):
        assert same_bits(attended(cache, layer, list(range(cache.length))), expected)


def test_a_cache_goes_on_after_keeping(shape: KvShape) -> None:
    cache = KvCache(shape)
    store(cache, range(40))
    cache.length = 30
    cache.keep(np.array([31, 35]))
    store(cache, range(32, 34))
    plain = KvCache(shape)
    store(plain, range(36))
    assert same_bits(attended(cache, 1, [30, 31, 32, 33]), attended(plain, 1, [31, 35, 32, 33]))


class TestAdoption:
    """Caches of sequences that begin alike share blocks, and go on by themselves."""

    def test_blocks_are_shared_and_count_once(self, shape: KvShape) -> None:
        donor, heir = KvCache(shape), KvCache(shape)
        store(donor, range(3 * BLOCK_SLOTS + 5))
        donor.truncate(3 * BLOCK_SLOTS + 5)
        heir.adopt(donor, 2)
        assert (heir.length, heir.adopted, heir.own_bytes) == (2 * BLOCK_SLOTS, 2, 0)
        assert heir.block_ids == donor.block_ids[:2]
        path = list(range(2 * BLOCK_SLOTS))
        assert same_bits(attended(heir, 1, path), attended(donor, 1, path))
        store(heir, range(2 * BLOCK_SLOTS, 2 * BLOCK_SLOTS + 3))
        assert heir.own_bytes == shape.block_bytes

    def test_each_grows_by_itself(self, shape: KvShape) -> None:
        donor, heir = KvCache(shape), KvCache(shape)
        store(donor, range(2 * BLOCK_SLOTS))
        donor.truncate(2 * BLOCK_SLOTS)
        heir.adopt(donor, 1)
        path = list(range(2 * BLOCK_SLOTS))
        before = attended(donor, 0, path)
        heir.reserve(2 * BLOCK_SLOTS)
        for slot in range(BLOCK_SLOTS, 2 * BLOCK_SLOTS):
            KERNELS.store_kv(*vectors(shape, slot + 1000, 0), np.array([slot], np.int32), heir.layer(0))
        assert same_bits(attended(donor, 0, path), before)
        assert not same_bits(attended(heir, 0, path), before)

    @pytest.mark.parametrize("who", ["donor", "heir"])
    @pytest.mark.parametrize("length", [1, BLOCK_SLOTS - 1, BLOCK_SLOTS + 7])
    def test_going_back_into_a_shared_block_leaves_the_other_alone(self, shape: KvShape, who: str, length: int) -> None:
        donor, heir = KvCache(shape), KvCache(shape)
        store(donor, range(2 * BLOCK_SLOTS))
        donor.truncate(2 * BLOCK_SLOTS)
        heir.adopt(donor, 2)
        back, other = (donor, heir) if who == "donor" else (heir, donor)
        path = list(range(2 * BLOCK_SLOTS))
        before = attended(other, 1, path)
        back.truncate(length)
        assert same_bits(attended(back, 1, path[:length]), attended(other, 1, path[:length]))
        KERNELS.store_kv(*vectors(shape, 999, 1), np.array([length], np.int32), back.layer(1))
        assert same_bits(attended(other, 1, path), before)
        assert back.adopted <= length // BLOCK_SLOTS

    def test_a_donor_that_is_gone(self, shape: KvShape) -> None:
        donor, heir = KvCache(shape), KvCache(shape)
        store(donor, range(BLOCK_SLOTS))
        before = attended(donor, 0, list(range(BLOCK_SLOTS)))
        heir.adopt(donor, 1)
        donor.truncate(0)
        del donor
        assert same_bits(attended(heir, 0, list(range(BLOCK_SLOTS))), before)
