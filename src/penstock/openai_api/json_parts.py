"""JSON objects with long lists in them, written piece by piece: such a list is never in memory as a whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PART_CHARACTERS = 1 << 16
"""Parts are about as long, unless a single item is longer."""


class Series:
    """A list whose items are made whenever it is written."""

    def __init__(self, items: Callable[[], Iterator[Any]]) -> None:
        self.items = items


def json_parts(value: Any) -> Iterator[str]:
    """The JSON text of a value that may have `Series` in it, in parts."""
    pending: list[str] = []
    size = 0
    for text in _texts(value):
        pending.append(text)
        size += len(text)
        if size >= PART_CHARACTERS:
            yield "".join(pending)
            pending, size = [], 0
    yield "".join(pending)


def expanded(value: Any) -> Any:
    """The same with lists in place of `Series`."""
    if isinstance(value, dict):
        return {key: expanded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expanded(item) for item in value]
    return list(value.items()) if isinstance(value, Series) else value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for index, (key, item) in enumerate(value.items()):
            yield f"{',' if index else '{'}{_text(key)}:"
            yield from _texts(item)
        yield "}" if value else "{}"
    elif isinstance(value, (list, Series)):
        index = -1
        for index, item in enumerate(value if isinstance(value, list) else value.items()):
            yield "," if index else "["
            if isinstance(value, list):
                yield from _texts(item)
            else:
                yield _text(item)
        yield "]" if index >= 0 else "[]"
    else:
        yield _text(value)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
