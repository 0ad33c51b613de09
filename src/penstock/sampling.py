"""From logits to a token: penalties, filters, and one draw by the Gumbel-max trick.

The draw is argmax over the kept tokens of logit / T + Gumbel noise, the noise a pure function of (seed, choice,
position, token) (Gumbel-max: Maddison et al., arXiv 1411.0030). So a token depends on nothing but its own logits and
key: not on the batch, not on speculation, not on the order of draws.

Filters work in float64 on the float32 logits. Only sums taken strictly in order (cumsum) and the core's own exp are
used, since NumPy's sums and transcendentals vary by CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from penstock.compute.kernels import gumbel
from penstock.errors import NumericsError, UsageError
from penstock.grammars.grammar import Grammar

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from penstock.checkpoints.generation_config import GenerationDefaults
    from penstock.compute.kernels import F32, F64, I64, Kernels
    from penstock.models.logits import Likeliest

T = TypeVar("T", int, float)
LogitBias = tuple[tuple[int, float], ...]

MOST_LOGPROBS = 20
MOST_BIASED = 1024
"""Tokens with a bias."""
MOST_WHOLE = 2**63 - 1
"""No count is greater, so that none outgrows the integers that it comes to meet."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens and when to stop. None means: as the checkpoint's generation_config.json says.

    temperature: 0 is greedy. top_k: 0 keeps all. top_p, min_p: 1 and 0 keep all. repetition_penalty: 1 is none; the
    prompt's tokens count, too. frequency_penalty, presence_penalty: taken off the logit of each token of the answer so
    far, as often as it is there, and once; 0 is none. logit_bias: what is added to the logits of tokens, by id.
    seed: None draws a fresh one. max_tokens: None goes on to the end of the context. stop: text that ends the output
    and is cut off it. ignore_eos: go on past the model's end-of-sequence tokens. logprobs: tell the logarithm of each
    token's probability, and so many of the likeliest tokens with theirs (at most 20); None tells nothing.
    schema, regex, grammar: what the answer has to be, one of them at most: JSON of a JSON Schema, which is a mapping or
    JSON; text that a regular expression matches; text of a grammar in Lark's or llama.cpp's notation.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] | LogitBias = ()
    seed: int | None = None
    max_tokens: int | None = None
    stop: str | Sequence[str] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    schema: Mapping[str, Any] | str | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, 2)
        _check("top_p", self.top_p, 0, 1, open_below=True)
        _check("top_k", self.top_k, 0, MOST_WHOLE, whole=True)
        _check("min_p", self.min_p, 0, 1)
        _check("repetition_penalty", self.repetition_penalty, 0, None, open_below=True)
        _check("frequency_penalty", self.frequency_penalty, -2, 2)
        _check("presence_penalty", self.presence_penalty, -2, 2)
        _ = self.biases, self.form  # which raise
        _check("seed", self.seed, 0, 2**64 - 1, whole=True)
        _check("max_tokens", self.max_tokens, 1, MOST_WHOLE, whole=True)
        _check("logprobs", self.logprobs, 0, MOST_LOGPROBS, whole=True)
        listed = isinstance(self.stop, Sequence) and all(isinstance(stop, str) and stop for stop in self.stops)
        if not listed:
            raise UsageError(
                f"stop={self.stop!r}: stop strings are non-empty text.", "Give a string or a list of them."
            )

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def form(self) -> Grammar | None:
        """What the answer has to be. Raises UsageError."""
        return Grammar.of(self.schema, self.regex, self.grammar)

    @property
    def biases(self) -> LogitBias:
        """`logit_bias` as pairs, by id. Raises UsageError."""
        try:
            pairs = dict(self.logit_bias)
        except (TypeError, ValueError):
            raise UsageError(f"logit_bias={self.logit_bias!r} is no mapping.", "Give {token id: bias}.") from None
        if len(pairs) > MOST_BIASED:
            raise UsageError(f"logit_bias is of {len(pairs)} tokens.", f"Give it for at most {MOST_BIASED}.")
        for token, bias in pairs.items():
            _check("a token of logit_bias", token, 0, 2**31 - 1, whole=True)
            _check(f"logit_bias[{token}]", bias, -100, 100)
        return tuple(sorted((token, float(bias)) for token, bias in pairs.items()))

    def rule(self, defaults: GenerationDefaults) -> SamplingRule:
        """How to draw: these parameters, `defaults` where they are None, and no filter where both are."""
        unset = SamplingRule()
        temperature = self.temperature if defaults.do_sample or self.temperature is not None else 0.0
        return SamplingRule(
            temperature=_first(temperature, defaults.temperature, unset.temperature),
            top_p=_first(self.top_p, defaults.top_p, unset.top_p),
            top_k=_first(self.top_k, defaults.top_k, unset.top_k),
            min_p=_first(self.min_p, defaults.min_p, unset.min_p),
            repetition_penalty=_first(self.repetition_penalty, defaults.repetition_penalty, unset.repetition_penalty),
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            logit_bias=self.biases,
        )


