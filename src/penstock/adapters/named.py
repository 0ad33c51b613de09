"""Adapters by name: what a user gives, and what an open model has of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.adapters.adapter import is_there, open_adapter
from penstock.errors import UsageError
from penstock.strict_json import listed, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.adapters.adapter import Adapter
    from penstock.architectures.base import Architecture

MOST_NAME = 200


def adapter_places(given: Sequence[str | os.PathLike[str]]) -> dict[str, Path]:
    """Directories by name, of "DIR", which goes by its own name, or "NAME=DIR".

    Raises UsageError for names that cannot be, or are there twice.
    """
    places: dict[str, Path] = {}
    for one in given:
        name, path = _place(os.fspath(one))
        if name in places:
            raise UsageError(f"Two adapters are called {shown(name)}.", "Give one of them another name: NAME=DIR.")
        places[name] = path
    return places


def _place(text: str) -> tuple[str, Path]:
    name, equals, rest = text.partition("=")
    if not equals or is_there(_path(text)):
        rest, name = text, _path(text).absolute().name
    if not 0 < len(name) <= MOST_NAME or not name.isprintable() or not rest or "\0" in rest:
        raise UsageError(f"{shown(text)} gives an adapter no name that can be used.", "Give it one: NAME=DIR.")
    return name, _path(rest)


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # the home of nobody
        return Path(text)


def open_adapters(
    given: Sequence[str | os.PathLike[str]], architecture: Architecture, most_bytes: int | None = None
) -> dict[str, Adapter]:
    """The adapters of a model by name, each of `most_bytes` at most. Raises as `adapter_places` and `open_adapter`."""
    return {name: open_adapter(name, path, architecture, most_bytes) for name, path in adapter_places(given).items()}


def check_names(adapters: Sequence[str | os.PathLike[str]], model: str) -> None:
    """Raise UsageError where an adapter has the name that requests know the model by."""
    if model in adapter_places(adapters):
        raise UsageError(f"An adapter is called {shown(model)}, as the model is.", "Give it another name: NAME=DIR.")


def check_adapter(name: str | None, known: Sequence[str]) -> None:
    """Raise UsageError unless a model has this adapter; None stands for the model without any."""
    if name is not None and name not in known:
        there = f"Those that are open: {listed(known)}." if known else "Open the model with it: adapters=[DIR]."
        raise UsageError(f"There is no adapter called {shown(name)}.", there)
