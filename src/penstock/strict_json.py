"""JSON objects of a checkpoint, read strictly, and typed access to their fields."""

from __future__ import annotations

import json
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeGuard

from penstock.errors import FormatError

MAX_JSON_BYTES = 100_000_000  # as large as the safetensors library lets a header be
LFS_POINTER = b"version https://git-lfs"
GET_AGAIN = "Download or copy the file again; if that changes nothing, it was published broken."


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object that the file `path` holds. Raises FormatError where there is none."""
    with open_regular(path) as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        _fail(f"{path} is larger than {MAX_JSON_BYTES:,} bytes, the limit for a JSON file")
    if data.startswith(LFS_POINTER):
        fail_lfs_pointer(path)
    return parse_json_object(data, str(path))


def parse_json_object(data: bytes, source: str) -> dict[str, Any]:
    """Parse a JSON object; `source` opens the messages of its FormatErrors.

    Stricter than `json.loads`: no key twice in one object, no NaN or Infinity, no unpaired surrogates.
    """
    try:
        hook = _unique_printable_pairs if b"\\u" in data else _unique_pairs  # only an escape can be a lone surrogate
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=hook, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        _fail(f"{source} is not UTF-8 (at its byte {error.start})")
    except RecursionError:
        _fail(f"{source} is nested too deep")
    except _DuplicateKeyError as error:
        _fail(f"{source} has the key {shown(error.key)} twice")
    except ValueError as error:
        _fail(f"{source} is not JSON: {error}")
    if not isinstance(parsed, dict):
        _fail(f"{source} is {shown(parsed)}, not a JSON object")
    return parsed


class Fields:
    """Typed access to a JSON object that notes which keys were asked for. Wrong values raise FormatError."""

    def __init__(self, mapping: Mapping[str, object], source: str, prefix: str = "") -> None:
        self.mapping = mapping
        self.source = source
        self.prefix = prefix
        self.asked: set[str] = set()
        self.parts: dict[str, Fields] = {}

    def get(self, key: str, default: object = None) -> object:
        self.asked.add(key)
        return self.mapping.get(key, default)

    def fail(self, key: str, expected: str) -> NoReturn:
        value = "missing" if key not in self.mapping else shown(self.mapping[key])
        raise FormatError(f"{self.source}: {self.prefix}{key} is {value}, not {expected}", GET_AGAIN)

    def part(self, key: str) -> Fields:
        """The fields of an object within this one; none where it is null or missing."""
        if key in self.parts:
            return self.parts[key]
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            self.fail(key, "an object or null")
        part = self.parts[key] = Fields(value or {}, self.source, f"{self.prefix}{key}.")
        return part

    def unknown(self, ignored: frozenset[str]) -> list[str]:
        """The keys that nobody asked for, those in `ignored` left out."""
        own = [self.prefix + key for key in self.mapping if key not in self.asked | ignored]
        return own + [key for part in self.parts.values() for key in part.unknown(ignored)]

    def size(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if type(value) is not int or not 0 < value < 2**31:
            self.fail(key, "a positive integer below 2**31")
        return value

    def optional_size(self, key: str) -> int | None:
        return None if self.get(key) is None else self.size(key)

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above 0; without a default it has to be there."""
        value = self.get(key, default)
        if not _is_number(value) or value <= 0:
            self.fail(key, "a positive number")
        return float(value)

    def positives(self, key: str, count: int) -> tuple[float, ...]:
        """So many finite numbers above 0."""
        values = self.get(key)
        if not isinstance(values, list) or len(values) != count or not all(_is_number(v) and v > 0 for v in values):
            self.fail(key, f"a list of {count} positive numbers")
        return tuple(map(float, values))

    def optional_number(self, key: str, holds: Callable[[float], bool], expected: str) -> float | None:
        """A finite number that `holds` accepts, or None where it is null or missing."""
        value = self.get(key)
        if value is None:
            return None
        if not _is_number(value) or not holds(value):
            self.fail(key, expected)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            self.fail(key, "true or false")
        return value

    def optional_count(self, key: str, default: int | None = None) -> int | None:
        value = self.get(key, default)
        if value is not None and not _is_count(value):
            self.fail(key, "an integer from 0 to 2**31 - 1")
        return value

    def token_ids(self, key: str, default: int | None = None) -> tuple[int, ...]:
        """One token id, a list of them, or null: none."""
        value = self.get(key, default)
        if value is None:
            return ()
        values = value if isinstance(value, list) else [value]
        ids = tuple(token for token in values if _is_count(token))
        if len(ids) < len(values):
            self.fail(key, "an integer from 0 to 2**31 - 1 or a list of them")
        return ids


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file; an OSError, of a read inside the block too, becomes a FormatError."""
    try:
        mode = path.stat().st_mode  # before opening, which would wait at a named pipe
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "a device, pipe or socket"
            raise FormatError(f"{path} is {kind}, not a file", "Put the file itself in its place.")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "Check that the file is there, that you may read it, and that its disk works."
        raise FormatError(f"{path} cannot be read: {reason}", remedy) from error


def fail_lfs_pointer(path: Path) -> NoReturn:
    problem = f"{path} is a Git LFS pointer, not the file itself"
    raise FormatError(problem, f"Run `git lfs pull` in {path.parent} (`git lfs install` first, if that fails).")


def shown(value: object) -> str:
    """`value` as an error message shows it: on one line and not endless."""
    try:
        text = repr(value)
    except RecursionError:
        return f"a nested {type(value).__name__}"
    return text if len(text) <= 100 else text[:97] + "..."


def listed(names: Sequence[str], most: int = 10) -> str:
    """The names on one line, at most `most` of them."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in names[:most]) + rest


class _DuplicateKeyError(ValueError):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _DuplicateKeyError(next(key for key, count in counts.items() if count > 1))
    return mapping


def _unique_printable_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, value in pairs:
        # A lone surrogate could not be printed later; encoding it fails here, with a ValueError.
        key.encode("utf-8")
        if isinstance(value, str):
            value.encode("utf-8")
    return _unique_pairs(pairs)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _is_number(value: object) -> TypeGuard[int | float]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**31


def _fail(problem: str) -> NoReturn:
    raise FormatError(problem, GET_AGAIN)
