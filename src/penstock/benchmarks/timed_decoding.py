"""One sequence decoded and timed pass by pass, with guesses or without: what the benchmarks of guessing share."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from penstock.errors import PenstockError
from penstock.speculate.costs import Costs
from penstock.speculate.speculator import Record, Speculator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from penstock.llm import LLM
    from penstock.models.pass_stats import PassTotals
    from penstock.sampling import Sampler, SamplingParams
    from penstock.speculate.drafter import Drafter


@dataclass(frozen=True, slots=True)
class TimedPass:
    """A pass after the prompt's: wall seconds, guessing and drawing included, and the tokens that it brought."""

    seconds: float
    tokens: int
    totals: PassTotals


@dataclass(slots=True)
class Decoding:
    """The tokens of a sequence, the first of them drawn by the prompt's pass, and the passes of the others."""

    token_ids: list[int]
    passes: list[TimedPass] = field(default_factory=list)
    guesses: Record = field(default_factory=Record)

    @property
    def seconds(self) -> float:
        """Wall seconds of all passes."""
        return sum(one.seconds for one in self.passes)

    @property
    def tokens(self) -> int:
        """Tokens that all passes yielded."""
        return sum(one.tokens for one in self.passes)


def decode(
    llm: LLM,
    prompt: Sequence[int],
    params: SamplingParams,
    tokens: int,
    sampler: Callable[[Sampler], Sampler] = lambda sampler: sampler,
) -> Decoding:
    """Complete a prompt until the passes after the prompt's have brought `tokens` tokens or more.

    The last pass is a whole one where `params` allow more tokens than that, so tokens and passes are in proportion.
    `sampler`: puts another in place of the sequence's. Raises as LLM.stream does.
    """
    completion = llm.submit(prompt, params)
    sequence = completion.sequence
    sequence.sampler = sampler(sequence.sampler)
    out, begin = Decoding(sequence.token_ids, guesses=sequence.guesses), 0.0
    for piece in llm.drive([completion]):  # a piece a pass
        if begin:
            seconds = time.perf_counter() - begin
            out.passes.append(TimedPass(seconds, len(piece.token_ids), piece.stats.log[-1]))
        if out.tokens >= tokens:
            break
        begin = time.perf_counter()
    return out


def rates(runs: Sequence[Decoding]) -> dict[str, Any]:
    """Tokens, passes and means of several runs together; seconds of a pass include those of guessing."""
    totals = [one.totals for run in runs for one in run.passes]
    passes, tokens = len(totals), sum(run.tokens for run in runs)
    return {
        "tokens": tokens,
        "passes": passes,
        "tokens_per_pass": tokens / passes,
        "nodes_per_pass": sum(each.guesses for each in totals) / passes,
        "draft_seconds_per_pass": sum(each.draft_seconds for each in totals) / passes,
        "seconds_per_token": sum(run.seconds for run in runs) / tokens,
    }


@contextmanager
def guessing(llm: LLM, drafters: Sequence[Drafter] = (), nodes: int | None = 0) -> Iterator[Speculator]:
    """Let these drafters guess within the block, instead of the model's own, through a speculator that has learned
    nothing yet. `nodes`: guesses a pass, None for the engine's choice; without any, decoding is plain."""
    engine = llm.engine
    own, engine.speculator = engine.speculator, Speculator(drafters, Costs.of(llm.architecture), nodes)
    try:
        yield engine.speculator
    finally:
        engine.speculator = own


def own_drafters(llm: LLM) -> list[Drafter]:
    """The drafters that the model was opened with."""
    return llm.engine.speculator.drafters


def require_equal(plain: Sequence[int], tokens: Sequence[int], doing: str) -> None:
    """Raise PenstockError where guesses changed a token; either may be longer than the other."""
    for index, (expected, got) in enumerate(zip(plain, tokens)):  # noqa: B905
        if expected != got:
            raise PenstockError(
                f"{doing}: token {index} is {got}, and {expected} in plain decoding.",
                "Guesses must not change a token: please report this with the model and the command.",
            )