@dataclass(frozen=True, slots=True)
class SamplingRule:
    """SamplingParams with nothing left open; the defaults draw from the model's own distribution."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: LogitBias = ()

    @property
    def plain(self) -> bool:
        """Whether draws are of the logits as they are."""
        counted = self.frequency_penalty or self.presence_penalty
        return self.repetition_penalty == 1 and not counted and not self.logit_bias


class Sampler:
    """Draws the tokens of one sequence (or of one choice of it)."""

    def __init__(self, rule: SamplingRule, seed: int, kernels: Kernels, choice: int = 0, prompt: int = 0) -> None:
        """`seed` is below 2**64; `prompt`: tokens before the sequence's own, of which penalties of how often a token is
        there do not count."""
        self.rule = rule
        self.seed = seed
        self.choice = choice
        self.prompt = prompt
        self._kernels = kernels

    @property
    def takes_likeliest(self) -> bool:
        """Whether every draw is the likeliest token."""
        return self.rule.temperature == 0 and self.rule.plain

    def best(
        self, likeliest: Likeliest, position: int, allows: Callable[[Sequence[int]], bool] | None = None
    ) -> int | None:
        """As a call, where that is so: `likeliest` is of one row; `allows`: whether a token may be drawn, given as a
        list of it. None where the row does not tell. Raises NumericsError as a call does."""
        check_finite(likeliest.peaks[0], position)
        tokens, shares = likeliest.tokens[0].tolist(), likeliest.shares[0]
        if allows is None or allows(tokens[:1]):
            return int(tokens[0])
        for place, token in enumerate(tokens[1:-1], 1):
            if allows([token]):
                # Among equals the first by id would be drawn, which need not be this one.
                return int(token) if shares[place - 1] > shares[place] > shares[place + 1] else None
        return None

    def __call__(
        self, logits: F32, position: int, seen: Sequence[int], allowed: npt.NDArray[np.bool_] | None = None
    ) -> int:
        """The token at `position`, from logits float32 [vocab_size]; `seen` are the tokens before it. `allowed`: bool
        [vocab_size], which tokens may be drawn; None: all.

        Raises NumericsError if a logit is NaN or infinitely large.
        """
        check_finite(logits.max(), position)
        if allowed is not None:
            logits = np.where(allowed, logits, np.float32(-np.inf))
        if self.takes_likeliest:
            return int(logits.argmax())
        scores = self._penalised(logits.astype(np.float64), seen)
        if self.rule.temperature == 0:
            return int(scores.argmax())
        with np.errstate(over="ignore"):  # at tiny temperatures all but the likeliest go to minus infinity
            scores = (scores - scores.max()) / self.rule.temperature
            kept = self._kept(scores)
        return int(kept[(scores[kept] + gumbel(self.seed, self.choice, position, kept)).argmax()])

    def rank(
        self, tokens: I64, logits: F32, position: int, seen: Sequence[int], count: int, *, filters: bool = True
    ) -> tuple[I64, F64]:
        """The `count` of `tokens` that come nearest to being drawn at `position`, and by how much each misses the best.

        For guessing a draw from logits that are not quite the model's own: the noise is that of the draw itself, so
        guesses are right more often than by the distribution alone (arXiv 2408.07978). Best first; the draw is of the
        greatest logit / T + noise, and the scores, at most 0, are these sums less the best of them. `tokens` ascend.
        `filters`: leave out what top-k, top-p and min-p would.
        """
        scores = self._penalised(logits.astype(np.float64), seen, tokens)
        kept = np.arange(len(tokens))
        if self.rule.temperature != 0:
            with np.errstate(over="ignore"):
                scores = (scores - scores.max()) / self.rule.temperature
                kept = self._kept(scores) if filters else kept
            scores = scores[kept] + gumbel(self.seed, self.choice, position, tokens[kept])
        best = np.argsort(-scores, kind="stable")[:count]
        return tokens[kept[best]], scores[best] - scores[best[0]]

    def _penalised(self, scores: F64, seen: Sequence[int], tokens: I64 | None = None) -> F64:
        """Logits of tokens already there divided by the penalty, or multiplied where negative (arXiv 1909.05858); those
        of tokens of the answer less the penalties of how often they are there; and biases.

        `scores` are those of `tokens`, or of all.
        """
        rule, penalty = self.rule, self.rule.repetition_penalty
        if penalty != 1 and len(seen):
            there = np.unique(np.asarray(seen)) if tokens is None else np.isin(tokens, seen)
            scores[there] = np.where(scores[there] < 0, scores[there] * penalty, scores[there] / penalty)
        if (rule.frequency_penalty or rule.presence_penalty) and len(seen) > self.prompt:
            said, counts = np.unique(np.asarray(seen[self.prompt :]), return_counts=True)
            penalties = -rule.presence_penalty - rule.frequency_penalty * counts.astype(np.float64)
            _add(scores, tokens, said, penalties)
        if rule.logit_bias:
            biased, biases = zip(*rule.logit_bias, strict=True)
            _add(scores, tokens, np.array(biased), np.array(biases))
        return scores

    def _kept(self, scores: F64) -> I64:
        """Ids that pass top-k, then top-p, then min-p, ascending. Equal scores rank by id."""
        rule = self.rule
        kept = np.arange(len(scores))
        if rule.top_k == 0 and rule.top_p == 1 and rule.min_p == 0:
            return kept
        ranked = np.argsort(-scores, kind="stable")[: rule.top_k or None]
        weights = self._kernels.exp(scores[ranked].astype(np.float32)).astype(np.float64)
        inside = weights >= rule.min_p
        if rule.top_p < 1:
            ends = np.cumsum(weights)
            inside[1:] &= ends[:-1] < rule.top_p * ends[-1]
        return np.sort(ranked[inside])


def _add(scores: F64, tokens: I64 | None, ids: I64, values: F64) -> None:
    """Add values to the scores of these ids, ascending, in place: `scores` are of `tokens`, ascending, or of all."""
    if tokens is None:
        there = ids < len(scores)
        scores[ids[there]] += values[there]
        return
    places = np.minimum(np.searchsorted(tokens, ids), len(tokens) - 1)
    there = tokens[places] == ids
    scores[places[there]] += values[there]


def check_finite(greatest: np.float32 | float, position: int) -> None:
    """Raise NumericsError where the greatest of the logits for a position is no number, or infinite."""
    if not np.isfinite(greatest):
        raise NumericsError(
            f"The logits for position {position} are not finite numbers.",
            "The weights are damaged, or overflow float32: compare the files' checksums with the publisher's.",
        )


def _first(value: T | None, default: T | None, neutral: T) -> T:
    """The first that is set."""
    return neutral if (chosen := default if value is None else value) is None else chosen


def _check(
    name: str, value: float | None, least: float, most: float | None, *, whole: bool = False, open_below: bool = False
) -> None:
    """Raise UsageError unless `value` is None or a number in range."""
    if value is None:
        return
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    # Compared, never converted: Python's integers have no end, and floats do.
    finite = number and abs(value) <= sys.float_info.max
    if finite and (least < value or (value == least and not open_below)) and (most is None or value <= most):
        return
    above = f"{'above' if open_below else 'at least'} {least}"
    if most is not None and (most != MOST_WHOLE or (number and value > most)):  # nobody asks for that many in earnest
        above += f" and at most {most}"
    kind = "whole number" if whole else "number"
    shown = f"a number of {value.bit_length()} bits" if type(value) is int and not finite else repr(value)
    raise UsageError(f"{name}={shown} is out of range.", f"Give a {kind} {above}.")
