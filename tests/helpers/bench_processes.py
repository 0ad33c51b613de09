"""Benches in child processes, over pipes: machines of a cluster as far as a pool can tell, and easy to kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from penstock import __version__
from penstock.batch.bench import Bench
from penstock.batch.elsewhere import BenchLostError, Hello, Opening, open_bench
from penstock.batch.exchange import Assignment, Begun, Passed

LAYER = "layer"


class BenchProcess:
    """A bench in a process of its own (penstock.batch.elsewhere.BenchLike)."""

    def __init__(
        self,
        name: str,
        model: str | None = None,
        memory: str | None = None,
        version: str = __version__,
        before: Callable[[BenchProcess, str], None] = lambda bench, call: None,
    ) -> None:
        """`model`, `memory`: those of its machine, where they are not what is asked for; `before`: called with the name
        of each call that is about to be made."""
        self.name = name
        self.calls: list[str] = []
        self._model, self._memory, self._before = model, memory, before
        self._pipe, theirs = multiprocessing.get_context("spawn").Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, version), daemon=True)
        self._process.start()
        theirs.close()
        self._thread = ThreadPoolExecutor(1)
        self._heard = 0.0

    def version(self) -> Future[str]:
        return self._call("version")

    def open(self, opening: Opening) -> Future[Hello]:
        options = opening.options if self._memory is None else replace(opening.options, memory=self._memory)
        return self._call("open", replace(opening, model=self._model or opening.model, options=options))

    def begin(self, assignments: Sequence[Assignment]) -> Future[Begun]:
        return self._call("begin", assignments)

    def step(self) -> Future[Passed]:
        return self._call("step")

    def heard(self) -> float:
        return self._heard

    def close(self) -> None:
        self._process.kill()
        self._thread.shutdown()
        self._process.join()
        self._pipe.close()

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def _call(self, name: str, *arguments: object) -> Future[Any]:
        self.calls.append(name)
        self._before(self, name)
        return self._thread.submit(self._ask, name, arguments)

    def _ask(self, name: str, arguments: tuple[object, ...]) -> Any:
        try:
            self._pipe.send((name, arguments))
            while (answer := self._pipe.recv()) == LAYER:
                self._heard = time.monotonic()
        except (EOFError, OSError) as error:
            raise BenchLostError("its process has ended") from error
        if isinstance(answer, Exception):
            raise answer
        return answer


def serve(pipe: Connection, version: str) -> None:
    """What the process does: answer calls until nobody makes any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    bench: Bench | None = None
    with suppress(EOFError):
        while True:
            name, arguments = pipe.recv()
            try:
                if name == "version":
                    answer: object = version
                elif name == "open":
                    bench, answer = open_bench(*arguments, on_layer=lambda *_: pipe.send(LAYER))
                else:
                    answer = getattr(bench, name)(*arguments)
            except Exception as error:
                answer = error
            pipe.send(answer)


class BenchHere:
    """A bench in this process, whose calls are done at once, but for one: `hangs` is its name and number, from 1."""

    def __init__(self, name: str, memory: str | None = None, hangs: tuple[str, int] = ("", 0)) -> None:
        self.name = name
        self.calls: list[tuple[str, Any]] = []
        self.bench: Bench | None = None
        self.opened = ""
        """The model."""
        self._memory, self._hangs = memory, hangs

    def version(self) -> Future[str]:
        return self._done("version", lambda: __version__)

    def open(self, opening: Opening) -> Future[Hello]:
        options = opening.options if self._memory is None else replace(opening.options, memory=self._memory)
        return self._done("open", lambda: self._open(replace(opening, options=options)))

    def begin(self, assignments: Sequence[Assignment]) -> Future[Begun]:
        assert self.bench is not None
        return self._done("begin", lambda: self.bench.begin(assignments), [one.line.number for one in assignments])

    def step(self) -> Future[Passed]:
        return self._done("step", lambda: self.bench.step())

    def heard(self) -> float:
        return 0.0

    def close(self) -> None:
        if self.bench is not None:
            self.bench.llm.close()

    def _open(self, opening: Opening) -> Hello:
        self.opened = opening.model
        self.bench, hello = open_bench(opening)
        return hello

    def _done(self, name: str, work: Callable[[], Any], told: object = None) -> Future[Any]:
        self.calls.append((name, told))
        done: Future[Any] = Future()
        if self._hangs == (name, sum(one == name for one, _ in self.calls)):
            return done
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)
        return done
