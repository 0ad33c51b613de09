"""A batch from its files to its end: what `penstock batch` does."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.adapters.named import check_names
from penstock.batch.opening import Labels, begin_or_resume, check_paths, counts_if_complete, describe
from penstock.batch.progress import Progress
from penstock.batch.requests import MOST_LINE_BYTES, RequestFile
from penstock.batch.results import ResultFile, put_in_order, state_path, write_in_order
from penstock.batch.state import State
from penstock.batch.worker import MOST_AT_ONCE, Worker
from penstock.errors import UsageError
from penstock.llm import LLM
from penstock.openai_api.answers import DEFAULT_MAX_TOKENS
from penstock.options import OpenOptions
from penstock.system import machine
from penstock.system.sizes import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.batch.records import Names

STATE_BYTES = 8 << 20
"""What the database may take, and results that are put together."""
BYTES_TO_PARSE = 104
"""What a byte of a line may take while it becomes a request; its text has room made for it then."""
LEAST_LINE_BYTES, LINE_SHARE = 64 << 10, 3072
"""A line may have this part of the ceiling, or so many bytes."""


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


class Watcher:
    """Is told how far a batch is; this one does nothing with it."""

    def scanning(self, done: int, total: int) -> None:
        """The requests are looked through: bytes."""

    def opening(self) -> None:
        """The model is being opened."""

    def working(self, progress: Progress, layers: int) -> None:
        """The passes begin, each of so many layers."""

    def layer(self, index: int) -> None:
        """A layer of a pass is done."""

    def passed(self) -> None:
        """A pass is done."""


def run(settings: BatchSettings, watcher: Watcher | None = None) -> Summary:
    """Begin the batch, or go on with it where an earlier call was interrupted.

    Raises UsageError where OUT holds something else, is worked on by another process, or belongs to another batch;
    as LLM.open does; ReadError; PenstockError where a file cannot be read or written. The same call then goes on.
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
            files = _Files(requests, state, out, _most_line_bytes(settings.memory))
            llm = None if complete_before else _open(settings, watcher, files)
        if llm is not None:
            with llm:
                _work(llm, settings, files, job.names, labels, progress, watcher)
        _finish(out, state)
        return _summary(settings, progress, complete_before)


@dataclass(frozen=True, slots=True)
class _Files:
    requests: RequestFile
    state: State
    out: Path
    most_line_bytes: int


@contextmanager
def _removed_if_in_vain(state: State) -> Iterator[None]:
    """Leave no state behind where the block fails and nothing would be lost with it."""
    try:
        yield
    except BaseException:
        if not state.has_progress:
            state.remove()
        raise


def _open(settings: BatchSettings, watcher: Watcher, files: _Files) -> LLM:
    watcher.opening()
    longest = min(files.most_line_bytes, files.state.longest_line())
    options = replace(settings, reserve=STATE_BYTES + BYTES_TO_PARSE * longest)
    return LLM.open_with(settings.model, options, lambda index, *_: watcher.layer(index))


def _work(
    llm: LLM,
    settings: BatchSettings,
    files: _Files,
    names: Names,
    labels: Labels,
    progress: Progress,
    watcher: Watcher,
) -> None:
    """Until every request has a result."""
    with ResultFile(files.out, *files.state.unwritten()) as results:
        worker = Worker(
            llm=llm,
            requests=files.requests,
            state=files.state,
            results=results,
            names=names,
            labels=labels,
            max_tokens=settings.max_tokens,
            at_once=settings.at_once,
            most_line_bytes=files.most_line_bytes,
            progress=progress,
        )
        llm.favour_prompts()
        watcher.working(progress, llm.config.num_hidden_layers)
        worker.run(watcher.passed)


def _finish(out: Path, state: State) -> None:
    """All results are there: put them in order. What a kill leaves of it, the next call does."""
    if state.phase == "running":
        ResultFile(out, *state.unwritten()).close()
        write_in_order(out, state.places())
        state.set_phase("ordered")
    put_in_order(out)
    state.remove()


def _most_line_bytes(memory: str | int | None) -> int:
    """The longest line that becomes tokens under a ceiling on the process."""
    ceiling = machine.available_bytes() if memory is None else parse_bytes(memory)
    return min(max(ceiling // LINE_SHARE, LEAST_LINE_BYTES), MOST_LINE_BYTES)


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
