"""What `run --session` answers: the rest of what a kill cut off, or a new prompt's answer."""

from __future__ import annotations

import warnings
from dataclasses import fields
from typing import TYPE_CHECKING

from penstock.errors import UsageError
from penstock.sessions.log import SessionWarning

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from penstock.completion import Piece
    from penstock.sampling import SamplingParams
    from penstock.sessions.session import Session


def session_answer(
    session: Session, path: Path, prompt: str | None, params: SamplingParams, raw: bool, system: str | None = None
) -> Iterator[Piece]:
    """The answer to `prompt`; where it was begun already and not shown to its end, all of that one. `system`: what the
    model is told before the conversation from now on; None leaves what it was told.

    Raises UsageError where there is nothing to answer, and where parameters are not those that an answer began with.
    """
    turn = session.turn
    if turn is not None and not turn.told and prompt in (None, turn.asked):
        check_same(turn.params, params, path)
        if system not in (None, turn.system or ""):
            raise _begun_otherwise(path, "--system", turn.system, system)
        return session.go_on() if session.unfinished else session.retell()
    if prompt is None:
        held = "nothing yet" if turn is None else f"{len(session.tokens)} tokens, and its last answer is finished"
        raise UsageError(f"{path} holds {held}.", "Give a prompt to go on with, as an argument or on standard input.")
    if session.unfinished and session.tokens:
        warnings.warn(f"{path}: the last answer is left unfinished.", SessionWarning, stacklevel=2)
    session.system = session.system if system is None else system
    return session.complete(prompt, params) if raw else session.ask(prompt, params)


def check_same(began: SamplingParams, given: SamplingParams, path: Path) -> None:
    """Raise UsageError where a parameter was given that an answer did not begin with."""
    for field in fields(given):
        old, new = getattr(began, field.name), getattr(given, field.name)
        if field.name == "stop":
            old, new = began.stops, given.stops
        # What is as it is by default was not given.
        if field.name not in ("ignore_eos", "logprobs") and new not in (old, field.default):
            raise _begun_otherwise(path, f"--{field.name.replace('_', '-')}", old, new)


def _begun_otherwise(path: Path, option: str, old: object, new: object) -> UsageError:
    return UsageError(
        f"{path} has an unfinished answer that began with {option} {old}, not {new}.",
        f"Leave {option} out to go on with it, or give another prompt.",
    )
