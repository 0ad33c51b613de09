"""What a record says, read field by field. A checksum tells that it was written so, not that a session wrote it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

MOST = 2**31 - 1
"""Of positions, and of whatever counts them."""


class RecordFields:
    """Access to a JSON object, each field as what it has to be. All methods raise ValueError where it is not."""

    def __init__(self, value: object, names: Collection[str]) -> None:
        """`names`: those of all its fields; a session writes every one of them, and no other."""
        if not isinstance(value, dict) or value.keys() != set(names):
            raise ValueError
        self.all: dict[str, Any] = value

    def whole(self, name: str, least: int = 0, most: int = MOST) -> int:
        """A whole number from `least` to `most`; not true or false, which Python counts among them."""
        return whole(self.all[name], least, most)

    def optional_whole(self, name: str, least: int = 0, most: int = MOST) -> int | None:
        return None if self.all[name] is None else self.whole(name, least, most)

    def tokens(self, name: str, vocab_size: int) -> list[int]:
        """Token ids, all of them of the vocabulary."""
        return [whole(token, 0, vocab_size - 1) for token in self.list(name)]

    def text(self, name: str) -> str:
        return text(self.all[name])

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(map(text, self.list(name)))

    def flag(self, name: str) -> bool:
        if not isinstance(value := self.all[name], bool):
            raise ValueError
        return value

    def list(self, name: str) -> list[Any]:
        if not isinstance(value := self.all[name], list):
            raise ValueError
        return value

    def part(self, name: str, names: Collection[str]) -> RecordFields:
        """The fields of an object within this one."""
        return RecordFields(self.all[name], names)

    def __getitem__(self, name: str) -> Any:
        """A field that its reader checks."""
        return self.all[name]


def whole(value: object, least: int, most: int) -> int:
    """Raises ValueError unless it is a whole number in range."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError
    return value


def text(value: object) -> str:
    """Raises ValueError unless it is text that can be written: without unpaired surrogates."""
    if not isinstance(value, str):
        raise ValueError
    value.encode()
    return value
