"""Seconds a pass and where they went, beside what the disk can do: what `penstock bench` measures."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.benchmarks.figures import check_counts, experts_figures, process_figures, weight_figures
from penstock.engine.scheduler import MAX_ROWS
from penstock.errors import ContextError, UsageError
from penstock.llm import LLM
from penstock.memory.budget import LEAST_CHUNK_ROWS
from penstock.options import OpenOptions
from penstock.sampling import SamplingParams
from penstock.stages.probe import measure_disk, room_for_probe

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from penstock.completion import Stats
    from penstock.events import Listener
    from penstock.models.pass_stats import PassTotals
    from penstock.models.stage import OnLayer
    from penstock.stages.probe import DiskSpeed

TELL_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings(OpenOptions):
    """What to run, and how to open the model. Raises UsageError for counts below 1."""

    passes: int = 5
    """The prompts', as one, then those that bring each sequence a further token."""
    prompt_tokens: int = 16
    batch: int = 1
    """Sequences that share the passes."""

    def __post_init__(self) -> None:
        OpenOptions.__post_init__(self)
        check_counts(self, "passes", "prompt_tokens", "batch")


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds and bytes. Medians are over the passes of one row a sequence; where there are none, over the prompts'."""

    model: str
    seconds_per_pass: list[float]
    """Wall time. The first is the prompts': the sum, where they take several passes."""
    median_seconds_per_pass: float
    first_token_seconds: float
    """Until every sequence had its first token."""
    tokens_per_second: float
    """Of all sequences, after all of them had their first tokens; sampling included."""
    weight_bytes: int
    """All weights that a pass needs, in BF16."""
    stored_bytes: int
    """The same weights as the checkpoint stores them."""
    packed_ratio: float | None
    """stored_bytes to weight_bytes; None where none of them is packed."""
    decoded_bytes_per_second: float | None
    """weight_bytes to compute_seconds: how fast a pass decodes packed weights and applies them, by the BF16 that they
    stand for; None where none is packed."""
    resident_bytes: int
    """Those of the stored ones that are in memory after the last pass."""
    resident_share_of_memory: float
    """Of the ceiling."""
    streamed_bytes_per_pass: float
    experts_per_pass: float | None
    """How many experts the rows of a pass need, of all layers, in the mean; None where there are none."""
    experts_read_per_pass: float | None
    expert_hit_rate: float | None
    first_pass_bytes_read: int
    """By the passes of the prompts, together."""
    probe_bytes_per_second: float
    probe_read_bytes: int
    """Of each of the probe's reads: smaller ones where memory is short."""
    disk_limit_seconds: float
    """What the probe would take for the bytes that a pass streams."""
    ratio_to_disk_limit: float | None
    """Median pass to disk_limit_seconds; None where a pass streams nothing."""
    disk_wait_seconds: float
    """Median of what a pass stood still for the disk."""
    read_seconds: float
    """Median of a pass's reads, added up although several run at once."""
    compute_seconds: float
    """Median of a pass's parts without what they waited; between the parts and after them some of its time is left."""
    open_seconds: float
    peak_rss_bytes: int
    memory_ceiling_bytes: int
    threads: int
    isa: str
    batch: int
    prompt_tokens: int
    prompt_passes: int
    """Passes until every prompt was done."""

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def run(
    model: str | os.PathLike[str],
    settings: BenchSettings,
    *,
    tell: Callable[[str], None] = lambda doing: None,
    listener: Listener | None = None,
) -> Result:
    """Open MODEL, probe its disk, and run passes of plain greedy decoding after random prompts.

    tell: told what is being done, in a few words, layer by layer. listener: hears of the passes, not of the probe.
    Raises as LLM.open and LLM.generate do, ContextError where prompt and passes are more than the context,
    MemoryCeilingError where the sequences do not fit beside each other, and UsageError where they cannot share so many
    passes.
    """
    tell("opening")
    begin = time.perf_counter()
    settings.sole_adapter  # noqa: B018  raises for several, before anything is opened
    with LLM.open_with(model, replace(settings, draft="none"), _layer_teller(settings.passes, tell)) as llm:
        open_seconds = time.perf_counter() - begin
        if settings.prompt_tokens + settings.passes > llm.context:
            passes = f"{settings.prompt_tokens} tokens and {settings.passes} passes"
            raise ContextError(
                f"{passes} are more than the context of {llm.context}.", "Lower --prompt-tokens or --passes."
            )
        tell("measuring the disk")
        disk = measure_disk(llm.files, memory=room_for_probe(llm.memory.budget))
        if listener is not None:
            llm.events.listeners.append(listener)
        return _result(llm, str(model), settings, _generate(llm, settings), disk, open_seconds)


def _layer_teller(passes: int, tell: Callable[[str], None]) -> OnLayer:
    """What tells how far the passes are: each pass, and its layers as seldom as not to be felt."""
    begun, told = 0, 0.0

    def on_layer(layer: int, *seconds: float) -> None:
        nonlocal begun, told
        begun += layer == 0
        now = time.perf_counter()
        if layer == 0 or now - told > TELL_SECONDS:
            told = now
            tell(f"pass {begun} of {max(passes, begun)}, layer {layer}")

    return on_layer


