"""Seconds a token with guesses, where weights are random: acceptance is simulated, or there is none at all.

The first run is plain. Simulated guesses then know its tokens (speculate/simulated.py); on random text, where each
token is drawn by lot whatever the model says, guesses by the real drafters are in vain, and what is left is their cost.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from penstock.benchmarks.figures import check_counts, process_figures
from penstock.benchmarks.timed_decoding import Decoding, decode, guessing, own_drafters, rates, require_equal
from penstock.errors import ContextError, UsageError
from penstock.llm import LLM
from penstock.options import OpenOptions
from penstock.sampling import Sampler, SamplingParams
from penstock.speculate.simulated import SimulatedDrafter

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from penstock.compute.kernels import F32
    from penstock.models.logits import Likeliest
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
        check_counts(self, "prompt_tokens", "tokens", "repeats")


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

    simulated_chances: list[list[float]]
    """That the token to come is the first guess, the second, ...: right after the root, then one token on, ...; the
    last hold for all that follows."""
    total: GuessedPasses
    repeats: list[GuessedPasses]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What both kinds of runs tell."""

    measures: ClassVar[str]
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

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return {"measures": self.measures} | asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedResult(_Measured):
    """Seconds a token with simulated acceptance, while the drafter's full cost is paid."""

    measures = "seconds a token with SIMULATED acceptance"
    drafter: str
    """The one whose cost is paid."""
    simulations: list[Simulation]


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomResult(_Measured):
    """What guessing costs on random text."""

    measures = "the cost of guessing on random text"
    drafters: list[str]
    dropped: list[str]
    """Those of them that turned out not to pay, and were asked no more."""
    guessed: GuessedPasses
    right: int
    """Guesses that were, by chance."""
    ratio: float
    """Seconds to those of as many plain passes as there were tokens."""


def parse_chances(text: str) -> list[list[float]]:
    """ "0.70,0.12,0.05", or several of these, depth by depth, with semicolons between them.

    Raises UsageError unless each is up to 8 chances, positive and no more than 1 together.
    """
    try:
        depths = [[float(part) for part in depth.split(",")] for depth in text.split(";")]
    except ValueError:
        depths = [[]]
    if all(
        0 < len(chances) <= MOST_CHANCES and all(0 < chance <= 1 for chance in chances) and sum(chances) <= 1 + 1e-9
        for chances in depths
    ):
        return depths
    raise UsageError(
        f"--simulate {text}: these are not chances of a first, second, ... guess.",
        "Give up to 8 positive numbers that make at most 1 together, like 0.70,0.12,0.05; or several of these, "
        "depth by depth, with semicolons between them.",
    )


def say_chances(chances: Sequence[Sequence[float]]) -> str:
    """As `parse_chances` takes it."""
    return ";".join(",".join(f"{chance:g}" for chance in each) for each in chances)


def run_simulated(
    model: str | os.PathLike[str],
    settings: SecondsSettings,
    chances: Sequence[Sequence[Sequence[float]]],
    *,
    tell: Tell = lambda doing: None,
) -> SimulatedResult:
    """Open MODEL, decode plainly after a random prompt, and again with simulated guesses, once for each of `chances`.

    Raises as LLM.open does, UsageError where there is no drafter whose cost could be paid, and PenstockError where
    guesses changed a token.
    """
    tell("opening")
    with LLM.open_with(model, settings) as llm:
        drafter, prompt = _paid(llm, settings), _prompt(llm, settings)
        tell(f"{settings.tokens} plain passes")
        with guessing(llm):
            truth = decode(llm, prompt, _params(settings.tokens), settings.tokens)
        plain = _plain(llm, truth)
        simulations = [_simulate(llm, settings, prompt, truth.token_ids, drafter, each, tell) for each in chances]
        return SimulatedResult(
            **_common(llm, model, settings), plain=plain, drafter=drafter.name, simulations=simulations
        )


