"""What stands in the file of results: OpenAI's batch output, a JSON object a line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xxhash

from penstock.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from penstock.batch.requests import Line, LineError
    from penstock.openai_api.errors import RequestError

_ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}
"""Line breaks to some programs, though not to JSON."""
PREFIXES = {"/v1/chat/completions": "chatcmpl-", "/v1/completions": "cmpl-"}


@dataclass(frozen=True, slots=True)
class Names:
    """The ids of one batch's records: of what is asked and of whom, so that they are the same in every run."""

    key: str
    """Of the batch: all that its results depend on."""

    def of(self, line: Line) -> str:
        return xxhash.xxh3_128_hexdigest(self.key.encode() + line.number.to_bytes(8, "little") + line.digest)[:24]

    def record(self, line: Line) -> str:
        return f"batch_req_{self.of(line)}"

    def answer(self, line: Line, url: str) -> str:
        return f"{PREFIXES[url]}{self.of(line)}"

    def answered(self, line: Line, custom_id: str, body: dict[str, Any]) -> bytes:
        """The record of an answer."""
        return self._record(line, custom_id, self._response(line, 200, body), None)

    def refused(self, line: Line, custom_id: str, error: RequestError) -> bytes:
        """The record of a request that a server would have answered with an error."""
        response = self._response(line, error.status, error.body())
        code = error.code or error.type
        return self._record(line, custom_id, response, {"code": code, "message": error.body()["error"]["message"]})

    def not_a_request(self, line: Line, error: LineError) -> bytes:
        """The record of a line that nothing could be asked with."""
        return self._record(line, error.custom_id, None, {"code": error.code, "message": error.message})

    def _response(self, line: Line, status: int, body: dict[str, Any]) -> dict[str, Any]:
        return {"status_code": status, "request_id": f"req_{self.of(line)}", "body": body}

    def _record(
        self, line: Line, custom_id: str | None, response: dict[str, Any] | None, error: dict[str, str] | None
    ) -> bytes:
        record = {"id": self.record(line), "custom_id": custom_id, "response": response, "error": error}
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
        return text.translate(_ESCAPED).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Record:
    """What one says of itself."""

    id: str
    custom_id: str | None
    error: str | None
    """Why its request failed; None where it was answered."""
    tokens: int
    """Of its answers."""

    @property
    def failed(self) -> bool:
        return self.error is not None


def read_record(line: bytes) -> Record | None:
    """The record in a line of results, None where it is none."""
    try:
        parsed = json.loads(line)
        error = None if parsed["error"] is None else str(parsed["error"]["message"])
        tokens = 0 if error is not None else int(parsed["response"]["body"]["usage"]["completion_tokens"])
        return Record(str(parsed["id"]), parsed["custom_id"], error, tokens)
    except (ValueError, TypeError, KeyError):
        return None


def first_error(results: Iterable[bytes]) -> str:
    """Which of the finished results is the first of a request that failed, and why, on one line."""
    for number, line in enumerate(results, 1):
        record = read_record(line)
        if record is not None and record.error is not None:
            name = "" if record.custom_id is None else f", {shown(record.custom_id)}"
            return f"the first, result {number:,}{name}: {' '.join(record.error.split())}"
    return "their records are no longer there."
