"""The bytes of blocks: where keys and values are, and that what stages are told leaves them as they have to be."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.checkpoints import tiny_config
from helpers.numerics_oracles import same_bits, to_bf16
from penstock.architectures.registry import parse_config
from penstock.compute.kernels import F32, U8, Kernels, KvLayer
from penstock.errors import UsageError
from penstock.models.kv_cache import BLOCK_SLOTS, Blocks, KvCache
from penstock.models.kv_planes import KvPlanes, KvShape

KERNELS = Kernels(1)
SHAPES = {dtype: KvShape(layers=2, kv_heads=3, head_dim=4, dtype=dtype) for dtype in ("bf16", "f32")}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> KvShape:
    return SHAPES[request.param]


class Stage:
    """Caches, and the planes of one stage that has all layers."""

    def __init__(self, shape: KvShape) -> None:
        self.blocks = Blocks()
        self.planes = KvPlanes(shape, range(shape.layers), self.blocks.outbox())

    def new_cache(self) -> KvCache:
        return KvCache(self.blocks)

    def layer(self, cache: KvCache, layer: int) -> KvLayer:
        """The kernels' view, after what was to be done before."""
        self.settle()
        return self.planes.layer(layer, self.planes.addresses(cache.block_names))

    def settle(self) -> None:
        self.planes.settle()

    @property
    def nbytes(self) -> int:
        """Of all blocks that any cache has had bytes for and still has."""
        self.settle()
        return self.planes.nbytes


def vectors(shape: KvShape, slot: int, layer: int) -> tuple[F32, F32]:
    """A key and a value [1, kv_heads, head_dim], different for every slot and layer, exact in BF16."""
    rng = np.random.default_rng([slot, layer])
    k, v = to_bf16(rng.standard_normal((2, 1, shape.kv_heads, shape.head_dim)).astype(np.float32))
    return k, v


def store(stage: Stage, cache: KvCache, slots: range) -> None:
    cache.reserve(slots.stop)
    shape = stage.planes.shape
    for layer in range(shape.layers):
        for slot in slots:
            KERNELS.store_kv(*vectors(shape, slot, layer), np.array([slot], np.int32), stage.layer(cache, layer))


def attended(stage: Stage, cache: KvCache, layer: int, path: list[int]) -> F32:
    """What a query that sees the slots of `path` gets: it depends on all of their keys and values."""
    shape = stage.planes.shape
    q = np.random.default_rng(1).standard_normal((1, shape.kv_heads, shape.head_dim)).astype(np.float32)
    out, offsets = np.empty_like(q), np.array([0, len(path)], np.int32)
    slots = np.array(path, np.int32)
    KERNELS.attention(q, np.zeros(1, np.int32), offsets, slots, 0.5, stage.layer(cache, layer), out)
    return out


def address(stage: Stage, cache: KvCache, block: int) -> int:
    return int(stage.planes.addresses([cache.block_names[block]])[0])