def _generate(llm: LLM, settings: BenchSettings) -> list[Stats]:
    """What each of the sequences took, until the last to start has drawn a token for every pass."""
    shape = (settings.batch, settings.prompt_tokens)
    prompts = np.random.default_rng(0).integers(0, llm.config.vocab_size, shape).tolist()
    most = settings.passes + _head_start(llm, settings)
    # Those that do not fit beside the others would wait, and the passes not be all sequences'.
    llm.memory.most_tokens([settings.prompt_tokens] * settings.batch, most, llm.context)
    params = SamplingParams(temperature=0, max_tokens=most, ignore_eos=True)
    completions = [llm.submit(prompt, params, adapter=settings.sole_adapter) for prompt in prompts]
    for _ in llm.drive(completions):  # which would go on until all have drawn `most`
        enough = all(completion.stats.tokens >= settings.passes for completion in completions)
        if enough or not all(completion.runs for completion in completions):
            break
    return [completion.stats for completion in completions]


def _head_start(llm: LLM, settings: BenchSettings) -> int:
    """Tokens, at most, that the first sequence draws before the last one's prompt is done.

    Raises UsageError where the prompts do not get on beside the sequences that draw.
    """
    batch, rows = settings.batch, settings.batch * settings.prompt_tokens
    kv = batch * llm.plan_pass(slots=settings.prompt_tokens + settings.passes).kv
    most_rows = min(MAX_ROWS, max(LEAST_CHUNK_ROWS, llm.memory.budget.most_rows(kv, batch)))
    if batch == 1 or rows <= most_rows:
        return 0
    if most_rows <= batch:
        raise UsageError(
            f"A pass has room for {most_rows} rows: too few for {batch} sequences and what is left of their prompts.",
            "Lower --batch or --prompt-tokens, or raise --memory.",
        )
    return -(-rows // (most_rows - batch))


def _result(
    llm: LLM, model: str, settings: BenchSettings, stats: Sequence[Stats], disk: DiskSpeed, open_seconds: float
) -> Result:
    prompt, further = split_log(stats, settings)
    typical = further or prompt
    seconds, streamed = _median(typical, "seconds"), _median(typical, "bytes_read")
    disk_limit, compute_seconds = streamed / disk.bytes_per_second, _median(typical, "compute_seconds")
    return Result(
        model=model,
        seconds_per_pass=[sum(totals.seconds for totals in prompt), *(totals.seconds for totals in further)],
        median_seconds_per_pass=seconds,
        first_token_seconds=_last_to_start(stats).first_token_seconds,
        tokens_per_second=tokens_per_second(stats, settings),
        resident_share_of_memory=llm.weights.resident_bytes / llm.memory.budget.ceiling,
        streamed_bytes_per_pass=streamed,
        first_pass_bytes_read=sum(totals.bytes_read for totals in prompt),
        probe_bytes_per_second=disk.bytes_per_second,
        probe_read_bytes=disk.read_bytes,
        disk_limit_seconds=disk_limit,
        ratio_to_disk_limit=seconds / disk_limit if disk_limit else None,
        disk_wait_seconds=_median(typical, "wait_seconds"),
        read_seconds=_median(typical, "read_seconds"),
        compute_seconds=compute_seconds,
        open_seconds=open_seconds,
        batch=settings.batch,
        prompt_tokens=settings.prompt_tokens,
        prompt_passes=len(prompt),
        **experts_figures(typical),
        **weight_figures(llm, compute_seconds),
        **process_figures(llm),
    )


def split_log(stats: Sequence[Stats], settings: BenchSettings) -> tuple[list[PassTotals], list[PassTotals]]:
    """The passes until every prompt was done, and those after them, each of one row a sequence.

    Where prompts need several passes, the first sequences draw tokens while the others' prompts are still read: such
    passes count to the prompts. Raises UsageError where too few come after them.
    """
    log = max((s.log for s in stats), key=len)  # of one that took part from the first pass to the last
    drawn = min(s.tokens for s in stats)
    if drawn < settings.passes:
        raise UsageError(
            f"There is room for {drawn} tokens of each of the {settings.batch} sequences, not for {settings.passes}.",
            "Lower --batch, --prompt-tokens or --passes, or raise --memory.",
        )
    begin = len(log) - settings.passes + 1
    return log[:begin], log[begin:]


def tokens_per_second(stats: Sequence[Stats], settings: BenchSettings) -> float:
    """Of all sequences, from where the last to start had its first token on; of a single pass, its tokens."""
    last = _last_to_start(stats)
    if settings.passes == 1:
        return settings.batch / last.seconds
    return settings.batch * (settings.passes - 1) / (last.seconds - last.first_token_seconds)


def _last_to_start(stats: Sequence[Stats]) -> Stats:
    return max(stats, key=lambda s: s.first_token_seconds)


def _median(passes: Sequence[PassTotals], name: str) -> float:
    return float(statistics.median(getattr(totals, name) for totals in passes))
