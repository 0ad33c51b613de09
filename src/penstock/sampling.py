"""From logits to a token: penalties, filters, and one draw by the Gumbel-max trick.

The draw is argmax over the kept tokens of logit / T + Gumbel noise, the noise a pure function of (seed, choice,
position, token) (Gumbel-max: Maddison et al., arXiv 1411.0030). So a token depends on nothing but its own logits and key:
not on the batch, not on speculation, not on the order of draws.

Filters work in float64 on the float32 logits. Only sums taken strictly in order (cumsum) and the core's own exp are
used, since NumPy's sums and transcendentals vary by CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from penstock.errors import NumericsError, UsageError
from penstock.kernels import Kernels, gumbel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.config import GenerationDefaults
    from penstock.kernels import F32, F64, I64

NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""The values at which a field changes nothing."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens and when to stop. None means: as the checkpoint's generation_config.json says.

    temperature: 0 is greedy. top_k: 0 keeps all. top_p, min_p: 1 and 0 keep all. repetition_penalty: 1 is none.
    seed: None draws a fresh one. max_tokens: None goes on to the end of the context. stop: text that ends the output
    and is cut off it. ignore_eos: go on past the model's end-of-sequence tokens.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: str | Sequence[str] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, 2)
        _check("top_p", self.top_p, 0, 1, open_below=True)
        _check("top_k", self.top_k, 0, None, whole=True)
        _check("min_p", self.min_p, 0, 1)
        _check("repetition_penalty", self.repetition_penalty, 0, None, open_below=True)
        _check("seed", self.seed, 0, 2**64 - 1, whole=True)
        _check("max_tokens", self.max_tokens, 1, None, whole=True)
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise UsageError(f"stop={self.stop!r}: stop strings are non-empty text.", "Give a string or a list of them.")
        object.__setattr__(self, "stop", stops)

    def resolved(self, defaults: GenerationDefaults) -> SamplingParams:
        """These parameters with every sampling field set, from `defaults` where it was None."""
        params = self
        if not defaults.do_sample and params.temperature is None:
            params = replace(params, temperature=0.0)
        chosen = {
            name: next(
                value for value in (getattr(params, name), getattr(defaults, name), neutral) if value is not None
            )
            for name, neutral in NEUTRAL.items()
        }
        return replace(params, **chosen)


class Sampler:
    """Draws the tokens of one sequence (or of one choice of it)."""

    def __init__(self, params: SamplingParams, seed: int, kernels: Kernels, choice: int = 0) -> None:
        """`params` must be resolved; `seed` is below 2**64."""
        self.params = params
        self.seed = seed
        self.choice = choice
        self._kernels = kernels

    def __call__(self, logits: F32, position: int, seen: Sequence[int]) -> int:
        """The token at `position`, from logits float32 [vocab_size]; `seen` are the tokens before it.

        Raises NumericsError if a logit is NaN or infinitely large.
        """
        if not np.isfinite(logits.max()):
            raise NumericsError(
                f"The logits for position {position} are not finite numbers.",
                "The weights are damaged, or overflow float32: compare the checkpoint's checksums with the publisher's.",
            )
        scores = self._penalised(logits.astype(np.float64), seen)
        if self.params.temperature == 0:
            return int(scores.argmax())
        scores = (scores - scores.max()) / self.params.temperature
        kept = self._kept(scores)
        return int(kept[(scores[kept] + gumbel(self.seed, self.choice, position, kept)).argmax()])

    def _penalised(self, scores: F64, seen: Sequence[int]) -> F64:
        """Logits of tokens already there divided by the penalty, or multiplied where negative (arXiv 1909.05858)."""
        penalty = self.params.repetition_penalty
        if penalty != 1 and len(seen):
            tokens = np.unique(np.asarray(seen))
            there = scores[tokens]
            scores[tokens] = np.where(there < 0, there * penalty, there / penalty)
        return scores

    def _kept(self, scores: F64) -> I64:
        """Ids that pass top-k, then top-p, then min-p, ascending. Equal scores rank by id."""
        params = self.params
        kept = np.arange(len(scores))
        if params.top_k == 0 and params.top_p == 1 and params.min_p == 0:
            return kept
        ranked = np.argsort(-scores, kind="stable")[: params.top_k or None]
        weights = self._kernels.exp(scores[ranked].astype(np.float32)).astype(np.float64)
        inside = weights >= params.min_p
        if params.top_p < 1:
            ends = np.cumsum(weights)
            inside[1:] &= ends[:-1] < params.top_p * ends[-1]
        return np.sort(ranked[inside])


def _check(
    name: str, value: float | None, least: float, most: float | None, *, whole: bool = False, open_below: bool = False
) -> None:
    """Raise UsageError unless `value` is None or a number in range."""
    if value is None:
        return
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if number and (least < value or (value == least and not open_below)) and (most is None or value <= most):
        return
    above = f"{'above' if open_below else 'at least'} {least}"
    kind = "whole number" if whole else "number"
    raise UsageError(f"{name}={value!r} is out of range.", f"Give a {kind} {above}{'' if most is None else f' and at most {most}'}.")
