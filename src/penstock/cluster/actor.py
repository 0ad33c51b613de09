"""A host of a stage as a Ray actor, and the line to it."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayError

from penstock.cluster.actors import end_actor, first_line, start_actor
from penstock.errors import InternalError, PenstockError, StageLostError
from penstock.stages.host import StageHost
from penstock.stages.measure import measure_node
from penstock.stages.messages import packed, unpacked

if TYPE_CHECKING:
    from penstock.stages.cut import Node
    from penstock.stages.messages import Hello, HostSettings

SILENCE_SECONDS = 10.0
"""After which a host that does not even say that it is there is taken for lost. Ray itself takes 15 to 65 s."""
PING_SECONDS = 1.0
OPEN_SECONDS = 60.0
"""For Ray to start a process on a machine."""


class StageActor:
    """Has two threads: one works, the other says that the process is there."""

    def __init__(self) -> None:
        self._host: StageHost | None = None

    def open(self, data: bytes) -> bytes:
        """Open a part of a model: HostSettings in, Hello out, or the error that it raised."""
        try:
            self._host = StageHost(unpacked(data))
            return packed(self._host.hello)
        except Exception as error:
            return packed(InternalError.of(error))

    def measure(self, name: str, model: str | None, ceiling: int | None, threads: int | None) -> bytes:
        """As `measure_node`, or the error that it raised."""
        try:
            return packed(measure_node(name, model, ceiling, threads))
        except Exception as error:
            return packed(InternalError.of(error))

    def answer(self, data: bytes) -> bytes:
        """As `StageHost.answer`."""
        if self._host is None:
            raise RuntimeError("nothing is open")
        return self._host.answer(data)

    def ping(self) -> None:
        """Nothing: whoever asks wants to know whether anybody is there."""


class ActorLine:
    """To a StageActor."""

    def __init__(self, name: str, node_id: str) -> None:
        """Start one on a node, by Ray's id of it. Raises StageLostError."""
        self._name = name
        self._actor = start_actor(StageActor, node_id, signs=["ping"])
        self._hello: Hello | None = None
        try:
            self._get(self._actor.ping.remote(), OPEN_SECONDS)
        except BaseException:
            self.close()
            raise

    @property
    def hello(self) -> Hello:
        """What it said when it had opened its part of a model."""
        if self._hello is None:
            raise ValueError("nothing is open")
        return self._hello

    def open(self, settings: HostSettings) -> None:
        """Open a part of a model. Raises what that raises, with the node's name; StageLostError."""
        self._hello = self._told(self._actor.open.remote(packed(settings)))

    def measure(self, model: str | None, ceiling: int | None, threads: int | None) -> Node:
        """As `measure_node`."""
        node: Node = self._told(self._actor.measure.remote(self._name, model, ceiling, threads))
        return node

    def _told(self, answer: Any) -> Any:
        """The message that comes of a call; where it is an error, it is raised, and the process ended."""
        try:
            said = unpacked(self._watched(answer))
            if isinstance(said, PenstockError):
                raise said.at(self._name)
        except BaseException:
            self.close()
            raise
        return said

    def ask(self, data: bytes) -> bytes:
        """What the host answers. Raises StageLostError."""
        return self._watched(self._actor.answer.remote(data))

    def _watched(self, answer: Any) -> bytes:
        """What comes of a call, as long as the process says that it is there."""
        ping, heard = None, time.monotonic()
        while True:
            ready, _ = ray.wait([answer] if ping is None else [answer, ping], timeout=PING_SECONDS)
            if answer in ready:
                data: bytes = self._get(answer, 0)
                return data
            if ping is not None and ping in ready:
                self._get(ping, 0)
                ping, heard = None, time.monotonic()
                with suppress(TimeoutError):
                    ray.wait([answer], timeout=PING_SECONDS)
            elif ping is None:
                ping = self._actor.ping.remote()
            elif time.monotonic() - heard > SILENCE_SECONDS:
                raise StageLostError(
                    f"{self._name} has not said anything for {SILENCE_SECONDS:.0f} s.", "See to it, and to its network."
                )

    def _get(self, ref: Any, seconds: float) -> Any:
        try:
            ready, _ = ray.wait([ref], timeout=seconds)
            if not ready:
                raise StageLostError(f"{self._name} has started nothing in {seconds:.0f} s.", "See to it.")
            return ray.get(ref)
        except RayActorError as error:
            raise StageLostError(f"The process on {self._name} is gone.", "See its memory: `dmesg` tells.") from error
        except RayError as error:
            raise StageLostError(f"{self._name} is out of reach: {first_line(error)}", "See to it.") from error

    def close(self) -> None:
        """End the process; one that is gone is left alone."""
        end_actor(self._actor)
