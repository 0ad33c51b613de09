"""Hosts of stages in child processes, reached by pipes: a cluster without Ray."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from penstock.errors import PenstockError, StageLostError
from penstock.stages.cut import Node
from penstock.stages.host import StageHost
from penstock.stages.messages import Hello, HostSettings, packed, unpacked
from penstock.stages.rates import ComputeSpeed

OPEN_SECONDS = 120.0


def _serve(pipe: Connection, settings: HostSettings, isa: str | None) -> None:
    if isa is not None:
        os.environ["PENSTOCK_ISA"] = isa
    try:
        host = StageHost(settings)
    except PenstockError as error:
        pipe.send_bytes(packed(error))
        return
    pipe.send_bytes(packed(host.hello))
    while True:
        try:
            data = pipe.recv_bytes()
        except EOFError:
            return
        pipe.send_bytes(host.answer(data))


class PipeLine:
    """To a host in a child process, which is as good as gone when it is silent for a node's `silence`."""

    def __init__(self, node: ProcessNode, settings: HostSettings) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, settings, node.isa), daemon=True)
        self._node = node
        self.process.start()
        theirs.close()
        said = unpacked(self._receive(OPEN_SECONDS))
        if isinstance(said, PenstockError):
            raise said.at(node.name)
        self.hello: Hello = said

    def ask(self, data: bytes) -> bytes:
        try:
            self._pipe.send_bytes(self._node.garble(data))
        except OSError as error:
            raise StageLostError(f"{self._node.name} is gone.", "") from error
        return self._node.garble(self._receive(self._node.silence))

    def _receive(self, seconds: float) -> bytes:
        try:
            if not self._pipe.poll(seconds):
                raise StageLostError(f"{self._node.name} says nothing.", "")
            return self._pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise StageLostError(f"{self._node.name} is gone.", "") from error

    def close(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self._pipe.close()


@dataclass
class ProcessNode:
    """A machine that is a child process whenever a stage is on it."""

    name: str
    ceiling: int | None = None
    isa: str | None = None
    up: bool = True
    garble: Callable[[bytes], bytes] = bytes
    change: Callable[[HostSettings], HostSettings] = lambda settings: settings
    """What this one is asked to open in place of what it should."""
    silence: float = 120.0
    """Seconds after which a host that answers nothing is lost."""
    lines: list[PipeLine] = field(default_factory=list)

    def measure(self, model: str | None) -> Node:
        """All are alike."""
        if not self.up:
            raise StageLostError(f"{self.name} is out of reach.", "")
        speed = ComputeSpeed(1e10, 1e11, 1e10, 1e11, 1e10)
        return Node(self.name, self.ceiling or 1 << 34, 60 << 20, 1e9, speed)

    def start(self, settings: HostSettings) -> PipeLine:
        if not self.up:
            raise StageLostError(f"{self.name} is out of reach.", "")
        self.lines.append(PipeLine(self, self.change(settings)))
        return self.lines[-1]

    def signal(self, number: int) -> None:
        """Send its host a signal."""
        process = self.lines[-1].process
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)


class ProcessFleet:
    """Nodes by name."""

    def __init__(self, nodes: Sequence[ProcessNode]) -> None:
        self.all = list(nodes)
        self.closed = False

    def nodes(self) -> list[ProcessNode]:
        return [node for node in self.all if node.up]

    def close(self) -> None:
        for node in self.all:
            for line in node.lines:
                line.close()
        self.closed = True


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)
