"""Seconds a token with guesses, where weights are random: acceptance is simulated, or there is none at all.

The first run is plain. Simulated guesses then know its tokens (speculate/simulated.py); on random text, where each
token is drawn by lot whatever the model says, guesses by the real drafters are in vain, and what is left is their cost.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.benchmarks.timed_decoding import Decoding, decode, fresh_speculator, guessing, own_drafters, require_equal
from penstock.errors import ContextError, UsageError
from penstock.llm import LLM
from penstock.options import OpenOptions
from penstock.sampling import Sampler, SamplingParams
from penstock.speculate.simulated import SimulatedDrafter
from penstock.system import machine

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from penstock.speculate.drafter import Drafter

    Tell = Callable[[str], None]

MOST_CHANCES = 8
PLAIN_PASSES = 16
"""Whose median passes on random text are compared with."""
SLACK = 16
"""Tokens of the first run that others are not asked for, so that their last passes are whole ones too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondsSettings(OpenOptions):
    """What to run, and how to open the model. Raises UsageError for counts below 1."""

    prompt_tokens: int = 16
    tokens: int = 64
    """After the prompt's pass."""
    repeats: int = 4

    def __post_init__(self) -> None:
        OpenOptions.__post_init__(self)
        for name in ("prompt_tokens", "tokens", "repeats"):
            if getattr(self, name) < 1:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} {getattr(self, name)}: at least 1 is needed.", f"Raise {option}.")


@dataclass(frozen=True, slots=True)
class PlainPasses:
    """Passes of one row, without guesses."""

    passes: int
    median_seconds: float
    streamed_bytes: float
    """Of a pass, median."""
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class GuessedPasses:
    """Passes that checked guesses; `seconds` are all they took, guessing included."""

    tokens: int
    passes: int
    seconds: float
    seconds_per_token: float
    tokens_per_pass: float
    nodes_per_pass: float
    draft_seconds_per_pass: float
    seconds_per_pass: float
    """Mean, guessing included."""
    computing_seconds_per_pass: float
    waiting_seconds_per_pass: float
    """For the disk."""
    streamed_bytes: float
    """Of a pass, median."""
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Simulation:
    """All repeats with guesses of these chances; costs and calibration are learned from the first on."""

    simulated_chances: list[float]
    """That the token to come is the first guess, the second, ..."""
    total: GuessedPasses
    repeats: list[GuessedPasses]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Machine:
    model: str
    draft: str | None
    draft_nodes: int | None
    """None: the engine's choice."""
    plain: PlainPasses
    tokens: int
    prompt_tokens: int
    peak_rss_bytes: int
    memory_ceiling_bytes: int
    threads: int
    isa: str
    identical: bool = True
    """Every run brought the tokens of the plain one, or there would be no result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedResult(_Machine):
    """Seconds a token with simulated acceptance, while the drafter's full cost is paid."""

    drafter: str
    """The one whose cost is paid."""
    simulations: list[Simulation] = field(default_factory=list)

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return {"measures": "seconds a token with SIMULATED acceptance"} | asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomResult(_Machine):
    """What guessing costs on random text."""

    drafters: list[str]
    dropped: list[str]
    """Those of them that turned out not to pay, and were asked no more."""
    guessed: GuessedPasses
    right: int
    """Guesses that were, by chance."""
    ratio: float
    """Seconds to those of as many plain passes as there were tokens."""

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return {"measures": "the cost of guessing on random text"} | asdict(self)


def parse_chances(text: str) -> list[float]:
    """ "0.70,0.12,0.05": raises UsageError unless these are up to 8 chances, positive and no more than 1 together."""
    try:
        chances = [float(part) for part in text.split(",")]
    except ValueError:
        chances = []
    if 0 < len(chances) <= MOST_CHANCES and all(0 < chance <= 1 for chance in chances) and sum(chances) <= 1 + 1e-9:
        return chances
    raise UsageError(
        f"--simulate {text}: these are not chances of a first, second, ... guess.",
        "Give up to 8 positive numbers that make at most 1 together, like 0.70,0.12,0.05.",
    )


def run_simulated(
    model: str | os.PathLike[str],
    settings: SecondsSettings,
    chances: Sequence[Sequence[float]],
    *,
    tell: Tell = lambda doing: None,
) -> SimulatedResult:
    """Open MODEL, decode plainly after a random prompt, and again with simulated guesses, once for each of `chances`.

    Raises as LLM.open does, UsageError where there is no drafter whose cost could be paid, and PenstockError where
    guesses changed a token.
    """
    tell("opening")
    with _open(model, settings) as llm:
        drafter = _paid(llm, settings)
        prompt = _prompt(llm, settings)
        params = SamplingParams(
            temperature=0, repetition_penalty=1.0, seed=0, max_tokens=settings.tokens + 1, ignore_eos=True
        )
        tell(f"{settings.tokens} plain passes")
        with guessing(llm, None):
            truth = decode(llm, prompt, params, settings.tokens)
        plain = _plain(llm, truth)
        simulations = [_simulate(llm, prompt, params, truth, drafter, each, settings, tell) for each in chances]
        return SimulatedResult(
            **_machine(llm, model, settings, plain), drafter=drafter.name, simulations=list(simulations)
        )


