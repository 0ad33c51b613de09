"""A batch from its files to its end: what `penstock batch` does."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.adapters.named import check_names
from penstock.batch.alone import work_alone
from penstock.batch.bench import MOST_AT_ONCE, Bench
from penstock.batch.desk import Desk
from penstock.batch.elsewhere import Opening, known_elsewhere, what_is_alike
from penstock.batch.exchange import Terms
from penstock.batch.line_room import most_line_bytes, with_room
from penstock.batch.opening import Labels, begin_or_resume, check_paths, counts_if_complete, describe
from penstock.batch.pool import Pool
from penstock.batch.progress import Progress
from penstock.batch.requests import RequestFile
from penstock.batch.results import ResultFile, put_in_order, state_path, write_in_order
from penstock.batch.state import State
from penstock.batch.watcher import Watcher
from penstock.checkpoints.store import find_model, name_elsewhere
from penstock.compute.kernels import Kernels
from penstock.errors import UsageError
from penstock.llm import LLM
from penstock.openai_api.answers import DEFAULT_MAX_TOKENS
from penstock.options import OpenOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from penstock.batch.elsewhere import BenchLike
    from penstock.batch.opening import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings(OpenOptions):
    """What to do, and how to open the model. Raises UsageError for counts below 1."""

    model: str
    source: Path
    """The requests."""
    out: Path
    """Their results."""
    max_tokens: int = DEFAULT_MAX_TOKENS
    """Of each answer, where a request does not say."""
    at_once: int = MOST_AT_ONCE
    """Answers that may share a pass."""
    overwrite: bool = False
    """Replace results that no unfinished batch accounts for."""
    patience: float | None = None
    """Seconds for which another machine may be silent, before others get its requests; None for what its passes
    suggest."""

    def __post_init__(self) -> None:
        OpenOptions.__post_init__(self)
        for name in ("max_tokens", "at_once"):
            if getattr(self, name) < 1:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} {getattr(self, name)}: at least 1 is needed.", f"Raise {option}.")


@dataclass(frozen=True, slots=True)
class Summary:
    """How a batch ended. Passes, seconds and `drawn` are those of this call, the other counts of all calls."""

    out: str
    total: int
    answered: int
    failed: int
    tokens: int
    """Of the answers."""
    drawn: int
    passes: int
    seconds: float
    tokens_per_second: float
    complete_before: bool
    """Whether there was nothing left to do."""


def run(
    settings: BatchSettings,
    watcher: Watcher | None = None,
    benches: Callable[[], Sequence[BenchLike]] | None = None,
) -> Summary:
    """Begin the batch, or go on with it where an earlier call was interrupted. `benches`: makes those that answer it,
    once there is anything to answer; without, this process does.

    Raises UsageError where OUT holds something else, is worked on by another process, or belongs to another batch;
    as LLM.open does; ReadError; PenstockError where a file cannot be read or written; ClusterError where benches cannot
    work together, or none is left. The same call then goes on.
    """
    watcher = watcher or Watcher()
    out = settings.out.resolve()
    check_paths(settings.source, out)
    check_names(settings.adapters, _model_name(settings.model))
    with RequestFile(settings.source) as requests, State(state_path(out)) as state:
        with _removed_if_in_vain(state):
            depends = (settings.kv_dtype, settings.context, settings.max_tokens, settings.adapters)
            job, modified = describe(requests, settings.model, *depends)
            if state.job is None and out.exists() and not settings.overwrite:
                counts = counts_if_complete(out, requests, job.names)
                state.remove()
                return _summary(settings, Progress(counts), complete_before=True)
            labels = Labels(modified, _model_name(settings.model))
            labels = begin_or_resume(state, job, labels, requests, watcher.scanning, anew=settings.overwrite)
            progress = Progress(state.counts())
            complete_before = progress.done == progress.total
            longest = most_line_bytes(settings.ceiling)
            batch = _Batch(settings, requests, state, out, job, labels, progress, watcher, longest)
            opened = None if complete_before else _open(batch) if benches is None else _open_pool(batch, benches())
        if opened is not None:
            with opened:
                _work(batch, opened)
        _finish(out, state)
        return _summary(settings, progress, complete_before)


@dataclass(frozen=True, slots=True)
class _Batch:
    """One that has begun."""

    settings: BatchSettings
    requests: RequestFile
    state: State
    out: Path
    job: Job
    labels: Labels
    progress: Progress
    watcher: Watcher
    most_line_bytes: int
    """Of a line, where this process answers it."""

    @property
    def terms(self) -> Terms:
        return Terms(self.job.names, self.labels, self.settings.max_tokens, self.settings.at_once)

    @contextmanager
    def desk(self, has_chat_template: bool, most_line_bytes: int) -> Iterator[Desk]:
        with ResultFile(self.out, *self.state.unwritten()) as results:
            names, progress = self.job.names, self.progress
            yield Desk(self.requests, self.state, results, names, progress, has_chat_template, most_line_bytes)


@contextmanager
def _removed_if_in_vain(state: State) -> Iterator[None]:
    """Leave no state behind where the block fails and nothing would be lost with it."""
    try:
        yield
    except BaseException:
        if not state.has_progress:
            state.remove()
        raise


def _open(batch: _Batch) -> LLM:
    batch.watcher.opening()
    options = with_room(batch.settings, min(batch.most_line_bytes, batch.state.longest_line()))
    return LLM.open_with(batch.settings.model, options, lambda index, *_: batch.watcher.layer(index))


def _open_pool(batch: _Batch, benches: Sequence[BenchLike]) -> Pool:
    batch.watcher.opening()
    pool = Pool(benches, batch.watcher, batch.settings.patience)
    options = OpenOptions(**{option.name: getattr(batch.settings, option.name) for option in fields(OpenOptions)})
    model = name_elsewhere(find_model(batch.settings.model))
    opening = Opening(model, known_elsewhere(options), batch.state.longest_line(), batch.terms)
    pool.open(opening, what_is_alike(batch.job.model_digest, Kernels(1)))
    return pool


def _work(batch: _Batch, opened: LLM | Pool) -> None:
    """Until every request has a result."""
    progress, watcher = batch.progress, batch.watcher
    if isinstance(opened, Pool):
        with batch.desk(opened.has_chat_template, opened.most_line_bytes) as desk:
            progress.nodes = opened.names
            watcher.working(progress, 0)
            opened.work(desk)
        return
    with batch.desk(opened.has_chat_template, batch.most_line_bytes) as desk:
        bench = Bench(opened, batch.terms)
        watcher.working(progress, opened.config.num_hidden_layers)
        work_alone(desk, bench, watcher.passed)


def _finish(out: Path, state: State) -> None:
    """All results are there: put them in order. What a kill leaves of it, the next call does."""
    if state.phase == "running":
        ResultFile(out, *state.unwritten()).close()
        write_in_order(out, state.places())
        state.set_phase("ordered")
    put_in_order(out)
    state.remove()


def _model_name(model: str) -> str:
    """What the results call it."""
    return Path(model).resolve().name if Path(model).exists() else model


def _summary(settings: BatchSettings, progress: Progress, complete_before: bool) -> Summary:
    seconds = progress.seconds
    return Summary(
        out=str(settings.out),
        total=progress.total,
        answered=progress.done - progress.failed,
        failed=progress.failed,
        tokens=progress.tokens,
        drawn=progress.drawn,
        passes=progress.passes,
        seconds=seconds,
        tokens_per_second=progress.drawn / max(seconds, 1e-9),
        complete_before=complete_before,
    )
