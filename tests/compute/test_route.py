"""Which experts rows go to: the choice of the definition, its weights nearly, and the same bits everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.numerics_oracles import same_bits
from helpers.thorough import examples
from penstock import _core
from penstock.compute.kernels import Kernels

KERNELS = Kernels(1)
F32 = npt.NDArray[np.float32]


def by_definition(
    logits: F32, chosen: int, bias: F32 | None, sigmoid: bool, renormalize: bool, scaling: float, groups: int, kept: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """In float64; ties go to the lower number."""
    x = logits.astype(np.float64)
    exp = np.exp(x - x.max(axis=1, keepdims=True))
    scores = 1 / (1 + np.exp(-x)) if sigmoid else exp / exp.sum(axis=1, keepdims=True)
    choice = scores + (0 if bias is None else bias)
    ids, weights = [], []
    for row, by in zip(scores, choice, strict=True):
        size = len(row) // groups
        sums = [np.sort(by[g * size : (g + 1) * size])[-2:].sum() for g in range(groups)]
        open_groups = sorted(range(groups), key=lambda g: (-sums[g], g))[:kept]
        candidates = [e for e in range(len(row)) if e // size in open_groups]
        best = sorted(candidates, key=lambda e: (-by[e], e))[:chosen]
        found = row[best] / (row[best].sum() if renormalize else 1) * scaling
        order = np.argsort(best)
        ids.append(np.array(best)[order])
        weights.append(found[order])
    return np.array(ids), np.array(weights)


@settings(max_examples=examples(80), deadline=None)
@given(st.data())
def test_by_the_definition(data: Any) -> None:
    groups = data.draw(st.sampled_from([1, 1, 2, 4]))
    experts = groups * data.draw(st.integers(2, 40))
    kept = data.draw(st.integers(1, groups))
    chosen = data.draw(st.integers(1, min(9, experts // groups * kept)))
    sigmoid, renormalize = data.draw(st.booleans()), data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    # Steps that float32 tells apart for certain.
    logits = rng.permuted(np.tile(np.arange(experts) / 16, (data.draw(st.integers(1, 5)), 1)), axis=1).astype(
        np.float32
    )
    bias = rng.permutation(experts).astype(np.float32) if data.draw(st.booleans()) else None
    scaling = data.draw(st.sampled_from([1.0, 2.5]))
    options = {"sigmoid": sigmoid, "renormalize": renormalize, "scaling": scaling, "groups": groups}
    ids, weights = KERNELS.route(logits, chosen, bias=bias, kept_groups=kept, **options)
    expected = by_definition(logits, chosen, bias, sigmoid, renormalize, scaling, groups, kept)
    assert np.array_equal(ids, expected[0])
    assert np.allclose(weights, expected[1], rtol=2e-6)


def test_ties_go_to_the_lower_number() -> None:
    ids, weights = KERNELS.route(np.zeros((3, 20), np.float32), 4)
    assert ids.tolist() == [[0, 1, 2, 3]] * 3
    assert np.allclose(weights, 1 / 20)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_gives_experts_all_the_same(value: float) -> None:
    """The bits of a row that is broken do not matter, but each of its experts has to be one, and another."""
    logits = np.full((2, 9), value, np.float32)
    logits[1, ::2] = 1
    for sigmoid in (False, True):
        ids, _ = KERNELS.route(logits, 5, sigmoid=sigmoid, groups=3, kept_groups=2)
        assert all(len({*row}) == 5 and min(row) >= 0 and max(row) < 9 for row in ids.tolist())


@pytest.mark.parametrize("sigmoid", [False, True])
def test_bits(sigmoid: bool, isa: str) -> None:
    """Of every instruction set, of any number of threads, of rows alone."""
    rng = np.random.default_rng(0)
    logits, bias = rng.standard_normal((70, 61), dtype=np.float32), rng.standard_normal(61, dtype=np.float32)
    options: dict[str, Any] = {"sigmoid": sigmoid, "renormalize": True, "scaling": 1.7, "bias": bias}
    assert _core.isa() == isa
    ids, weights = Kernels(3).route(logits, 6, **options)
    for row in range(0, 70, 13):
        alone = KERNELS.route(logits[row : row + 1], 6, **options)
        assert np.array_equal(alone[0][0], ids[row])
        assert same_bits(alone[1][0], weights[row])
    _core.set_isa(_core.isas()[0])
    try:
        scalar = KERNELS.route(logits, 6, **options)
    finally:
        _core.set_isa(isa)
    assert np.array_equal(scalar[0], ids)
    assert same_bits(scalar[1], weights)


@pytest.mark.parametrize(
    ("chosen", "options", "words"),
    [
        (0, {}, "fewer experts"),
        (9, {}, "fewer experts"),
        (5, {"groups": 2, "kept_groups": 1}, "fewer experts"),
        (2, {"groups": 3}, "groups must divide"),
        (2, {"groups": 2, "kept_groups": 3}, "kept_groups"),
        (2, {"bias": np.zeros(7, np.float32)}, "length of bias"),
    ],
)
def test_what_cannot_be(chosen: int, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        KERNELS.route(np.zeros((1, 8), np.float32), chosen, **options)


def test_too_many_experts() -> None:
    with pytest.raises(ValueError, match="experts"):
        KERNELS.route(np.zeros((1, 5000), np.float32), 1)
