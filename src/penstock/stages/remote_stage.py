"""A stage whose layers are in another process, as the chain knows it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from penstock.errors import ClusterError, StageLostError
from penstock.models.pass_stats import PartStats
from penstock.stages.messages import (
    Answer,
    Failure,
    Garbled,
    GarbledError,
    MakeBeside,
    ReadBlock,
    ReadSlots,
    Run,
    WriteBlock,
    WriteSlots,
    packed,
    unpacked,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.compute.kernels import F32, U8
    from penstock.memory.budget import Plan
    from penstock.memory.room import StageBudget
    from penstock.models.kv_cache import Blocks, Outbox
    from penstock.models.logits import Logits
    from penstock.models.stage import Need, OnLayer, Share, Step
    from penstock.stages.line import Line
    from penstock.stages.messages import Request, State

ATTEMPTS = 3
"""How often a request is sent whose bytes do not arrive as they are; doing one twice does no more than once."""


class RemoteRoom:
    """Its share of memory."""

    def __init__(self, stage: RemoteStage, share: StageBudget) -> None:
        self.share = share
        self._stage = stage

    @property
    def plan(self) -> Plan:
        return self._stage.state.plan

    @property
    def pressed(self) -> bool:
        return self._stage.state.pressed

    def make_beside(self, need: Need) -> None:
        self._stage.ask(MakeBeside(need))


class RemoteStage:
    """Some layers of a model on another node."""

    remote = True

    def __init__(self, name: str, share: Share, line: Line, blocks: Blocks) -> None:
        """`name`: of the node, for people."""
        self.name = name
        self.share = share
        self.outbox: Outbox = blocks.outbox()
        self.on_layer: OnLayer | None = None
        self.state: State = line.hello.state
        self.room = RemoteRoom(self, line.hello.budget)
        self.line = line
        self.lost = False
        """Whether its host is gone."""

    def reopen(self, line: Line) -> None:
        """Go on with a new host, which has no keys and values; nobody has a block any more."""
        self.line, self.state, self.lost = line, line.hello.state, False
        self.room.share = line.hello.budget
        self.outbox.forget()

    @property
    def streamed_bytes(self) -> int:
        return self.state.streamed_bytes

    def run(self, step: Step, x: F32 | None = None) -> tuple[F32 | Logits | None, tuple[PartStats, ...]]:
        """As `Stage.run`; a part more is what the way there and back took. Raises StageLostError and ClusterError
        besides."""
        begin = time.perf_counter()
        answer = self.ask(Run(step, x))
        seconds = time.perf_counter() - begin
        if step.rows is None:
            return None, ()
        there = sum(part.wait_seconds + part.compute_seconds for part in answer.parts)
        self._tell(answer.parts)
        way = PartStats(f"network {self.name}", 0, 0.0, 0.0, 0.0, network_seconds=max(0.0, seconds - there))
        return answer.value, tuple(replace(part, node=self.name) for part in (way, *answer.parts))

    def read_block(self, block: int) -> U8:
        """A block's keys and values, uint8 [layers, bytes of a layer]."""
        value: U8 = self.ask(ReadBlock(block)).value
        return value

    def write_block(self, block: int, data: U8) -> None:
        """Put what `read_block` gave into a block."""
        self.ask(WriteBlock(block, data))

    def read_slots(self, blocks: Sequence[int], first: int, end: int) -> U8:
        """Keys and values of some slots, uint8 [end - first, layers, bytes of a layer]."""
        value: U8 = self.ask(ReadSlots(tuple(blocks), first, end)).value
        return value

    def write_slots(self, blocks: Sequence[int], first: int, data: U8) -> None:
        """Put what `read_slots` gave into slots from `first` on."""
        self.ask(WriteSlots(tuple(blocks), first, data))

    def ask(self, request: Request) -> Any:
        """The answer to a request. Raises what it raised there, with the node's name; StageLostError; ClusterError
        where bytes go on to arrive as others."""
        data = packed(request)
        for _ in range(ATTEMPTS):
            try:
                answer = unpacked(self.line.ask(data))
            except GarbledError:
                continue
            except StageLostError:
                self.lost = True
                raise
            if isinstance(answer, Answer):
                self.state = answer.state
                return answer
            if isinstance(answer, Failure):
                raise answer.error.at(self.name)
            if not isinstance(answer, Garbled):
                raise StageLostError(f"{self.name} answers with a {type(answer).__name__}.", "")
        raise ClusterError(
            f"Of {ATTEMPTS} messages to {self.name} and back none arrived with the bytes that were sent.",
            "Check its memory and its network: something changes what goes by.",
        )

    def _tell(self, parts: Sequence[PartStats]) -> None:
        for part in parts if self.on_layer is not None else ():
            kind, _, number = part.name.partition(" ")
            if kind == "layer" and self.on_layer is not None:
                self.on_layer(int(number), part.read_seconds, part.wait_seconds, part.compute_seconds)
