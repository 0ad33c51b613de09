"""What the passes did, as a file for a trace viewer (https://ui.perfetto.dev, chrome://tracing).

Source: Google's "Trace Event Format" document, JSON object format: complete events ("X", microseconds) and metadata
events ("M"). Viewers show a thread's events as slices within slices, so those of one thread must nest.
"""

from __future__ import annotations

import json
import os
import threading
import time
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from penstock.errors import PenstockError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

    from penstock.events import Event

MOST_HELD = 8192
"""Events that wait for the end of their pass: a few MB."""
_HEAD, _TAIL = b'{"displayTimeUnit":"ms","traceEvents":[\n', b"\n]}\n"


class TraceWarning(UserWarning):
    """A trace that could not be written to its end."""


class Trace:
    """A listener that writes every event to a file; a context manager that writes the last ones.

    Events are written pass by pass, those of each thread in the order in which they began. The file is complete JSON
    after every pass, so that a run that is killed leaves one that viewers open.
    """

    def __init__(self, path: Path, title: str) -> None:
        """`title` names the process in the viewer. Raises PenstockError where `path` cannot be written."""
        try:
            self._file = path.open("wb", buffering=0)
            self._file.truncate()  # pipes and the like cannot
        except OSError as error:
            raise PenstockError(
                f"The trace cannot be written to {path}: {error.strerror or error}.",
                "Let --trace name a file in a directory that is there and that you may write to.",
            ) from error
        self._path = path
        self._pid = os.getpid()
        self._origin = time.perf_counter()
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._threads: dict[int, str] = {}
        self._guesses: str | None = None
        """Those that the next pass checks."""
        self._error: OSError | None = None
        self._end = 0
        self._put(_HEAD + _json(self._metadata("process_name", 0, name=title)))

    def __call__(self, event: Event) -> None:
        """Take note of an event. A disk that fails ends the trace, not the run: `close` warns of it."""
        with self._lock:
            self._events.append(event)
            if event.kind == "pass" or len(self._events) >= MOST_HELD:
                self._write()

    def close(self) -> None:
        """Write what is left. Warns (TraceWarning) where the trace is not whole."""
        with self._lock:
            self._write()
            self._file.close()
        if self._error is not None:
            reason = self._error.strerror or self._error
            warnings.warn(f"The trace ends early: {self._path}: {reason}.", TraceWarning, stacklevel=2)

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self) -> None:
        events, self._events = self._events, []
        if not events or self._error is not None:
            return
        events.sort(key=lambda event: (event.begin, -event.end))
        body = b"".join(b",\n" + _json(record) for event in events for record in self._records(event))
        try:
            self._put(body)
        except OSError as error:
            self._error = error
            with suppress(OSError):
                self._put(b"")  # what had been written before stays complete

    def _put(self, body: bytes) -> None:
        """Write behind what is there, and the end of the file behind that."""
        self._file.seek(self._end)
        rest = memoryview(body + _TAIL)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._file.truncate()
        self._end += len(body)

    def _records(self, event: Event) -> Iterable[dict[str, Any]]:
        """The event, after its thread's name where it is the thread's first."""
        if event.thread not in self._threads:
            self._threads[event.thread] = name = self._thread_name(event)
            yield self._metadata("thread_name", event.thread, name=name)
            yield self._metadata("thread_sort_index", event.thread, sort_index=len(self._threads) * (name != "passes"))
        begin, end = (round((seconds - self._origin) * 1e9) for seconds in (event.begin, event.end))
        yield {
            "name": self._slice_name(event),
            "cat": event.kind,
            "ph": "X",
            "ts": begin / 1e3,
            "dur": (end - begin) / 1e3,
            "pid": self._pid,
            "tid": event.thread,
            "args": _arguments(event),
        }

    def _slice_name(self, event: Event) -> str:
        """The kind, but for parts; guesses are counted where they are made and where they are checked."""
        if event.kind == "draft":
            self._guesses = None if event.name.startswith("0 ") else event.name
            return f"draft {event.name}"
        if event.kind == "pass" and self._guesses is not None:
            guesses, self._guesses = self._guesses, None
            return f"verify {guesses}"
        return event.name if event.kind == "part" else event.kind

    def _thread_name(self, event: Event) -> str:
        if event.kind != "read":
            return "passes"
        return f"read {1 + sum(name.startswith('read') for name in self._threads.values())}"

    def _metadata(self, kind: str, thread: int, **arguments: Any) -> dict[str, Any]:
        return {"name": kind, "ph": "M", "pid": self._pid, "tid": thread, "args": arguments}


def _arguments(event: Event) -> dict[str, Any]:
    key = {"pass": "of", "part": None, "draft": None}.get(event.kind, "tensor")
    arguments: dict[str, Any] = {key: event.name} if key else {}
    if event.nbytes:
        arguments["bytes"] = event.nbytes
    if event.nbytes and event.kind in ("read", "compute") and event.end > event.begin:
        arguments["GB/s"] = round(event.nbytes / (event.end - event.begin) / 1e9, 3)
    return arguments


def _json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()