def raw_block(stage: Stage, cache: KvCache, block: int) -> U8:
    """The bytes of one of a cache's blocks, where they are."""
    size = stage.planes.shape.block_bytes
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address(stage, cache, block)), np.uint8)


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
    stage = Stage(shape)
    cache = stage.new_cache()
    store(stage, cache, range(BLOCK_SLOTS + 3))
    for slot in (0, 5, BLOCK_SLOTS - 1, BLOCK_SLOTS, BLOCK_SLOTS + 2):
        raw = raw_block(stage, cache, slot // BLOCK_SLOTS)
        items: Any = raw.view(np.uint16).astype(np.uint32) << 16 if shape.dtype == "bf16" else raw.view(np.uint32)
        block = items.view(np.float32).reshape(2, 2, 3, BLOCK_SLOTS, 4)
        for layer in range(2):
            for plane, expected in enumerate(vectors(shape, slot, layer)):
                assert same_bits(block[layer, plane, :, slot % BLOCK_SLOTS], expected[0])


def test_growing_moves_nothing(shape: KvShape) -> None:
    stage = Stage(shape)
    cache = stage.new_cache()
    assert stage.nbytes == 0
    store(stage, cache, range(10))
    before, first = attended(stage, cache, 1, list(range(10))), address(stage, cache, 0)
    cache.reserve(5 * BLOCK_SLOTS + 1)
    stage.layer(cache, 0)
    assert stage.nbytes == 6 * shape.block_bytes
    assert address(stage, cache, 0) == first
    assert same_bits(attended(stage, cache, 1, list(range(10))), before)
    cache.reserve(3)
    stage.layer(cache, 0)
    assert stage.nbytes == 6 * shape.block_bytes


def test_truncating_frees_whole_blocks(shape: KvShape) -> None:
    stage = Stage(shape)
    cache = stage.new_cache()
    store(stage, cache, range(3 * BLOCK_SLOTS))
    before = attended(stage, cache, 0, list(range(BLOCK_SLOTS + 1)))
    for length, blocks in ((3 * BLOCK_SLOTS, 3), (2 * BLOCK_SLOTS + 1, 3), (2 * BLOCK_SLOTS, 2), (BLOCK_SLOTS + 1, 2)):
        cache.truncate(length)
        assert (cache.length, stage.nbytes) == (length, blocks * shape.block_bytes)
    assert same_bits(attended(stage, cache, 0, list(range(BLOCK_SLOTS + 1))), before)
    cache.truncate(0)
    assert (cache.length, stage.nbytes) == (0, 0)


@given(
    committed=st.integers(0, 2 * BLOCK_SLOTS + 3),
    nodes=st.integers(1, BLOCK_SLOTS + 5),
    dtype=st.sampled_from(["bf16", "f32"]),
    data=st.data(),
)
def test_keeping_a_path_is_as_if_it_alone_had_been_stored(committed: int, nodes: int, dtype: str, data: Any) -> None:
    shape = SHAPES[dtype]
    kept = sorted(data.draw(st.sets(st.integers(committed, committed + nodes - 1))))
    stage = Stage(shape)
    cache = stage.new_cache()
    store(stage, cache, range(committed + nodes))
    cache.length = committed
    path = [*range(committed), *kept]
    before = [attended(stage, cache, layer, path) for layer in range(2)] if path else []
    cache.keep(kept)
    assert cache.length == committed + len(kept)
    assert stage.nbytes == shape.bytes_for(cache.length)
    for layer, expected in enumerate(before):
        assert same_bits(attended(stage, cache, layer, list(range(cache.length))), expected)


def test_a_cache_goes_on_after_keeping(shape: KvShape) -> None:
    stage = Stage(shape)
    cache = stage.new_cache()
    store(stage, cache, range(40))
    cache.length = 30
    cache.keep([31, 35])
    store(stage, cache, range(32, 34))
    plain = stage.new_cache()
    store(stage, plain, range(36))
    assert same_bits(attended(stage, cache, 1, [30, 31, 32, 33]), attended(stage, plain, 1, [31, 35, 32, 33]))


class TestAdoption:
    """Caches of sequences that begin alike share blocks, and go on by themselves."""

    def test_blocks_are_shared_and_count_once(self, shape: KvShape) -> None:
        stage = Stage(shape)
        donor, heir = stage.new_cache(), stage.new_cache()
        store(stage, donor, range(3 * BLOCK_SLOTS + 5))
        donor.truncate(3 * BLOCK_SLOTS + 5)
        heir.adopt(donor, 2)
        assert (heir.length, heir.adopted, heir.own_blocks) == (2 * BLOCK_SLOTS, 2, 0)
        assert heir.block_names == donor.block_names[:2]
        path = list(range(2 * BLOCK_SLOTS))
        assert same_bits(attended(stage, heir, 1, path), attended(stage, donor, 1, path))
        assert stage.nbytes == 4 * shape.block_bytes
        store(stage, heir, range(2 * BLOCK_SLOTS, 2 * BLOCK_SLOTS + 3))
        assert heir.own_blocks == 1
        assert stage.nbytes == 5 * shape.block_bytes

    def test_each_grows_by_itself(self, shape: KvShape) -> None:
        stage = Stage(shape)
        donor, heir = stage.new_cache(), stage.new_cache()
        store(stage, donor, range(2 * BLOCK_SLOTS))
        donor.truncate(2 * BLOCK_SLOTS)
        heir.adopt(donor, 1)
        path = list(range(2 * BLOCK_SLOTS))
        before = attended(stage, donor, 0, path)
        heir.reserve(2 * BLOCK_SLOTS)
        for slot in range(BLOCK_SLOTS, 2 * BLOCK_SLOTS):
            KERNELS.store_kv(*vectors(shape, slot + 1000, 0), np.array([slot], np.int32), stage.layer(heir, 0))
        assert same_bits(attended(stage, donor, 0, path), before)
        assert not same_bits(attended(stage, heir, 0, path), before)

    @pytest.mark.parametrize("who", ["donor", "heir"])
    @pytest.mark.parametrize("length", [1, BLOCK_SLOTS - 1, BLOCK_SLOTS + 7])
    def test_going_back_into_a_shared_block_leaves_the_other_alone(self, shape: KvShape, who: str, length: int) -> None:
        stage = Stage(shape)
        donor, heir = stage.new_cache(), stage.new_cache()
        store(stage, donor, range(2 * BLOCK_SLOTS))
        donor.truncate(2 * BLOCK_SLOTS)
        heir.adopt(donor, 2)
        back, other = (donor, heir) if who == "donor" else (heir, donor)
        path = list(range(2 * BLOCK_SLOTS))
        before = attended(stage, other, 1, path)
        back.truncate(length)
        assert same_bits(attended(stage, back, 1, path[:length]), attended(stage, other, 1, path[:length]))
        KERNELS.store_kv(*vectors(shape, 999, 1), np.array([length], np.int32), stage.layer(back, 1))
        assert same_bits(attended(stage, other, 1, path), before)
        assert back.adopted <= length // BLOCK_SLOTS

    def test_a_donor_that_is_gone(self, shape: KvShape) -> None:
        stage = Stage(shape)
        donor, heir = stage.new_cache(), stage.new_cache()
        store(stage, donor, range(BLOCK_SLOTS))
        before = attended(stage, donor, 0, list(range(BLOCK_SLOTS)))
        heir.adopt(donor, 1)
        donor.truncate(0)
        del donor
        assert stage.nbytes == shape.block_bytes
        assert same_bits(attended(stage, heir, 0, list(range(BLOCK_SLOTS))), before)


def test_blocks_that_nothing_was_written_to_take_no_bytes(shape: KvShape) -> None:
    stage = Stage(shape)
    donor, heir = stage.new_cache(), stage.new_cache()
    donor.reserve(3 * BLOCK_SLOTS)
    donor.truncate(2 * BLOCK_SLOTS)
    heir.adopt(donor, 1)
    heir.truncate(5)
    assert stage.nbytes == 0


def test_a_slot_goes_to_another_cache(shape: KvShape) -> None:
    stage = Stage(shape)
    cache, other = stage.new_cache(), stage.new_cache()
    store(stage, cache, range(BLOCK_SLOTS + 2))
    other.reserve(3)
    data = stage.planes.read_slot(cache.block_names, BLOCK_SLOTS + 1)
    assert data.shape == (shape.layers, shape.slot_bytes // shape.layers)
    stage.planes.write_slot(other.block_names, 2, data)
    assert np.array_equal(stage.planes.read_slot(other.block_names, 2), data)
    for layer in range(shape.layers):
        assert same_bits(attended(stage, other, layer, [2]), attended(stage, cache, layer, [BLOCK_SLOTS + 1]))


def test_what_is_told_again_is_not_done_again(shape: KvShape) -> None:
    stage = Stage(shape)
    cache = stage.new_cache()
    store(stage, cache, range(BLOCK_SLOTS))
    cache.length = 3
    cache.keep([5, 6, 8])
    ops = stage.planes.outbox.pending()
    stage.planes.apply(ops[:2])
    before = [stage.planes.read_slot(cache.block_names, slot).copy() for slot in range(6)]
    stage.planes.apply(ops)
    stage.planes.apply(ops)
    after = [stage.planes.read_slot(cache.block_names, slot).copy() for slot in range(6)]
    assert all(np.array_equal(a, b) for a, b in zip(before[:5], after[:5], strict=True))
    for layer in range(shape.layers):
        for slot, source in enumerate((0, 1, 2, 5, 6, 8)):
            assert same_bits(attended(stage, cache, layer, [slot])[0], vectors(shape, source, layer)[1][0])


def test_stages_that_share_the_layers_out_hold_what_one_would(shape: KvShape) -> None:
    """Whatever happens to the caches, each does it to its own layers."""
    blocks, cuts = Blocks(), ((0, 1, 2, 3), (2, 0), (3, 1))
    stages = [KvPlanes(replace(shape, layers=len(cut)), cut, blocks.outbox()) for cut in cuts]

    def write(cache: KvCache, slots: range) -> None:
        cache.reserve(slots.stop)
        for planes, cut in zip(stages, cuts, strict=True):
            planes.settle()
            for layer in cut:
                view = planes.layer(layer, planes.addresses(cache.block_names))
                for slot in slots:
                    KERNELS.store_kv(*vectors(shape, slot, layer), np.array([slot], np.int32), view)

    donor, heir, gone = KvCache(blocks), KvCache(blocks), KvCache(blocks)
    write(donor, range(2 * BLOCK_SLOTS + 4))
    write(gone, range(9))
    donor.truncate(2 * BLOCK_SLOTS)
    heir.adopt(donor, 2)
    heir.truncate(BLOCK_SLOTS + 3)
    del gone
    write(heir, range(BLOCK_SLOTS + 3, BLOCK_SLOTS + 9))
    heir.keep([BLOCK_SLOTS + 4, BLOCK_SLOTS + 7])
    assert heir.length == BLOCK_SLOTS + 5
    for planes in stages:
        planes.settle()
        assert planes.nbytes == 3 * planes.shape.block_bytes
    for slot in range(heir.length):
        one, *several = (planes.read_slot(heir.block_names, slot) for planes in stages)
        for cut, part in zip(cuts[1:], several, strict=True):
            assert np.array_equal(part, one[list(cut)])
