"""How stages reach hosts, whatever carries the bytes: Ray in a cluster, pipes in tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.stages import cut
    from penstock.stages.messages import Hello, HostSettings


class Line(Protocol):
    """To one host."""

    @property
    def hello(self) -> Hello: ...
    def ask(self, data: bytes) -> bytes:
        """What `StageHost.answer` says. Raises StageLostError where the host is gone, or was silent for too long."""

    def close(self) -> None:
        """End the host; done already, it does nothing."""


class Node(Protocol):
    """A machine that may hold stages."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def ceiling(self) -> int | None:
        """Bytes that a process of Penstock may take there; None where it is what is free."""

    def measure(self, model: str | None) -> cut.Node:
        """What it has for MODEL, and can do; None for one that is not there yet. Raises as `start` does."""

    def start(self, settings: HostSettings) -> Line:
        """A new host. Raises as `LLM.open` does, with the node's name, and StageLostError where it is out of reach."""


class Fleet(Protocol):
    """The other machines."""

    def nodes(self) -> Sequence[Node]:
        """Those in reach now, always in the same order."""

    def close(self) -> None: ...
