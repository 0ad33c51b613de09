"""The file of requests: a JSON object a line, read one line at a time; and what a line of OpenAI's batches asks for."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import xxhash

from penstock.batch.disk_errors import reading
from penstock.disk.system_files import system
from penstock.errors import FormatError, PenstockError, UsageError
from penstock.strict_json import parse_json_object, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

URLS = ("/v1/chat/completions", "/v1/completions")
MOST_LINE_BYTES = 4 << 20
"""A longer line is never taken into memory."""
_BOM = b"\xef\xbb\xbf"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Line:
    """Where a line stands in the file; blank lines count, and are no requests."""

    number: int
    """From 1."""
    offset: int
    nbytes: int
    digest: bytes
    """Of its bytes, the line break left out: 16 bytes."""

    @property
    def seed(self) -> int:
        """For draws that the request names no seed for: below 2**53, of the line's place and bytes."""
        return xxhash.xxh3_64_intdigest(self.number.to_bytes(8, "little") + self.digest) >> 11


@dataclass(frozen=True, slots=True)
class Request:
    """What a sound line asks for."""

    custom_id: str
    url: str
    body: dict[str, Any]


class LineError(Exception):
    """A line that is no request; `code` and `message` go into its record, `custom_id` too where it has one."""

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.custom_id = custom_id


@dataclass(frozen=True, slots=True)
class Contents:
    """What tells one file of requests from another."""

    nbytes: int
    digest: str
    modified: int
    """Seconds since 1970."""


class RequestFile:
    """The input, opened once, so that renaming it does no harm; a context manager."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError where there is no such file, or one that cannot be read twice."""
        self.path = path
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not a regular file, and has to be read more than once.", "Give a file.")
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise UsageError(
                f"The requests in {path} cannot be read: {error.strerror or error}.",
                "Give a file with one JSON object a line, as for OpenAI's batches.",
            ) from error

    def scan(self, tell: Callable[[int, int], None] = lambda done, total: None) -> Iterator[tuple[Line, bytes | None]]:
        """Every line that is not blank, with its bytes, or None where they are too many; `tell` hears the bytes that
        are done, and all of them. Raises PenstockError where the disk fails."""
        with reading(self.path):
            total = os.fstat(self._file.fileno()).st_size
            self._file.seek(0)
            number = offset = 0
            while data := self._file.readline(MOST_LINE_BYTES + 1):
                number += 1
                line, content = self._line(number, offset, data)
                offset += line.nbytes
                if content is None or content.strip():
                    yield line, content
                if number % 256 == 0 or offset == total:
                    tell(offset, total)
                    self._forget()
            self._check_end(offset, total)

    def contents(self) -> Contents:
        """Reads the file once. Raises PenstockError where the disk fails."""
        digest, nbytes = xxhash.xxh3_128(), 0
        with reading(self.path):
            status = os.fstat(self._file.fileno())
            self._file.seek(0)
            while data := self._file.read(_CHUNK):
                digest.update(data)
                nbytes += len(data)
            self._check_end(nbytes, status.st_size)
        self._forget()
        return Contents(nbytes, digest.hexdigest(), int(status.st_mtime))

    def _check_end(self, nbytes: int, size: int) -> None:
        """Requests that go unread in silence would have no results."""
        if nbytes != size:
            raise PenstockError(
                f"{self.path} has {size:,} bytes, and {nbytes:,} came when it was read.",
                "Check its disk, and that nobody writes to it; then give the same command again.",
            )

    def read(self, line: Line, most_bytes: int = MOST_LINE_BYTES) -> bytes:
        """A line's bytes. Raises LineError for one that is too long, PenstockError where it is not the one that was
        scanned."""
        if line.nbytes > most_bytes:
            problem = f"Line {line.number} has {line.nbytes:,} bytes; there is room for {most_bytes:,} at most."
            hint = " Raise --memory." if line.nbytes <= MOST_LINE_BYTES else ""
            raise LineError("line_too_long", problem + hint)
        with reading(self.path):
            self._file.seek(line.offset)
            data = _stripped(self._file.read(line.nbytes), line.number)
        if _digest(data) != line.digest:
            raise PenstockError(
                f"{self.path} was changed while it was being worked on: line {line.number} is another one now.",
                "Put the file back as it was and give the same command again, or write to another OUT.",
            )
        return data

    def _line(self, number: int, offset: int, data: bytes) -> tuple[Line, bytes | None]:
        """The line that begins with `data`, and its bytes; of one that is too long the rest is passed over."""
        if len(data) <= MOST_LINE_BYTES or data.endswith(b"\n"):
            content = _stripped(data, number)
            if len(data) <= MOST_LINE_BYTES:
                return Line(number, offset, len(data), _digest(content)), content
        digest, nbytes = xxhash.xxh3_128(data), len(data)
        while not data.endswith(b"\n") and (data := self._file.readline(_CHUNK)):
            digest.update(data)
            nbytes += len(data)
        return Line(number, offset, nbytes, digest.digest()), None

    def _forget(self) -> None:
        """Leave nothing of the file in the page cache, which counts as memory."""
        system.drop(self._file.fileno())

    def __enter__(self) -> RequestFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def parse_object(data: bytes, number: int) -> dict[str, Any]:
    """The JSON object in line `number`. Raises LineError."""
    try:
        return parse_json_object(data, f"Line {number}")
    except FormatError as error:
        raise LineError("invalid_json_line", f"{error.problem}.") from None


def openai_request(parsed: Mapping[str, Any]) -> Request:
    """What a line of OpenAI's batches asks for, the body unchecked. Raises LineError."""
    custom_id = openai_id(parsed)
    method, url, body = parsed.get("method"), parsed.get("url"), parsed.get("body")
    if method != "POST":
        raise LineError("invalid_method", f'"method" is {_shown(parsed, "method")}, not "POST".', custom_id)
    if url not in URLS:
        raise LineError("invalid_url", f'"url" is {_shown(parsed, "url")}, not {" or ".join(URLS)}.', custom_id)
    if not isinstance(body, dict):
        raise LineError("invalid_body", f'"body" is {_shown(parsed, "body")}, not a JSON object.', custom_id)
    return Request(custom_id, url, body)


def openai_id(parsed: Mapping[str, Any]) -> str:
    """The custom_id of such a line. Raises LineError."""
    custom_id = parsed.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise LineError("missing_custom_id", f'"custom_id" is {_shown(parsed, "custom_id")}, not a non-empty string.')
    return custom_id


def _shown(parsed: Mapping[str, Any], key: str) -> str:
    if key not in parsed:
        return "missing"
    return shown(parsed[key]) if not isinstance(parsed[key], str) else json.dumps(parsed[key])[:100]


def _stripped(data: bytes, number: int) -> bytes:
    """Without the line break, and without the mark that some programs put before a text."""
    return data.removeprefix(_BOM).rstrip(b"\r\n") if number == 1 else data.rstrip(b"\r\n")


def _digest(data: bytes) -> bytes:
    return xxhash.xxh3_128_digest(data)
