"""Benches elsewhere, each with a whole copy of the model, that work for one desk: opened, held together, ended."""

from __future__ import annotations

from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any

from penstock import __version__
from penstock.batch.elsewhere import VERSION, BenchLostError
from penstock.batch.sharing import Seat, Sharing
from penstock.errors import ClusterError, PenstockError
from penstock.stages.alike import check_alike

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future
    from types import TracebackType

    from penstock.batch.desk import Desk
    from penstock.batch.elsewhere import BenchLike, Hello, Opening
    from penstock.batch.watcher import Watcher

FIRST_SECONDS = 60.0
"""For a machine to begin to work at all."""


class Pool:
    """Benches of several machines; a context manager that ends them."""

    def __init__(self, benches: Sequence[BenchLike], watcher: Watcher, patience: float | None = None) -> None:
        """`watcher`: hears which are lost; `patience`: seconds for which one may be silent, None for what its passes
        suggest."""
        self._all = list(benches)
        self._benches = list(benches)
        """Those that are not lost."""
        self._hellos: list[Hello] = []
        self._watcher = watcher
        self._patience = patience

    def open(self, opening: Opening, alike: Mapping[str, str]) -> None:
        """Open the model everywhere, but on machines that are out of reach; `alike`: what is to be the same there
        (`what_is_alike`).

        Raises as `LLM.open` does, naming the bench; ClusterError where there is none, or where one has another model or
        another version of Penstock. None is left open then.
        """
        try:
            for bench, version in self._ask(lambda bench: bench.version(), FIRST_SECONDS):
                check_alike(bench.name, {VERSION: version}, {VERSION: __version__})
            hellos = self._ask(lambda bench: bench.open(opening), None)
            for bench, hello in hellos:
                check_alike(bench.name, hello.alike, alike)
        except BaseException:
            self.close()
            raise
        self._hellos = [hello for _, hello in hellos]

    @property
    def names(self) -> list[str]:
        """Of the benches."""
        return [bench.name for bench in self._benches]

    @property
    def has_chat_template(self) -> bool:
        return self._hellos[0].has_chat_template

    @property
    def most_line_bytes(self) -> int:
        """The longest line that all benches take."""
        return min(hello.most_line_bytes for hello in self._hellos)

    def work(self, desk: Desk) -> None:
        """Until every line has a result. Raises as `Sharing.run` does."""
        seats = [Seat(bench, hello.ceiling) for bench, hello in zip(self._benches, self._hellos, strict=True)]
        Sharing(desk, seats, self._watcher, self._patience).run()

    def close(self) -> None:
        for bench in self._all:
            bench.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, ask: Callable[[BenchLike], Future[Any]], seconds: float | None) -> list[tuple[BenchLike, Any]]:
        """What each bench answers; those that are lost are left out from now on. Raises what one raises, with its
        name, and ClusterError where none is left."""
        answers: list[tuple[BenchLike, Any]] = []
        lost: dict[str, str] = {}
        for bench, call in [(bench, ask(bench)) for bench in self._benches]:
            try:
                answers.append((bench, call.result(seconds)))
            except FutureTimeoutError:
                lost[bench.name] = f"it has not begun to work within {seconds:g} s"
            except BenchLostError as error:
                lost[bench.name] = error.problem
            except PenstockError as error:
                raise error.at(bench.name) from error
        for name, reason in lost.items():
            self._watcher.lost(name, reason)
        self._benches = [bench for bench, _ in answers]
        if not answers:
            why = "; ".join(f"{name} ({reason})" for name, reason in lost.items()) or "none has joined"
            problem = f"There is no machine that could work: {why}."
            raise ClusterError(problem, "See `penstock cluster status`, and have some join the cluster.")
        return answers
