"""What a person sees while a pass runs: the text so far, and below it how far the pass is."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from penstock.cli.progress import Progress, fit
from penstock.engine.scheduler import MAX_ROWS
from penstock.memory.budget import LEAST_CHUNK_ROWS

if TYPE_CHECKING:
    from types import TracebackType

    from penstock.cli.formatted_text import FormattedText
    from penstock.cli.status_line import StatusLine
    from penstock.completion import Piece
    from penstock.events import Event
    from penstock.llm import LLM

REDRAW_SECONDS = 0.1
ROUGH_FLOPS = 50e9
"""Operations a second of one thread, while nothing is known of this machine."""
MANY_ROWS = 64
"""From so many on, a layer's arithmetic takes much longer than that of the head, which has one row."""


def is_terminal() -> bool:
    """Whether a person watches, on a terminal that can move its cursor."""
    return sys.stdout.isatty() and sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


class Live:
    """One answer on a terminal: prints its pieces, listens to its passes. A context manager that leaves only text."""

    def __init__(self, llm: LLM, prompt_tokens: int, line: StatusLine | FormattedText) -> None:
        self._llm = llm
        self._passes = -(-prompt_tokens // _chunk_rows(llm, prompt_tokens))
        self._line = line
        self._progress = Progress(llm.config.num_hidden_layers)
        self._prompt_tokens = prompt_tokens
        self._due = 0.0

    def __enter__(self) -> Live:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listen in self._llm.events.listeners:
            self._llm.events.listeners.remove(self._listen)
        self._line.end()

    def begin(self) -> None:
        """Show the first reads, which tell how long the first token will take, and from then on every pass."""
        self._line.show("reading")
        rate = self._llm.prefetch()
        now = time.perf_counter()
        self._progress = self._begun(now, rate)
        self._llm.events.listeners.append(self._listen)
        self._line.show(self._status(now))

    def print(self, piece: Piece) -> None:
        """Text as it comes."""
        waiting = self._progress.tokens == 0
        self._progress.count(piece.stats)
        now = time.perf_counter()
        if waiting or now >= self._due:
            self._line.status = self._status(now)
        self._line.write(piece.text)

    def _listen(self, event: Event) -> None:
        if event.kind == "read":  # from threads that must not draw
            return
        self._progress.take(event)
        if event.end >= self._due or (event.kind == "pass" and self._progress.guessing):
            self._line.show(self._status(event.end))

    def _status(self, now: float) -> str:
        self._due = now + REDRAW_SECONDS
        self._progress.sample(now, self._llm.weights.totals.bytes_read)
        return fit(self._progress.items(now), self._line.room)

    def _begun(self, now: float, rate: float) -> Progress:
        """The way to the first token, with a forecast: by the disk's bytes a second or by arithmetic, whichever is
        slower; none where nothing is known of the disk."""
        llm, rows = self._llm, self._prompt_tokens
        reading = self._passes * llm.weights.streamed_bytes / (rate or 1.0)
        computing = llm.architecture.flops(rows, rows) / (ROUGH_FLOPS * llm.kernels.threads)
        head, layers = llm.architecture.head_flops(1) / 2, llm.config.num_hidden_layers
        head_layers = layers * head / max(1.0, llm.architecture.pass_weights - head)  # as bytes; of rows it has one
        progress = Progress(layers, self._passes, head_layers if rows < MANY_ROWS else head_layers / rows)
        known = rate or not llm.weights.streamed_bytes
        progress.begin(now, max(reading, computing) if known else None)
        return progress


def _chunk_rows(llm: LLM, prompt_tokens: int) -> int:
    """Tokens of the prompt that a pass has room for."""
    kv = llm.memory.rooms[0].share.kv.bytes_for(prompt_tokens)
    return max(1, min(prompt_tokens, MAX_ROWS, max(LEAST_CHUNK_ROWS, llm.memory.budget.most_rows(kv, 1))))
