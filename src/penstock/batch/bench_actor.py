"""Benches as Ray actors: one on each machine of a cluster, with a whole copy of the model."""

from __future__ import annotations

import time
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from penstock import __version__
from penstock.batch.elsewhere import BenchLostError, open_bench
from penstock.cluster.actors import end_actor, first_line, start_actor
from penstock.cluster.connection import connect, disconnect
from penstock.errors import InternalError, PenstockError
from penstock.stages.messages import GarbledError, packed, unpacked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.batch.bench import Bench
    from penstock.batch.elsewhere import Hello, Opening
    from penstock.batch.exchange import Assignment, Begun, Passed
    from penstock.cluster.fleet import RayNode

ANSWER_SECONDS, ANSWER_LOOKS = 60.0, 10
"""A process that has not said for so long how far it is, though it was looked for so often, is taken for lost."""


class BenchActor:
    """What a machine runs. It has two threads: one works, the other says how far that is."""

    def __init__(self) -> None:
        self._bench: Bench | None = None
        self._layers = 0

    def call(self, data: bytes) -> bytes:
        """One of the calls of a BenchLike, by its name and arguments; what it returned or raised."""
        try:
            name, arguments = unpacked(data)
            return packed(self._do(name, *arguments))
        except GarbledError:
            return packed(BenchLostError("what it was sent is not what came"))
        except Exception as error:
            return packed(InternalError.of(error))

    def layers(self) -> int:
        """How many it has computed so far, in all passes."""
        return self._layers

    def _do(self, name: str, *arguments: Any) -> object:
        if name == "version":
            return __version__
        if name == "open":
            [opening] = arguments
            self._bench, hello = open_bench(opening, self._count)
            return hello
        if self._bench is None:
            raise RuntimeError("nothing is open")
        return self._bench.begin(*arguments) if name == "begin" else self._bench.step()

    def _count(self, *_: object) -> None:
        self._layers += 1


class RayBench:
    """A bench on a node of the cluster at an address (penstock.batch.elsewhere.BenchLike)."""

    def __init__(self, address: str, node: RayNode) -> None:
        """Have it started; calls wait until it is. Raises as `connect` does."""
        connect(address)
        self._connected = True
        self._node = node
        self._actor = start_actor(BenchActor, node.node_id, signs=["layers"])
        self._heard, self._layers = 0.0, 0
        self._look: Any = None
        """The question how many layers it has computed, while that is not answered."""
        self._asked, self._looks = 0.0, 0
        """When that was asked, and how often an answer was looked for."""
        self._answer: Future[Any] = Future()
        """Of the latest call."""

    @property
    def name(self) -> str:
        return self._node.name

    def version(self) -> Future[str]:
        return self._call("version")

    def open(self, opening: Opening) -> Future[Hello]:
        """Open the model as its machine has it: with its threads, and under its ceiling or a lower one that is asked
        for."""
        asked, node = opening.options, self._node
        ceilings = [one for one in (node.ceiling, asked.ceiling) if one is not None]
        options = replace(asked, memory=min(ceilings, default=None), threads=asked.threads or node.threads)
        return self._call("open", replace(opening, options=options))

    def begin(self, assignments: Sequence[Assignment]) -> Future[Begun]:
        return self._call("begin", assignments)

    def step(self) -> Future[Passed]:
        return self._call("step")

    def heard(self) -> float:
        """When it was last known to have computed a layer."""
        if self._look is None:
            self._look, self._asked, self._looks = self._actor.layers.remote(), time.monotonic(), 0
        elif ray.wait([self._look], timeout=0)[0]:
            look, self._look = self._look, None
            with suppress(RayError):  # the call that it is at says so too
                layers = ray.get(look)
                if layers != self._layers:
                    self._heard, self._layers = time.monotonic(), layers
        else:
            self._looks += 1
            if self._looks > ANSWER_LOOKS and time.monotonic() - self._asked > ANSWER_SECONDS:
                with suppress(InvalidStateError):
                    self._answer.set_exception(BenchLostError("its process does not say anything any more"))
        return self._heard

    def close(self) -> None:
        if self._connected:
            self._connected = False
            end_actor(self._actor)
            disconnect()

    def _call(self, name: str, *arguments: object) -> Future[Any]:
        answer: Future[Any] = Future()
        self._answer = answer

        def tell(done: Future[bytes]) -> None:
            with suppress(InvalidStateError):  # it was given up meanwhile
                try:
                    answer.set_result(_told(done))
                except Exception as error:
                    answer.set_exception(error)

        self._actor.call.remote(packed((name, arguments))).future().add_done_callback(tell)
        return answer


def _told(done: Future[bytes]) -> Any:
    """What a call returned; raises what it raised, BenchLostError where there is no answer."""
    try:
        told = unpacked(done.result())
    except GarbledError:
        raise BenchLostError("what it sent is not what came") from None
    except RayError as error:
        raise BenchLostError(first_line(error)) from error
    if isinstance(told, PenstockError):
        raise told
    return told
