"""Where adapters are and what they are called, as a user gives them; looks into none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import UsageError
from penstock.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def is_there(path: Path) -> bool:
    """Whether a path leads anywhere; False, too, for one that no disk can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
