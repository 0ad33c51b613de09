"""Seconds a pass and where they went, beside what the disk can do: what `penstock bench` measures."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock import machine
from penstock.errors import ContextError, UsageError
from penstock.llm import LLM
from penstock.probe import measure_disk
from penstock.sampling import SamplingParams

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from penstock.completion import Stats
    from penstock.events import Listener
    from penstock.stage import PassTotals

TELL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Settings:
    """What to run; `memory`, `threads` and `kv_dtype` as for LLM.open. Raises UsageError for counts below 1."""

    passes: int = 5
    """The prompts' first, then one for each further token."""
    prompt_tokens: int = 16
    batch: int = 1
    """Sequences that share the passes."""
    memory: str | int | None = None
    threads: int | None = None
    kv_dtype: str = "bf16"

    def __post_init__(self) -> None:
        for name in ("passes", "prompt_tokens", "batch"):
            if getattr(self, name) < 1:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} {getattr(self, name)}: at least 1 is needed.", f"Raise {option}.")


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds and bytes. Medians are over the passes of single tokens; where there are none, it is the prompt's."""

    model: str
    seconds_per_pass: list[float]
    """The first is the prompt's: the sum, where so long a prompt takes several passes."""
    median_seconds_per_pass: float
    first_token_seconds: float
    tokens_per_second: float
    """Of all sequences, after their first tokens; sampling included."""
    weight_bytes: int
    """All weights that a pass needs, at full size."""
    resident_bytes: int
    """Those of them that are in memory after the last pass."""
    resident_share_of_memory: float
    """Of the ceiling."""
    streamed_bytes_per_pass: float
    first_pass_bytes_read: int
    """By the passes of the prompt, together."""
    probe_bytes_per_second: float
    disk_limit_seconds: float
    """What the probe would take for the bytes that a pass streams."""
    ratio_to_disk_limit: float | None
    """Median pass to disk_limit_seconds; None where all weights are in memory."""
    disk_wait_seconds: float
    """Median of what a pass stood still for the disk."""
    read_seconds: float
    """Median of a pass's reads, added up although several run at once."""
    compute_seconds: float
    """Median of the rest of a pass."""
    open_seconds: float
    peak_rss_bytes: int
    memory_ceiling_bytes: int
    threads: int
    isa: str
    batch: int
    prompt_tokens: int
    prompt_passes: int
    """Passes that the prompt took."""

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def run(
    model: str | os.PathLike[str],
    settings: Settings,
    *,
    tell: Callable[[str], None] = lambda doing: None,
    listener: Listener | None = None,
) -> Result:
    """Open MODEL, probe its disk, and run passes of plain greedy decoding after random prompts.

    tell: told what is being done, in a few words, layer by layer. listener: hears of the passes, not of the probe.
    Raises as LLM.open and LLM.generate do, and ContextError where prompt and passes are more than the context.
    """
    tell("opening")
    progress = _Progress(settings.passes, tell)
    begin = time.perf_counter()
    with LLM.open(
        model, memory=settings.memory, threads=settings.threads, kv_dtype=settings.kv_dtype, on_layer=progress
    ) as llm:
        open_seconds = time.perf_counter() - begin
        _check_context(llm, settings)
        tell("measuring the disk")
        disk_rate = probe_disk(llm)
        if listener is not None:
            llm.events.listeners.append(listener)
        return _result(llm, str(model), settings, _generate(llm, settings), disk_rate, open_seconds)


def probe_disk(llm: LLM) -> float:
    """Bytes a second of the disk of an open model's files, within its ceiling; before its first pass."""
    plan = llm.plan_pass()
    return measure_disk(llm.files, memory=plan.ceiling - plan.process - plan.allowance).bytes_per_second


def _result(llm: LLM, model: str, settings: Settings, stats: Stats, disk_rate: float, open_seconds: float) -> Result:
    prompt_passes = 1 + next(i for i, totals in enumerate(stats.log) if totals.logits)
    prompt, further = stats.log[:prompt_passes], stats.log[prompt_passes:]
    typical = _Typical(further, settings.batch) if further else _Typical(prompt, settings.batch)
    seconds, streamed = typical.median("seconds"), typical.median("bytes_read")
    resident, ceiling = llm.weights.resident_bytes, llm.memory.budget.ceiling
    return Result(
        model=model,
        seconds_per_pass=[sum(totals.seconds for totals in prompt), *(totals.seconds for totals in further)],
        median_seconds_per_pass=seconds,
        first_token_seconds=stats.first_token_seconds,
        tokens_per_second=_tokens_per_second(stats, settings),
        weight_bytes=llm.weights.pass_bytes,
        resident_bytes=resident,
        resident_share_of_memory=resident / ceiling,
        streamed_bytes_per_pass=streamed,
        first_pass_bytes_read=sum(totals.bytes_read for totals in prompt),
        probe_bytes_per_second=disk_rate,
        disk_limit_seconds=streamed / disk_rate,
        ratio_to_disk_limit=seconds / (streamed / disk_rate) if resident < llm.weights.pass_bytes else None,
        disk_wait_seconds=typical.median("wait_seconds"),
        read_seconds=typical.median("read_seconds"),
        compute_seconds=typical.median("compute_seconds"),
        open_seconds=open_seconds,
        peak_rss_bytes=machine.peak_process_bytes(),
        memory_ceiling_bytes=ceiling,
        threads=llm.kernels.threads,
        isa=llm.kernels.isa,
        batch=settings.batch,
        prompt_tokens=settings.prompt_tokens,
        prompt_passes=prompt_passes,
    )


class _Typical:
    """Medians over the passes of one token a sequence.

    Where a batch's prompts need several passes, the later ones still read theirs while the first one goes on.
    """

    def __init__(self, passes: Sequence[PassTotals], batch: int) -> None:
        self._passes = [totals for totals in passes if totals.rows == batch] or passes

    def median(self, name: str) -> float:
        return float(statistics.median(getattr(totals, name) for totals in self._passes))


class _Progress:
    """Tells how far the passes are: each pass, and its layers as seldom as not to be felt."""

    def __init__(self, passes: int, tell: Callable[[str], None]) -> None:
        self._passes = passes
        self._tell = tell
        self._begun = 0
        self._told = 0.0

    def __call__(self, layer: int, read_seconds: float, wait_seconds: float, compute_seconds: float) -> None:
        self._begun += layer == 0
        now = time.perf_counter()
        if layer == 0 or now - self._told > TELL_SECONDS:
            self._told = now
            self._tell(f"pass {self._begun} of {max(self._passes, self._begun)}, layer {layer}")


def _check_context(llm: LLM, settings: Settings) -> None:
    if settings.prompt_tokens + settings.passes > llm.context:
        raise ContextError(
            f"{settings.prompt_tokens} tokens and {settings.passes} passes are more than the context of {llm.context}.",
            "Lower --prompt-tokens or --passes.",
        )


def _generate(llm: LLM, settings: Settings) -> Stats:
    """What the first of the sequences took: all of them begin and end together."""
    shape = (settings.batch, settings.prompt_tokens)
    prompts = np.random.default_rng(0).integers(0, llm.config.vocab_size, shape).tolist()
    params = SamplingParams(temperature=0, max_tokens=settings.passes, ignore_eos=True)
    return llm.generate(prompts, params)[0].stats


def _tokens_per_second(stats: Stats, settings: Settings) -> float:
    if settings.passes == 1:
        return settings.batch / stats.seconds
    return settings.batch * (settings.passes - 1) / (stats.seconds - stats.first_token_seconds)