def run_random(
    model: str | os.PathLike[str], settings: SecondsSettings, *, tell: Tell = lambda doing: None
) -> RandomResult:
    """Open MODEL, take 16 plain passes over random text, then `tokens` tokens of it with the model's own drafters.

    Both have the same memory: what a draft takes is not there for weights in the plain passes either.
    """
    tell("opening")
    with _open(model, settings) as llm:
        prompt = _prompt(llm, settings)
        tell(f"{PLAIN_PASSES} plain passes")
        with guessing(llm, None):
            plain = _plain(llm, _random_text(llm, prompt, PLAIN_PASSES))
        drafters = [drafter.name for drafter in own_drafters(llm)]
        tell(f"{settings.tokens} tokens, guessed by {', '.join(drafters)}")
        run = _random_text(llm, prompt, settings.tokens)
        guessed = _guessed(llm, [run])
        return RandomResult(
            **_machine(llm, model, settings, plain),
            drafters=drafters,
            dropped=[name for name in drafters if name not in {drafter.name for drafter in own_drafters(llm)}],
            guessed=guessed,
            right=run.guesses.accepted,
            ratio=guessed.seconds_per_token / plain.median_seconds,
        )


def _open(model: str | os.PathLike[str], settings: SecondsSettings) -> LLM:
    return LLM.open_with(model, settings)


def _paid(llm: LLM, settings: SecondsSettings) -> Drafter:
    """The drafter whose cost is to be paid."""
    name = "coarse" if settings.draft is None else "draft"
    for drafter in own_drafters(llm):
        if drafter.name == name:
            return drafter
    raise UsageError(
        "There is no drafter whose cost could be paid: only packed weights have a coarse tier to guess with.",
        "Pack the model (penstock pack), or name a --draft.",
    )


def _prompt(llm: LLM, settings: SecondsSettings) -> list[int]:
    most = settings.prompt_tokens + settings.tokens + 1
    if most > llm.context:
        raise ContextError(
            f"{settings.prompt_tokens} tokens and {settings.tokens} more are more than the context of {llm.context}.",
            "Lower --prompt-tokens or --tokens.",
        )
    tokens: list[int] = np.random.default_rng(0).integers(0, llm.config.vocab_size, settings.prompt_tokens).tolist()
    return tokens


def _simulate(
    llm: LLM,
    prompt: list[int],
    params: SamplingParams,
    truth: Decoding,
    drafter: Drafter,
    chances: Sequence[float],
    settings: SecondsSettings,
    tell: Tell,
) -> Simulation:
    speculator = fresh_speculator(llm, [], settings.draft_nodes)
    said = ",".join(f"{chance:g}" for chance in chances)
    tokens = settings.tokens - min(SLACK, settings.tokens // 4)
    runs, repeats = [], []
    for seed in range(settings.repeats):
        tell(f"simulated acceptance {said}, run {seed + 1} of {settings.repeats}")
        known = prompt + truth.token_ids
        speculator.drafters = [SimulatedDrafter(drafter, known, chances, llm.config.vocab_size, seed)]
        with guessing(llm, speculator):
            run = decode(llm, prompt, params, tokens)
        require_equal(truth.token_ids, run.token_ids, f"Simulated acceptance {said}, run {seed + 1}")
        runs.append(run)
        repeats.append(_guessed(llm, [run]))
    return Simulation(list(chances), _guessed(llm, runs), repeats)


class _RandomText(Sampler):
    """Draws tokens by lot, after the work of choosing one. It ranks guesses as a greedy sampler does."""

    def __init__(self, sampler: Sampler, vocab_size: int) -> None:
        super().__init__(sampler.rule, sampler.seed, sampler._kernels)
        self._vocab_size = vocab_size

    def __call__(self, logits: Any, position: int, seen: Sequence[int]) -> int:
        super().__call__(logits, position, seen)
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=position))
        return int(rng.integers(self._vocab_size))


def _random_text(llm: LLM, prompt: list[int], tokens: int) -> Decoding:
    params = SamplingParams(temperature=0, repetition_penalty=1.0, seed=0, max_tokens=tokens + 1, ignore_eos=True)
    return decode(llm, prompt, params, tokens, lambda sampler: _RandomText(sampler, llm.config.vocab_size))


def _plain(llm: LLM, run: Decoding) -> PlainPasses:
    return PlainPasses(
        len(run.passes),
        statistics.median(one.seconds for one in run.passes),
        float(statistics.median(one.totals.bytes_read for one in run.passes)),
        llm.weights.resident_bytes,
    )


def _guessed(llm: LLM, runs: Sequence[Decoding]) -> GuessedPasses:
    passes = [one for run in runs for one in run.passes]
    count, tokens, seconds = len(passes), sum(run.tokens for run in runs), sum(run.seconds for run in runs)
    totals = [one.totals for one in passes]
    return GuessedPasses(
        tokens=tokens,
        passes=count,
        seconds=seconds,
        seconds_per_token=seconds / tokens,
        tokens_per_pass=tokens / count,
        nodes_per_pass=sum(each.guesses for each in totals) / count,
        draft_seconds_per_pass=sum(each.draft_seconds for each in totals) / count,
        seconds_per_pass=seconds / count,
        computing_seconds_per_pass=sum(each.compute_seconds for each in totals) / count,
        waiting_seconds_per_pass=sum(each.wait_seconds for each in totals) / count,
        streamed_bytes=float(statistics.median(each.bytes_read for each in totals)),
        resident_bytes=llm.weights.resident_bytes,
    )


def _machine(llm: LLM, model: str | os.PathLike[str], settings: SecondsSettings, plain: PlainPasses) -> dict[str, Any]:
    return {
        "model": str(model),
        "draft": settings.draft,
        "draft_nodes": settings.draft_nodes,
        "plain": plain,
        "tokens": settings.tokens,
        "prompt_tokens": settings.prompt_tokens,
        "peak_rss_bytes": machine.peak_process_bytes(),
        "memory_ceiling_bytes": llm.memory.budget.ceiling,
        "threads": llm.kernels.threads,
        "isa": llm.kernels.isa,
    }
