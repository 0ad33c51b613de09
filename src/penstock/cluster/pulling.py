"""Pulling a model on the other machines of a cluster: each gets its files from the Hub itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from penstock.cluster.actors import end_actor, first_line, start_actor
from penstock.errors import InternalError, PenstockError, StageLostError
from penstock.hub.pull import finished, place_of, pull
from penstock.hub.pull_share import check_enough
from penstock.hub.pull_state import PullState
from penstock.stages.messages import GarbledError, packed, unpacked

if TYPE_CHECKING:
    from penstock.cluster.fleet import RayNode
    from penstock.cluster.pull_order import PullOrder
    from penstock.hub.pull import PullResult

SILENCE_SECONDS = 60.0
"""After which a process that does not say how far it is is taken for lost."""


class PullActor:
    """Pulls, and says how far it is."""

    def __init__(self) -> None:
        self._state = PullState()

    def pull(self, data: bytes) -> bytes:
        """PullOrder in; PullResult out, None where the model is there already, or the error that it raised."""
        try:
            order: PullOrder = unpacked(data)
            if finished(order.repo, order.out):
                check_enough(place_of(order.repo, order.out), order.layers)
                return packed(None)
            result = pull(
                order.repo,
                order.out,
                revision=order.revision,
                token=order.token,
                threads=order.threads,
                layers=order.layers,
                watcher=self._state,
            )
            return packed(result)
        except Exception as error:
            return packed(InternalError.of(error))

    def state(self) -> bytes:
        """A PullState."""
        return packed(self._state)


class PullThere:
    """A pull on another machine."""

    def __init__(self, node: RayNode, order: PullOrder) -> None:
        """Begin it."""
        self.name = node.name
        self._actor = start_actor(PullActor, node.node_id, signs=["state"])
        self._answer = self._actor.pull.remote(packed(order))
        self._state = PullState()
        self._asked: Any = None
        self._heard = time.monotonic()

    def done(self) -> bool:
        """Whether there is a result, good or bad."""
        return bool(ray.wait([self._answer], timeout=0)[0])

    def state(self) -> PullState:
        """How far it was lately. Raises StageLostError where the machine says nothing any more."""
        if self._asked is None:
            self._asked = self._actor.state.remote()
        elif ray.wait([self._asked], timeout=0)[0]:
            self._state, self._asked = self._got(self._asked), None
            self._heard = time.monotonic()
        elif time.monotonic() - self._heard > SILENCE_SECONDS:
            raise StageLostError(f"{self.name} has not said anything for {SILENCE_SECONDS:.0f} s.", "See to it.")
        return self._state

    def result(self) -> PullResult | None:
        """What came of it, once it is done; None where the model was there already. Raises what it raised, with the
        machine's name; StageLostError."""
        said: PullResult | PenstockError | None = self._got(self._answer)
        if isinstance(said, PenstockError):
            raise said.at(self.name)
        return said

    def close(self) -> None:
        """End it, wherever it is; another pull goes on from there."""
        end_actor(self._actor)

    def _got(self, answer: Any) -> Any:
        try:
            return unpacked(ray.get(answer))
        except GarbledError as error:
            raise StageLostError(f"What {self.name} sent is not what came.", "Pull again.") from error
        except RayError as error:
            raise StageLostError(
                f"{self.name} is out of reach: {first_line(error)}", "Pull again when it is back."
            ) from error
