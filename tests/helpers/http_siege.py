"""Sends requests of any kind to a server in this process, and tells what the server got wrong.

A server gets it wrong where it answers with 500 or more, leaves a whole request without an answer or an answer
unfinished, logs an error, or gives another answer to a plain request afterwards.
"""

from __future__ import annotations

import json
import logging
import shutil
import socket
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from helpers.cases import DEMO
from helpers.checkpoints import tiny_config, write_checkpoint
from helpers.http_requests import BASES, TEXT, Case, body_of, request

PATIENCE = 60.0
GLANCE = 0.05
"""How long what is no whole request may take to be answered before this end closes."""
EVERY = 100
"""A plain request follows so many odd ones."""


def write_model(path: Path) -> None:
    """A checkpoint of random weights, as small as can be, with the demo's tokenizer and template."""
    config = json.loads((DEMO / "config.json").read_text())
    write_checkpoint(path, tiny_config(vocab_size=config["vocab_size"]))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (DEMO / name).exists():
            shutil.copy(DEMO / name, path)


class Notes(logging.Handler):
    """Keeps the errors that are logged."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.ERROR)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


class Siege:
    """One server and what it got wrong so far."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 0)
        self._plain = Case("plain request", request(TEXT, body_of(BASES[TEXT]), headers))
        self._records: list[logging.LogRecord] = []
        self._expected = self._choices()
        self.sent = 0
        self.statuses: dict[int, int] = {}

    def findings(self, cases: Iterable[Case]) -> Iterator[str]:
        """Send them all; a line about each that is answered wrongly."""
        with self._listening():
            for case in cases:
                problem = self._problem(case)
                self.sent += 1
                if problem is None and self.sent % EVERY == 0 and self._choices() != self._expected:
                    problem = "plain requests get another answer afterwards"
                if problem is not None:
                    yield f"{case.label}: {problem}"
            if self._choices() != self._expected:
                yield "plain requests get another answer in the end"

    def _problem(self, case: Case) -> str | None:
        self._records.clear()
        try:
            answer = self._exchange(case)
        except TimeoutError:
            return "no answer comes, and the connection stays open"
        status = _status(answer)
        self.statuses[status or 0] = self.statuses.get(status or 0, 0) + 1
        if self._records:
            return f"the server logged {_short(self._records[0])}"
        if status is None:
            return "no answer" if case.whole else None
        if status >= 500:
            return f"status {status}: {answer[-300:]!r}"
        if status == 200 and case.whole and case.data.startswith(b"POST"):
            return _fault(answer)
        return None

    def _exchange(self, case: Case) -> bytes:
        """All that the server says until it closes the connection."""
        with socket.create_connection(self._address, timeout=PATIENCE) as connection:
            with suppress(ConnectionError):  # it may answer before it has read all
                connection.sendall(case.data[: case.pause])
                if case.pause:
                    time.sleep(GLANCE)
                connection.sendall(case.data[case.pause :])
            parts = []
            with suppress(ConnectionError):
                if not case.whole:
                    connection.settimeout(GLANCE)
                    with suppress(TimeoutError):
                        while data := connection.recv(1 << 16):
                            parts.append(data)
                    connection.settimeout(PATIENCE)
                    with suppress(OSError):  # it may have closed the connection
                        connection.shutdown(socket.SHUT_WR)
                while data := connection.recv(1 << 16):
                    parts.append(data)
            return b"".join(parts)

    def _choices(self) -> object:
        answer = self._exchange(self._plain)
        if _status(answer) != 200:
            return answer
        return json.loads(_body(answer))["choices"]

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Note the errors that are logged."""
        handler = Notes(self._records)
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)


def _short(record: logging.LogRecord) -> str:
    """An error with the exception and the place where it was raised."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return record.getMessage()
    places = [f"{place.filename}:{place.lineno}" for place in traceback.extract_tb(error.__traceback__)[-3:]]
    return f"{record.getMessage().splitlines()[0]}: {error!r:.300} at {', '.join(places)}"


def _status(answer: bytes) -> int | None:
    """Of the first response that is not just provisional."""
    while answer.startswith(b"HTTP/1.1 1"):
        answer = answer.partition(b"\r\n\r\n")[2]
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else None


def _body(answer: bytes) -> bytes:
    """Of the first response, whose body may be chunked."""
    while answer.startswith(b"HTTP/1.1 1"):
        answer = answer.partition(b"\r\n\r\n")[2]
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return rest
    parts = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        if int(size, 16) == 0:
            break
        parts.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    else:
        raise ValueError("The last chunk is missing.")
    return b"".join(parts)


def _fault(answer: bytes) -> str | None:
    """What is wrong with an answer that began well."""
    try:
        body = _body(answer)
        if b"text/event-stream" not in answer.partition(b"\r\n\r\n")[0]:
            json.loads(body)
            return None
    except ValueError as error:
        return f"the answer is cut: {error}"
    if b'"server_error"' in body or b"data: [DONE]" not in body:
        return f"the stream fails: {body[-300:]!r}"
    return None