def run_random(
    model: str | os.PathLike[str], settings: SecondsSettings, *, tell: Tell = lambda doing: None
) -> RandomResult:
    """Open MODEL, take 16 plain passes over random text, then `tokens` tokens of it with the model's own drafters.

    Both have the same memory: what a draft takes is not there for weights in the plain passes either.
    """
    tell("opening")
    with LLM.open_with(model, settings) as llm:
        prompt = _prompt(llm, settings)
        tell(f"{PLAIN_PASSES} plain passes")
        with guessing(llm):
            plain = _plain(llm, decode_random_text(llm, prompt, PLAIN_PASSES))
        drafters = [drafter.name for drafter in own_drafters(llm)]
        tell(f"{settings.tokens} tokens, guessed by {', '.join(drafters)}")
        run = decode_random_text(llm, prompt, settings.tokens)
        guessed = _guessed(llm, [run])
        return RandomResult(
            **_common(llm, model, settings),
            plain=plain,
            drafters=drafters,
            dropped=[name for name in drafters if name not in {drafter.name for drafter in own_drafters(llm)}],
            guessed=guessed,
            right=run.guesses.accepted,
            ratio=guessed.seconds_per_token / plain.median_seconds,
        )


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
    if settings.prompt_tokens + settings.tokens + 1 > llm.context:
        raise ContextError(
            f"{settings.prompt_tokens} tokens and {settings.tokens} more are more than the context of {llm.context}.",
            "Lower --prompt-tokens or --tokens.",
        )
    tokens: list[int] = np.random.default_rng(0).integers(0, llm.config.vocab_size, settings.prompt_tokens).tolist()
    return tokens


def _params(tokens: int) -> SamplingParams:
    """Greedy, with one token more, which the prompt's pass draws."""
    return SamplingParams(temperature=0, repetition_penalty=1.0, seed=0, max_tokens=tokens + 1, ignore_eos=True)


def _simulate(
    llm: LLM,
    settings: SecondsSettings,
    prompt: list[int],
    truth: list[int],
    drafter: Drafter,
    chances: Sequence[Sequence[float]],
    tell: Tell,
) -> Simulation:
    """All repeats; `truth`: the tokens after the prompt, of the plain run."""
    said = say_chances(chances)
    tokens = settings.tokens - min(SLACK, settings.tokens // 4)
    runs = []
    with guessing(llm, nodes=settings.draft_nodes) as speculator:
        for seed in range(settings.repeats):
            tell(f"simulated acceptance {said}, run {seed + 1} of {settings.repeats}")
            speculator.drafters = [SimulatedDrafter(drafter, prompt + truth, chances, llm.config.vocab_size, seed)]
            runs.append(decode(llm, prompt, _params(settings.tokens), tokens))
            require_equal(truth, runs[-1].token_ids, f"Simulated acceptance {said}, run {seed + 1}")
    return Simulation([list(each) for each in chances], _guessed(llm, runs), [_guessed(llm, [run]) for run in runs])


class _RandomText(Sampler):
    """Draws tokens by lot, after the work of choosing one. It ranks guesses as a greedy sampler does."""

    def __init__(self, sampler: Sampler, llm: LLM) -> None:
        super().__init__(sampler.rule, sampler.seed, llm.kernels)
        self._vocab_size = llm.config.vocab_size

    def __call__(
        self, logits: F32, position: int, seen: Sequence[int], allowed: npt.NDArray[np.bool_] | None = None
    ) -> int:
        super().__call__(logits, position, seen, allowed)
        return self._by_lot(position)

    def best(self, likeliest: Likeliest, position: int, allows: Callable[[Sequence[int]], bool] | None = None) -> int:
        super().best(likeliest, position, allows)
        return self._by_lot(position)

    def _by_lot(self, position: int) -> int:
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=position))
        return int(rng.integers(self._vocab_size))


def decode_random_text(llm: LLM, prompt: list[int], tokens: int) -> Decoding:
    """As `decode`, with each token drawn by lot; the same tokens every time."""
    return decode(llm, prompt, _params(tokens), tokens, lambda sampler: _RandomText(sampler, llm))


def _plain(llm: LLM, run: Decoding) -> PlainPasses:
    return PlainPasses(
        passes=len(run.passes),
        median_seconds=statistics.median(one.seconds for one in run.passes),
        streamed_bytes=float(statistics.median(one.totals.bytes_read for one in run.passes)),
        resident_bytes=llm.weights.resident_bytes,
    )


def _guessed(llm: LLM, runs: Sequence[Decoding]) -> GuessedPasses:
    totals = [one.totals for run in runs for one in run.passes]
    seconds = sum(run.seconds for run in runs)
    return GuessedPasses(
        **rates(runs),
        seconds=seconds,
        seconds_per_pass=seconds / len(totals),
        computing_seconds_per_pass=sum(each.compute_seconds for each in totals) / len(totals),
        waiting_seconds_per_pass=sum(each.wait_seconds for each in totals) / len(totals),
        streamed_bytes=float(statistics.median(each.bytes_read for each in totals)),
        resident_bytes=llm.weights.resident_bytes,
    )


def _common(llm: LLM, model: str | os.PathLike[str], settings: SecondsSettings) -> dict[str, Any]:
    names = ("draft", "draft_nodes", "tokens", "prompt_tokens")
    return {"model": str(model)} | {name: getattr(settings, name) for name in names} | process_figures(llm)
