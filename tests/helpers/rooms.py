"""The memory of an open model, which a test changes between passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from penstock import LLM
from penstock.memory.room import StageRoom


def room_of(llm: LLM) -> StageRoom:
    """That of a model's only stage."""
    (room,) = llm.memory.rooms
    assert isinstance(room, StageRoom)
    return room


def keep_at_most(llm: LLM, nbytes: int) -> None:
    """Let so many bytes of weights stay in memory, or fewer, from the next pass on."""
    room_of(llm).max_resident = nbytes


def set_budget(llm: LLM, **changes: Any) -> None:
    """Change the budget, from the next pass on."""
    room = room_of(llm)
    room.share = replace(room.share, budget=replace(room.share.budget, **changes))
