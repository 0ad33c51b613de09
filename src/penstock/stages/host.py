"""A host: what holds some layers of a model in a process of its own, and does what a remote stage asks.

It knows no transport: bytes in, bytes out.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from penstock.adapters.named import open_adapters
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.checkpoints.share_file import layers_in_words
from penstock.checkpoints.store import find_model
from penstock.compute.kernels import Kernels
from penstock.errors import CheckpointError, InternalError
from penstock.events import Events
from penstock.memory.pressure import Relief
from penstock.memory.room import StageBudget, StageRoom
from penstock.models.kv_cache import Blocks
from penstock.models.stage import Stage
from penstock.stages.alike import what_is_alike
from penstock.stages.messages import (
    Answer,
    Failure,
    Garbled,
    GarbledError,
    Hello,
    MakeBeside,
    ReadBlock,
    ReadSlots,
    Run,
    State,
    WriteSlots,
    packed,
    unpacked,
)
from penstock.stages.opening import OpenShare, decoder_of, open_weights
from penstock.system import machine

if TYPE_CHECKING:
    from penstock.checkpoints.checkpoint import Checkpoint
    from penstock.models.pass_stats import PartStats
    from penstock.models.stage import Share
    from penstock.stages.messages import HostSettings, Request


def _check_held(checkpoint: Checkpoint, share: Share) -> None:
    lacking = set() if checkpoint.layers is None else {*share.layers} - {*checkpoint.layers}
    if lacking:
        raise CheckpointError(
            f"{checkpoint.path} holds layers {layers_in_words(checkpoint.layers or ())} alone, not "
            f"{layers_in_words(lacking)}",
            "Leave --cut out, or pull the whole model there.",
        )


class StageHost:
    """Some layers of a model. Threads may share it; they wait for one another."""

    def __init__(self, settings: HostSettings) -> None:
        """Open them. Raises as `LLM.open` does."""
        machine.return_large_arrays()
        available = machine.available_bytes()
        checkpoint = open_checkpoint(find_model(settings.model), share=True).for_context(settings.context)
        kernels, share = Kernels(settings.threads), settings.share
        _check_held(checkpoint, share)
        ceiling = available + machine.anonymous_bytes() if settings.ceiling is None else settings.ceiling
        adapters = [*open_adapters(settings.adapters, checkpoint.architecture, ceiling).values()]
        weights = open_weights(checkpoint, share, kernels, ceiling, Events(), guesses=False)
        try:
            decoder = decoder_of(checkpoint, share, weights, kernels, Blocks(), settings.kv_dtype, adapters)
            alike = what_is_alike(checkpoint, share, kernels, adapters)
            opened = OpenShare(share, weights, decoder, ceiling)
            machine.trim_heap()
            process = machine.footprint().nbytes - sum(adapter.nbytes for adapter in adapters)
            budget = opened.budget(kernels, process, adapters, with_adapters=True, remote=True)
            stage = StageBudget(budget, decoder.planes.shape, with_engine=False)
            self._room = StageRoom(stage, weights, Relief(), settings.max_resident)
        except BaseException:
            weights.close()
            raise
        self._stage = Stage(decoder, weights, share, self._room)
        self._lock = threading.Lock()
        self.hello = Hello(alike, stage, kernels.isa, self._state)

    def answer(self, data: bytes) -> bytes:
        """Do what a message asks for; the message to send back."""
        with self._lock:
            try:
                request: Request = unpacked(data)
            except GarbledError:
                return packed(Garbled())
            try:
                value, parts = self._do(request)
                return packed(Answer(value, parts, self._state))
            except Exception as error:
                return packed(Failure(InternalError.of(error)))

    def close(self) -> None:
        """End the reader and free the weights."""
        with self._lock:
            self._stage.weights.close()

    @property
    def _state(self) -> State:
        weights = self._stage.weights
        return State(weights.streamed_bytes, weights.resident_bytes, self._room.plan, self._room.pressed)

    def _do(self, request: Request) -> tuple[Any, tuple[PartStats, ...]]:
        stage = self._stage
        if isinstance(request, Run):
            return stage.run(request.step, request.x)
        value = None
        if isinstance(request, MakeBeside):
            self._room.make_beside(request.need)
        elif isinstance(request, ReadSlots):
            value = stage.read_slots(request.blocks, request.first, request.end)
        elif isinstance(request, WriteSlots):
            stage.write_slots(request.blocks, request.first, request.data)
        elif isinstance(request, ReadBlock):
            value = stage.read_block(request.block)
        else:
            stage.write_block(request.block, request.data)
        return value, ()
