from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.numerics_oracles import F32, attend, f32, i32, instruction_set, same_bits, to_bf16
from helpers.thorough import quick
from penstock import _core

ISAS = _core.isas()
BITS = {"bf16": 16, "f32": 32}


class Cache:
    """One layer's keys and values in blocks whose unwritten slots hold NaN."""

    def __init__(self, slots: int, kv_heads: int, head_dim: int, dtype: str, block_slots: int = 32) -> None:
        plane = kv_heads * block_slots * head_dim * BITS[dtype] // 8
        pad = 64  # so that offsets are not all zero
        self.memory = np.full((-(-slots // block_slots), 2 * plane + pad), 0xFF, np.uint8)
        addresses = np.array([block.ctypes.data for block in self.memory], np.uint64)
        self.layer = _core.KvLayer(addresses, block_slots, pad, pad + plane, kv_heads, head_dim, dtype)

    def store(self, k: F32, v: F32, slots: npt.ArrayLike) -> None:
        _core.store_kv(_core.ThreadPool(1, 1 << 16), k, v, np.asarray(slots, np.int32), self.layer)


@dataclass
class Problem:
    """Rows of one sequence. `tails` are lists of slots."""

    q: F32
    k: F32
    v: F32
    prefix: list[int]
    tails: list[list[int]]
    dtype: str = "bf16"
    block_slots: int = 32
    scale: float = 0.3
    window: int = 0
    softcap: float = 0

    @classmethod
    def random(
        cls, seed: int, rows: int, heads: int, kv_heads: int, dim: int, slots: int, dtype: str = "bf16", **more: Any
    ) -> Problem:
        """Every row sees a random prefix and a tail of random slots."""
        rng = np.random.default_rng(seed)
        q = rng.standard_normal((rows, heads, dim)).astype(np.float32) * 2
        k, v = rng.standard_normal((2, slots, kv_heads, dim)).astype(np.float32)
        prefix = rng.integers(0, slots + 1, rows).tolist()
        tails = [rng.integers(0, slots, rng.integers(0 if p else 1, 40)).tolist() for p in prefix]
        return cls(q, k, v, prefix, tails, dtype, **more)

    @property
    def rounded(self) -> tuple[F32, F32]:
        return (to_bf16(self.k), to_bf16(self.v)) if self.dtype == "bf16" else (self.k, self.v)

    def path(self, row: int) -> list[int]:
        return [*range(self.prefix[row]), *self.tails[row]]

    def cache(self) -> Cache:
        slots, kv_heads, dim = self.k.shape
        cache = Cache(slots, kv_heads, dim, self.dtype, self.block_slots)
        cache.store(self.k, self.v, np.arange(slots))
        return cache

    def run(self, threads: int = 1, scratch: int = 1 << 20, rows: slice = slice(None)) -> F32:
        q, tails = self.q[rows], self.tails[rows]
        offsets = np.cumsum([0, *map(len, tails)], dtype=np.int32)
        flat = np.array([slot for tail in tails for slot in tail], np.int32)
        out = np.full_like(q, np.nan)
        cache = self.cache()
        pool = _core.ThreadPool(threads, scratch)
        paths = i32(self.prefix[rows]), offsets, flat
        _core.attention(pool, q, *paths, self.scale, cache.layer, out, self.window, self.softcap)
        return out

    def expected(self) -> F32:
        """By the contract's own steps."""
        k, v = self.rounded
        group = self.q.shape[1] // k.shape[1]
        out = np.empty_like(self.q)
        for row, head in np.ndindex(*self.q.shape[:2]):
            path = self.path(row)
            keys, values = k[path, head // group], v[path, head // group]
            out[row, head] = attend(self.q[row, head], keys, values, self.scale, self.window, self.softcap)
        return out


problems = st.builds(
    lambda seed, rows, group, kv_heads, half, slots, dtype, log_slots, window, softcap: Problem.random(
        seed,
        rows,
        group * kv_heads,
        kv_heads,
        2 * half,
        slots,
        dtype,
        block_slots=2**log_slots,
        window=window,
        softcap=softcap,
    ),
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.integers(1, 7),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 100),
    st.sampled_from(sorted(BITS)),
    st.integers(4, 7),
    st.just(0) | st.integers(1, 120),
    st.sampled_from([0, 0, 1.5, 50]),
)


@given(problems, st.sampled_from(ISAS), st.sampled_from([1, 3]), st.sampled_from([1 << 16, 1 << 20]))
def test_bits_are_those_of_the_contract(problem: Problem, isa: str, threads: int, scratch: int) -> None:
    with instruction_set(isa):
        assert same_bits(problem.run(threads, scratch), problem.expected())


@pytest.mark.parametrize("dim", quick([64], [64, 128, 256]))
@pytest.mark.parametrize("dtype", sorted(BITS))
@pytest.mark.parametrize("window", [0, 1, 77, 699])
def test_bits_depend_on_no_grouping(dim: int, dtype: str, window: int) -> None:
    """Instruction set, threads, scratch (so query vectors a block) and rows a call."""
    problem = Problem.random(dim, rows=40, heads=12, kv_heads=3, dim=dim, slots=700, dtype=dtype, window=window)
    expected = problem.run()
    for isa in ISAS:
        with instruction_set(isa):
            for threads, scratch in [(1, 1 << 20), (2, 1 << 16), (5, 4 << 20)]:
                assert same_bits(problem.run(threads, scratch), expected)
            parts = [slice(0, 1), slice(1, 3), slice(3, 30), slice(30, 40)]
            assert same_bits(np.concatenate([problem.run(2, rows=part) for part in parts]), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("split", [0, 1, 15, 16, 17, 32, 50, 99])
def test_a_path_gives_the_same_bits_however_it_lies(isa: str, split: int) -> None:
    """100 keys in order, or the first `split` in order and the others scattered over a tail."""
    problem = Problem.random(9, rows=3, heads=4, kv_heads=2, dim=32, slots=100)
    problem.prefix, problem.tails = [100] * 3, [[]] * 3
    rng = np.random.default_rng(split)
    slots = split + rng.permutation(150)[: 100 - split]
    k, v = np.full((2, 250, *problem.k.shape[1:]), np.inf, np.float32)
    order = [*range(split), *slots]
    k[order], v[order] = problem.k, problem.v
    scattered = Problem(problem.q, k, v, [split] * 3, [slots.tolist()] * 3)
    with instruction_set(isa):
        assert same_bits(scattered.run(), problem.run())


@pytest.mark.parametrize("isa", ISAS)
def test_a_chunk_of_a_prompt_is_causal(isa: str) -> None:
    """Rows of one chunk see the keys before them: more keys, NaN ones too, change nothing."""
    rows = 70
    problem = Problem.random(4, rows=rows, heads=6, kv_heads=2, dim=48, slots=rows)
    problem.prefix, problem.tails = list(range(1, rows + 1)), [[]] * rows
    with instruction_set(isa):
        together = problem.run(2)
        assert same_bits(together[:5], problem.expected()[:5])
        problem.k[40:], problem.v[40:] = np.nan, np.inf
        assert same_bits(problem.run(2)[:40], together[:40])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window", [1, 15, 16, 17, 40, 99, 100, 101, 1000])
def test_what_a_window_has_passed_changes_nothing(isa: str, window: int) -> None:
    """Be it NaN; and a window that holds every key is none."""
    problem = Problem.random(11, rows=5, heads=4, kv_heads=2, dim=32, slots=150)
    problem.prefix, problem.tails = [100, 100, 100, 90, 61], [[], [], [], list(range(110, 120)), list(range(110, 149))]
    with instruction_set(isa):
        everything = problem.run()
        problem.window = window
        inside = problem.run()
        assert same_bits(inside, everything) == (window >= 100)
        problem.k[: max(0, 61 + 39 - window)], problem.v[: max(0, 61 + 39 - window)] = np.nan, np.inf
        problem.k[110 : max(110, 110 + 39 - window)] = np.nan
        same = problem.run()
    assert same_bits(same[[0, 1, 2, 4]], inside[[0, 1, 2, 4]])


def float64_attention(problem: Problem) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Attention in float64, and a bound on the error of the float32 steps.

    A score is a dot product of dim / 16 + 5 roundings, then one for the scale, one for s - m and the two factors' own;
    an error e of a score is a factor 1 + e of its weight. Then 1 unit for exp, n roundings (FMA) over the values,
    n / 16 + 4 in the sum and one to divide. Scores' errors count twice: in the sum of weights too.
    """
    k, v = (x.astype(np.float64) for x in problem.rounded)
    q = problem.q.astype(np.float64)
    scale = float(np.float32(problem.scale))
    out, bound = np.empty_like(q), np.empty_like(q)
    for row, head in np.ndindex(*q.shape[:2]):
        path = problem.path(row)
        keys, values = k[path, head * k.shape[1] // q.shape[1]], v[path, head * k.shape[1] // q.shape[1]]
        scores = keys @ q[row, head] * scale
        magnitude = (np.abs(keys) @ np.abs(q[row, head]) * abs(scale)).max()
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        out[row, head] = weights @ values
        roundings = 2 * (problem.q.shape[2] / 16 + 8) * magnitude + 4 + len(path) * (1 + 1 / 16) + 6
        bound[row, head] = roundings * 2.0**-24 * (weights @ np.abs(values))
    return out, bound


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"] or ISAS)
@pytest.mark.parametrize(("dim", "keys", "dtype"), [(128, 1500, "bf16"), (64, 3000, "f32"), (80, 333, "bf16")])
def test_error_is_within_its_bound(isa: str, dim: int, keys: int, dtype: str) -> None:
    problem = Problem.random(dim, rows=9, heads=8, kv_heads=2, dim=dim, slots=keys, dtype=dtype, scale=dim**-0.5)
    exact, bound = float64_attention(problem)
    with instruction_set(isa):
        assert (np.abs(problem.run(2) - exact) <= bound).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", sorted(BITS))
def test_extreme_scores(isa: str, dtype: str) -> None:
    """Scores far apart, infinite, NaN or all equal: as the contract's steps have them."""
    problem = Problem.random(8, rows=7, heads=2, kv_heads=1, dim=16, slots=40, dtype=dtype)
    problem.prefix, problem.tails = [40] * 7, [[]] * 7
    problem.k[:, :, 1] = 0
    problem.k[3, 0, 1], problem.k[30, 0, 1] = 1, -1
    problem.q[:, :, 1] = f32([0, 500, 3e38, -3e38, np.inf, -np.inf, np.nan])[:, None]
    problem.q[0] = 0
    with instruction_set(isa):
        out = problem.run()
    assert same_bits(out, problem.expected())
    assert np.isfinite(out[:4]).all()
    assert np.isnan(out[4:]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_denormals_are_kept(isa: str) -> None:
    """Weights far below the normal range still count."""
    problem = Problem.random(8, rows=1, heads=1, kv_heads=1, dim=16, slots=20, dtype="f32", scale=1.0)
    problem.prefix, problem.tails = [20], [[]]
    problem.q[:], problem.k[:], problem.v[:] = 1, 0, 1e-40
    problem.k[1:, 0, 0] = -100
    problem.v[1:] = 1e38
    with instruction_set(isa):
        assert same_bits(problem.run(), problem.expected())
        assert (problem.run() > 1e-6).all()


def test_a_hundred_thousand_keys_fit_in_one_mebibyte() -> None:
    keys = 131072
    cache = Cache(keys, 1, 128, "bf16", 1024)
    cache.memory[:] = 0
    q = np.ones((2, 3, 128), np.float32)
    out = np.empty_like(q)
    paths = np.full(2, keys, np.int32), np.zeros(3, np.int32), np.empty(0, np.int32)
    _core.attention(_core.ThreadPool(2, 1 << 20), q, *paths, 1.0, cache.layer, out)
    assert same_bits(out, np.zeros_like(q))
    with pytest.raises(ValueError, match=r"^a path of 131072 slots needs 5\d{5} bytes of scratch$"):
        _core.attention(_core.ThreadPool(2, 1 << 18), q, *paths, 1.0, cache.layer, out)


def test_rows_may_lie_apart() -> None:
    problem = Problem.random(1, rows=5, heads=4, kv_heads=2, dim=20, slots=50)
    wide, out = np.zeros((5, 4 * 20 + 60), np.float32), np.full((5, 4 * 20 + 7), 9, np.float32)
    wide[:, :80] = problem.q.reshape(5, 80)
    packed = problem.run()
    q = np.lib.stride_tricks.as_strided(wide, problem.q.shape, (wide.strides[0], 80, 4))
    view = np.lib.stride_tricks.as_strided(out, problem.q.shape, (out.strides[0], 80, 4))
    offsets = np.cumsum([0, *map(len, problem.tails)], dtype=np.int32)
    tails = np.array([slot for tail in problem.tails for slot in tail], np.int32)
    pool, cache = _core.ThreadPool(1, 1 << 20), problem.cache()
    _core.attention(pool, q, i32(problem.prefix), offsets, tails, problem.scale, cache.layer, view)
    assert same_bits(view, packed)
    assert (out[:, 80:] == 9).all()


def run_with(**changes: Any) -> None:
    """A small valid call with some arguments changed."""
    cache = Cache(64, 2, 16, "bf16")
    q = np.zeros((2, 4, 16), np.float32)
    args: dict[str, Any] = {
        "pool": _core.ThreadPool(1, 1 << 16),
        "q": q,
        "prefix": i32([3, 0]),
        "tail_offsets": i32([0, 0, 2]),
        "tail_slots": i32([5, 63]),
        "scale": 1.0,
        "kv": cache.layer,
        "out": np.empty_like(q),
    }
    _core.attention(**args | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tail_slots": i32([5, 64])}, "tail_slots: slot 64 is outside a cache of 64"),
        ({"tail_slots": i32([-1, 5])}, "tail_slots: slot -1 is outside a cache of 64"),
        ({"prefix": i32([65, 0])}, "prefix lies outside the cache"),
        ({"prefix": i32([0, 0])}, "row 0 sees no slot"),
        ({"prefix": i32([1])}, "length of prefix is 1, expected 2"),
        ({"tail_offsets": i32([0, 3, 2])}, "tail_offsets must not descend"),
        ({"tail_offsets": i32([0, 0, 1])}, "last of tail_offsets is 1, expected 2"),
        ({"q": np.zeros((2, 3, 16), np.float32)}, "heads of q must be a multiple of kv_heads"),
        ({"q": np.zeros((2, 4, 18), np.float32)}, "head dimension of q is 18, expected 16"),
        ({"out": np.zeros((3, 4, 16), np.float32)}, "q and out differ in shape"),
        ({"window": -1}, "window must not be negative"),
        ({"softcap": -1.0}, "softcap must not be negative"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    run_with()
    with pytest.raises(ValueError, match=f"^{message}$"):
        run_with(**changes)


@pytest.mark.parametrize("block_slots", [0, 8, 24, -16])
def test_block_slots_must_be_a_power_of_two(block_slots: int) -> None:
    with pytest.raises(ValueError, match=r"^block_slots must be a power of two, 16 or more$"):
        _core.KvLayer(np.zeros(1, np.uint64), block_slots, 0, 0, 1, 16, "bf16")
