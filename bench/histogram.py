"""Weights whose exponents follow the published histogram of Llama-3.1-8B-Instruct, and what they take packed.

    python bench/histogram.py [--megabytes 64] [--columns 4096] [--json]

No table of counts is published, but figures are: entropies, and the shares of the commonest exponents (below). A
Gaussian whose rows have log-normal scales comes within 0.3 points of all of them; a factor on each group of exponents,
the same for every row, takes out the rest, with 2.583 bits of entropy for 2.58. Sign and mantissa are uniform.

`independent` draws every exponent from the pooled histogram, so that a row tells nothing about its weights: the worst
that this histogram can be for a code that chooses something for each row.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
U16 = npt.NDArray[np.uint16]

SHARES = {3: 0.725, 7: 0.967, 8: 0.983, 16: 0.99985}
"""Of Llama-3.1-8B-Instruct's weights: how many have one of the n commonest exponents (8-bit fields)."""
ENTROPIES = {"all": 2.58, "MLP": 2.57, "attention": 2.64, "q and k of layer 0": 3.4}
"""Bits of the exponent in the same model, by kind of matrix."""
WEIGHTS = {"MLP": 5_637_144_576, "attention": 1_321_205_760, "q and k of layer 0": 20_971_520, "lm_head": 525_336_576}
"""Of one pass of the 8B, without norms."""

