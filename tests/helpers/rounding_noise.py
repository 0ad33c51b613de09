"""The reference's operations with noise as large as float32 rounding may be: how far off may a sound float32 pass be?

Monte Carlo arithmetic (D. S. Parker, 1997): every operation's exact result is moved, up or down at random, by the most
that float32 can err in that operation alone. Those bounds are classical: n roundings in a row cost at most gamma(n)
relative to the sum of the terms' magnitudes (N. J. Higham, Accuracy and Stability of Numerical Algorithms, chapters 3
and 4). What that does to the logits is then seen, not bounded: worst cases that add up over the operations of a pass
prove nothing after two layers. Rounding seldom comes near its bound, so sound arithmetic stays well below this noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from helpers import reference as exact
from helpers.family_reading import Reading
from helpers.reference import F32, F64, I64, Reference

UNIT = 2.0**-24
EXP_ROUNDINGS = 2
"""The core's exp errs by less than a unit in the last place."""
TANH_ROUNDINGS = 4
LEAST_MARGIN = 1e-4
"""Of the choice of experts."""


def gamma(roundings: Any) -> Any:
    return roundings * UNIT / (1 - roundings * UNIT)


def lanes(terms: Any) -> Any:
    """Roundings that a term meets in a sum over 16 lanes: those of its lane, then the tree's four."""
    return np.ceil(terms / 16) + 4


class RoundingNoise:
    """The operations that `Reference.forward` takes, each with its own share of noise."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def embed(self, table: F64, tokens: Sequence[int]) -> F64:
        return exact.embed(table, tokens)

    def linear(self, x: F64, weight: F64, bias: F64 | None) -> F64:
        size = exact.linear(np.abs(x), np.abs(weight), None if bias is None else np.abs(bias))
        return self._moved(exact.linear(x, weight, bias), gamma(lanes(x.shape[-1]) + 1) * size)

    def add(self, x: F64, y: F64) -> F64:
        return self._rounded(x + y, 1)

    def rms_norm(self, x: F64, weight: F64, eps: float) -> F64:
        # In each row, all together: the sum, the division, eps, its addition, the root and the reciprocal.
        factor = self._rounded(np.ones((len(x), 1)), lanes(x.shape[-1]) + 5)
        return self._rounded(exact.rms_norm(x, weight, eps) * factor, 2)

    def rotate(self, x: F64, angles: F64, factor: float = 1.0) -> F64:
        half = angles.shape[-1]
        turning = x[..., : 2 * half]
        size = np.zeros_like(x)
        size[..., : 2 * half] = np.abs(turning * np.cos(np.tile(angles, 2))[:, None])
        size[..., : 2 * half] += np.abs(np.roll(turning, half, axis=-1) * np.sin(np.tile(angles, 2))[:, None])
        return self._moved(exact.rotate(x, angles, factor), gamma(3 + (factor != 1)) * factor * size)

    def scale(self, x: F64, times: float = 1.0, over: float = 1.0, cap: float = 0.0) -> F64:
        return self._capped(self._rounded(x * times / over, (times != 1) + (over != 1)), cap)

    def _capped(self, x: F64, cap: float) -> F64:
        return self._rounded(exact.capped(self._rounded(x, 1), cap), TANH_ROUNDINGS + 1) if cap else x

    def round_kv(self, x: F64, kv: str) -> F64:
        return exact.round_kv(x, kv)

    def attention(self, q: F64, k: F64, v: F64, rows: I64, scale: float, window: int = 0, cap: float = 0) -> F64:
        sizes = exact.scores(np.abs(q), np.abs(k), scale)
        scores = self._moved(exact.scores(q, k, scale), gamma(lanes(q.shape[-1]) + 2) * sizes)
        scores = self._capped(scores, cap)
        scores[:, exact.unseen(rows, len(k), window)] = -np.inf
        seen = np.isfinite(scores)
        below = np.where(seen, scores.max(axis=-1, keepdims=True) - np.where(seen, scores, 0), 0)
        scores = self._moved(scores, UNIT * below)
        weights = self._rounded(np.exp(scores - scores.max(axis=-1, keepdims=True)), EXP_ROUNDINGS)
        values = np.repeat(v, q.shape[1] // v.shape[1], axis=1)
        keys = (rows + 1)[:, None]
        total = self._rounded(np.einsum("hqk->qh", weights), lanes(keys))[..., None]
        size = np.einsum("hqk,khd->qhd", weights, np.abs(values))
        out = self._moved(np.einsum("hqk,khd->qhd", weights, values), gamma(keys[..., None]) * size)
        return self._rounded(out / total, 1)

    def sigmoid(self, x: F64) -> F64:
        return self._rounded(exact.sigmoid(x), EXP_ROUNDINGS + 2)

    def times(self, x: F64, factors: F64) -> F64:
        return self._rounded(exact.times(x, factors), 1)

    def route(self, logits: F64, bias: F64 | None, reading: Reading) -> tuple[F64, float]:
        # exp, the sum, the division; and once more a sum and a division, and the factor.
        weights, margin = exact.route(logits, bias, reading)
        return self._rounded(weights, EXP_ROUNDINGS + lanes(logits.shape[-1]) + reading.chosen + 4), margin

    def gated(self, gate: F64, up: F64, with_gelu: bool) -> F64:
        # Of GELU, roundings of exp's argument count times its size.
        extra = 4 * np.abs(gate * (1.6 + 0.0714 * gate**2)) if with_gelu else 0
        return self._rounded(exact.gated(gate, up, with_gelu), EXP_ROUNDINGS + 3 + extra)

    def _rounded(self, x: F64, roundings: Any) -> F64:
        return self._moved(x, gamma(roundings) * np.abs(x))

    def _moved(self, x: F64, distance: F64) -> F64:
        return x + self._rng.choice((-1.0, 1.0), x.shape) * distance


@dataclass(frozen=True)
class Expected:
    """Exact logits [n, vocab_size], and the same with noise of several seeds [seeds, n, vocab_size]."""

    exact: F64
    noisy: F64

    def __getitem__(self, rows: slice) -> Expected:
        return Expected(self.exact[rows], self.noisy[:, rows])

    def assert_near(self, logits: F32) -> None:
        """Logits err less than the noise does, at worst and in the mean; and the noise is too small to hide flaws."""
        assert logits.dtype == np.float32
        assert logits.shape == self.exact.shape
        noise, error = self.noisy - self.exact, logits - self.exact
        assert rms(noise) < 1e-2 * self.exact.std()
        assert rms(error) <= rms(noise)
        assert np.abs(error).max() <= np.abs(noise).max()


def rms(x: F64) -> float:
    return math.sqrt(np.mean(x**2))


def expected_logits(
    reference: Reference, tokens: Sequence[int], *, seeds: int = 4, kv: str = "f32", **where: Any
) -> Expected:
    """What logits should be, and how far off they may be; `where` as for `Reference.forward`."""
    noisy = [reference.forward(tokens, kv=kv, ops=RoundingNoise(seed), **where) for seed in range(seeds)]
    expected = Expected(reference.forward(tokens, kv=kv, **where), np.array(noisy))
    assert reference.margin > LEAST_MARGIN, "float32 may choose another expert: take other weights"
    return expected