EXPONENTS = np.arange(-40, 12)
"""Relative to CENTER; all but 1e-11 of a Gaussian's weights are among them."""
CENTER = 127 - 6
"""The field of weights between 2**-6 and 2**-5: the middle of a matrix with some 4,096 columns."""
MIDDLE, SPREAD = -0.4, 0.25
"""Mean and deviation of log2 of the rows' deviations, in units of 2**-6, that meet the figures for all weights best."""
MIDDLES = (0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Where the scales of single matrices may lie between two powers of two: the figures for all do not tell."""
ROUNDS_OF_FITTING = 20


@dataclass(frozen=True)
class Law:
    """How exponents are distributed: rows are Gaussian, log2 of their deviations is normal, `factors` correct it."""

    middle: float
    spread: float
    factors: tuple[float, ...] = (1.0,) * len(EXPONENTS)

    def rows(self, deviates: F64) -> F64:
        """Probabilities [rows, exponents] for rows whose scales are `deviates` [rows] away, in standard deviations."""
        p = gaussian(np.exp2(self.middle + self.spread * deviates)) * self.factors
        shares: F64 = p / p.sum(1, keepdims=True)
        return shares

    def pooled(self) -> F64:
        """Probabilities [exponents] over all rows."""
        deviates = np.linspace(-5, 5, 201)
        weights = np.exp(-(deviates**2) / 2)
        return weights / weights.sum() @ self.rows(deviates)


def gaussian(deviations: F64) -> F64:
    """Probabilities [n, exponents] that |x| lies in [2**e, 2**(e + 1)) for Gaussians with these deviations [n]."""
    edges = np.exp2(np.append(EXPONENTS, EXPONENTS[-1] + 1)) / deviations[:, None] / math.sqrt(2)
    inside = np.frompyfunc(math.erf, 1, 1)(edges).astype(np.float64)
    return np.diff(inside, axis=1)


def entropy(p: F64) -> float:
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def shares(p: F64) -> dict[int, float]:
    """Of the n commonest exponents, for the n of SHARES."""
    covered = np.sort(p)[::-1].cumsum()
    return {n: float(covered[n - 1]) for n in SHARES}


@cache
def law(kind: str) -> Law:
    """Of a kind in ENTROPIES."""
    if kind == "all":
        return fitted(Law(MIDDLE, SPREAD))
    return Law(MIDDLE, spread_for(ENTROPIES[kind]))


def fitted(law: Law) -> Law:
    """With factors that make the pooled shares those of SHARES (iterative proportional fitting)."""
    counts, targets = list(SHARES), np.diff([0, *SHARES.values(), 1])
    for _ in range(ROUNDS_OF_FITTING):
        pooled = law.pooled()
        rank = np.argsort(np.argsort(-pooled, kind="stable"))
        group = np.searchsorted(counts, rank, side="right")
        have = np.bincount(group, pooled, len(targets))
        law = Law(law.middle, law.spread, tuple(law.factors * (targets / have)[group]))
    return law


def spread_for(bits: float) -> float:
    """The spread of rows' scales with which the pooled exponents have so many bits of entropy."""
    low, high = 0.0, 4.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy(Law(MIDDLE, middle).pooled()) < bits else (low, middle)
    return low


def draw(chosen: Law, shape: tuple[int, int], *, independent: bool = False, seed: int = 0) -> U16:
    """A matrix of weights that follow this law, row by row or each for itself, as BF16 words."""
    rng = np.random.default_rng(seed)
    if independent:
        probabilities = np.broadcast_to(chosen.pooled(), (shape[0], len(EXPONENTS)))
    else:
        probabilities = chosen.rows(rng.standard_normal(shape[0]))
    words = np.empty(shape, np.uint16)
    for row, cumulative in zip(words, probabilities.cumsum(1), strict=True):
        drawn = np.searchsorted(cumulative[:-1], rng.random(shape[1]), side="right")
        noise = rng.integers(0, 256, shape[1], np.uint16)  # sign and mantissa
        row[:] = (CENTER + EXPONENTS[0] + drawn << 7) | (noise & 0x7F) | (noise >> 7 << 15)
    return words


def exponent_shares(words: U16) -> F64:
    """Shares [256] of the exponent fields."""
    return np.bincount((words.reshape(-1) >> 7) & 0xFF, minlength=256) / words.size


def packed_bytes(words: U16, name: str = "weight") -> int:
    """What a matrix takes packed: both tiers, padding, and the checksums of its chunks (docs/format.md)."""
    from penstock.architectures.names import is_embedding
    from penstock.compute import codec

    rows, cols = words.shape
    step, checksums = codec.rows_per_chunk(cols, is_embedding(name)), 20
    coarse = np.empty(codec.coarse_bytes(step, cols), np.uint8)
    fine = np.empty(codec.most_fine_bytes(step, cols), np.uint8)
    total = 0
    for begin in range(0, rows, step):
        chunk = words[begin : begin + step]
        total += codec.coarse_bytes(len(chunk), cols) + checksums
        total += codec.encode(chunk.reshape(-1).view(np.uint8), len(chunk), cols, coarse, fine)
    return total


@dataclass(frozen=True)
class Line:
    """Weights of one law, drawn. `entropy` and the shares are those of the drawn exponents."""

    kind: str
    independent: bool
    weights: int
    entropy: float
    shares: dict[int, float]
    bits: float
    """A weight, packed."""


def measure(kind: str, law: Law, independent: bool, shape: tuple[int, int]) -> Line:
    words = draw(law, shape, independent=independent)
    p = exponent_shares(words)
    return Line(kind, independent, words.size, entropy(p), shares(p), packed_bytes(words) * 8 / words.size)


def over_a_pass(lines: list[Line], independent: bool) -> float:
    """Bits a weight over the matrices of a pass of the 8B, from those of its kinds; lm_head is taken to be like all."""
    bits = {line.kind: line.bits for line in lines if line.independent == independent}
    bits["lm_head"] = bits["all"]
    return sum(bits[kind] * count for kind, count in WEIGHTS.items()) / sum(WEIGHTS.values())


def show(lines: list[Line]) -> None:
    print(f"{'exponents of':20s} {'drawn':>12s} {'bits':>6s}" + "".join(f"{n:>9d}" for n in SHARES) + f"{'packed':>9s}")
    for line in lines:
        covered = "".join(f"{100 * share:8.3f}%" for share in line.shares.values())
        how = "one by one" if line.independent else "row by row"
        print(f"{line.kind:20s} {how:>12s} {line.entropy:6.3f}{covered}{line.bits:9.3f}")
    for independent in (False, True):
        bits = over_a_pass(lines, independent)
        print(f"a pass of the 8B, {'one by one' if independent else 'row by row'}: {bits:.3f} bits, {bits / 16:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=64, help="weights of each kind (default: 64)")
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args()
    shape = (max(1, args.megabytes * 10**6 // (2 * args.columns)), args.columns)
    laws = {kind: law(kind) for kind in ENTROPIES}
    laws |= {f"scales at 2**{middle}": Law(middle, SPREAD) for middle in MIDDLES}
    lines = [measure(kind, law, independent, shape) for independent in (False, True) for kind, law in laws.items()]
    if not args.json:
        return show(lines)
    totals: dict[str, Any] = {"by_rows": over_a_pass(lines, False), "independent": over_a_pass(lines, True)}
    return print(json.dumps({"lines": [asdict(line) for line in lines], "bits_over_a_pass": totals}, indent=1))


if __name__ == "__main__":
    main()
