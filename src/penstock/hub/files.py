"""Bytes of files on the Hub, by ranges: several requests at once, handed on in order, each going on where it broke.

These are plain GETs of a file's resolve URL, which the Hub answers with a redirect to the host that has the bytes, and
of that one while it works; the library's own downloads would keep whole files on the disk. What cannot be the file that
the listing promised is an error: another size, commit or ETag, a range that was not asked for. (On ranges: RFC 9110,
sections 14 and 15.3.7.)
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import numpy as np

from penstock.errors import CheckpointError
from penstock.hub.repository import TIMEOUT_SECONDS, HubFile, Repository, auth_headers, http_errors, hub_errors

if TYPE_CHECKING:
    from penstock.compute.kernels import U8

Range = tuple[int, int]

REQUEST_BYTES = 8 << 20
CONNECTIONS = 8  # as many requests are held in memory, and one more
_BUSY = (408, 425, 429, 500, 502, 503, 504)  # statuses that may be gone a moment later


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try again: so often in a row without a single byte, after pauses that double."""

    attempts: int = 8
    first_wait: float = 1.0
    longest_wait: float = 60.0

    def wait(self, failures: int) -> float:
        return min(self.longest_wait, self.first_wait * 2.0 ** (failures - 1))


class HubSource:
    """A file of a repository, read by ranges."""

    def __init__(
        self,
        repository: Repository,
        file: HubFile,
        patience: Patience | None = None,
        on_trouble: Callable[[str], None] | None = None,
    ) -> None:
        """`on_trouble` is told, by any thread, what goes wrong with the network for more than a moment."""
        self.name = file.name
        self.size = file.size
        self._repository = repository
        self._file = file
        self._patience = patience or Patience()
        self._on_trouble = on_trouble or (lambda _: None)
        self._where = f"{file.name} of {repository.repo}"
        self._lock = Lock()
        self._etags: dict[str, str] = {}
        """By host."""
        self._redirected: str | None = None
        """Where the Hub has sent us for the bytes; a permission that ends after a while."""

    def read(self, begin: int, nbytes: int) -> bytes:
        """As `ranges`, of a single one."""
        return next(self.ranges([(begin, nbytes)])).tobytes()

    def ranges(self, ranges: Iterable[Range]) -> Generator[U8, None, None]:
        """The bytes of each of these (begin, nbytes) of the file, in their order.

        Holds (CONNECTIONS + 1) * REQUEST_BYTES of memory beside the arrays that it has handed on. Raises
        CheckpointError where the Hub refuses, is out of reach for too long, or has another file than it said.
        """
        wanted = list(ranges)
        blocks = self._in_order(_requests(wanted))
        block = memoryview(b"")
        for _, missing in wanted:
            parts = []
            while missing:
                block = block or memoryview(next(blocks))
                parts.append(block[:missing])
                block = block[missing:]
                missing -= len(parts[-1])
            yield np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), np.uint8)

    def _in_order(self, requests: Sequence[Range]) -> Iterator[bytearray]:
        """What is asked for, one answer after the other, while the next ones are on their way."""
        jobs: SimpleQueue[tuple[Range, Future[bytearray]] | None] = SimpleQueue()
        stop = Event()
        pending: deque[Future[bytearray]] = deque()
        # Daemons: nobody waits for a connection that hangs.
        threads = [Thread(target=self._work, args=(jobs, stop), daemon=True) for _ in requests[:CONNECTIONS]]
        try:
            for thread in threads:
                thread.start()
            for bounds in requests:
                pending.append(Future())
                jobs.put((bounds, pending[-1]))
                if len(pending) > CONNECTIONS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            stop.set()
            for _ in threads:
                jobs.put(None)

    def _work(self, jobs: SimpleQueue[tuple[Range, Future[bytearray]] | None], stop: Event) -> None:
        while (job := jobs.get()) is not None:
            (begin, end), future = job
            if stop.is_set():
                continue
            try:
                future.set_result(self._fetch(begin, end, stop))
            except BaseException as error:
                future.set_exception(error)

    def _fetch(self, begin: int, end: int, stop: Event) -> bytearray:
        """Bytes [begin, end) of the file, over as many connections as it takes."""
        data = bytearray(end - begin)
        filled = failures = 0
        troubles: tuple[type[Exception], ...] = (_BrokenError, *http_errors())
        while filled < len(data):
            before = filled
            try:
                with self._open(begin + filled, end) as blocks:
                    for block in blocks:
                        if stop.is_set():
                            raise _StoppedError
                        if len(block) > len(data) - filled:
                            self._fail("sent more bytes than it said")
                        data[filled : filled + len(block)] = block
                        filled += len(block)
                if filled < len(data):
                    raise _BrokenError("the connection ended early")
            except troubles as error:
                failures = 1 if filled > before else failures + 1
                self._wait(failures, error, stop)
        return data

    def _wait(self, failures: int, error: Exception, stop: Event) -> None:
        """Sit out a trouble of the network, unless it has lasted too long."""
        reason = str(error).partition("\n")[0] or type(error).__name__
        if failures > self._patience.attempts:
            problem = f"{self._where} cannot be downloaded: tried {failures} times in vain: {reason}"
            raise CheckpointError(problem, "Check the network; the same command goes on from here.") from error
        asked = error.seconds if isinstance(error, _BrokenError) else 0.0
        seconds = max(asked, self._patience.wait(failures))
        if failures > 1 or asked:
            self._on_trouble(f"{self._where}: {reason}; trying again in {seconds:.0f} s")
        if stop.wait(seconds):
            raise _StoppedError

    @contextmanager
    def _open(self, begin: int, end: int) -> Iterator[Iterator[bytes]]:
        """Ask for bytes [begin, end), and check that the answer is just these."""
        redirected = self._redirected
        headers = {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        if redirected is None:
            # The library's clients don't send Authorization on to another host that they are redirected to; nor must
            # they, or we: it is the user's key to the Hub, and the URL that the Hub gives has a permission of its own.
            headers |= auth_headers(self._repository.token)
        with _get(redirected or self._repository.url(self.name), headers) as (response, blocks):
            if redirected is not None and 400 <= response.status_code < 500 and response.status_code != 416:
                self._redirected = None
                raise _BrokenError(f"status {response.status_code}", _asked_to_wait(response.headers))
            self._check_status(response, begin, end)
            self._check_same_file(response)
            if redirected is None and _host(response) != _host([*response.history, response][0]):
                self._redirected = str(response.url)
            yield blocks

    def _check_status(self, response: Any, begin: int, end: int) -> None:
        status, said = response.status_code, response.headers
        if status in _BUSY:
            raise _BrokenError(f"status {status}", _asked_to_wait(said))
        if status == 206:
            content = said.get("Content-Range", "no Content-Range")
            if content != f"bytes {begin}-{end - 1}/{self.size}":
                self._fail(f"answered the request for bytes {begin}-{end - 1} of {self.size} with {content!r}")
        elif status == 200:
            if (begin, end) != (0, self.size) or said.get("Content-Length", str(end)) != str(end):
                self._fail("ignores the range that is asked for")
        elif status == 416:
            self._fail(f"has no bytes {begin}-{end - 1}")
        else:
            self._raise_refusal(response)
        if said.get("Content-Encoding", "identity") != "identity":
            self._fail(f"encoded the bytes as {said['Content-Encoding']!r}")

    def _raise_refusal(self, response: Any) -> NoReturn:
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        with hub_errors(self._repository.repo, revision=self._repository.commit, file=self.name):
            _ = response.read() if hasattr(response, "read") else response.content  # for the library to look into
            hf_raise_for_status(response)
        self._fail(f"answered with status {response.status_code}")

    def _check_same_file(self, response: Any) -> None:
        """Every answer is of the same commit and the same file as the listing and the answers before."""
        answers = [*response.history, response]
        commits = {answer.headers.get("X-Repo-Commit", self._repository.commit) for answer in answers}
        if commits != {self._repository.commit}:
            self._fail(f"sent a file of another commit than {self._repository.commit}")
        for answer in answers:
            linked = answer.headers.get("X-Linked-ETag")
            etag = linked or (answer.headers.get("ETag", "") if answer is response else None)
            if etag is not None:
                self._check_etag(etag.removeprefix("W/").strip('"'), _host(answer), linked is not None)

    def _check_etag(self, etag: str, host: str, linked: bool) -> None:
        """`linked`: it is that of a large file, whose SHA-256 it usually is."""
        if linked and self._file.sha256 and re.fullmatch("[0-9a-f]{64}", etag) and etag != self._file.sha256:
            self._fail(f"has a file of SHA-256 {etag} there, but lists {self._file.sha256}")
        with self._lock:
            before = self._etags.setdefault(host, etag)
        if etag != before:
            self._fail(f"changed the file in the middle of the download: its ETag was {before!r}, now {etag!r}")

    def _fail(self, what: str) -> NoReturn:
        from huggingface_hub.constants import ENDPOINT

        problem = f"{self._where}: {ENDPOINT} {what}"
        raise CheckpointError(problem, "Try again; if that changes nothing, check HF_ENDPOINT and any proxy between.")


class _BrokenError(Exception):
    """A connection that broke, or a server that asked for patience: so many seconds."""

    def __init__(self, reason: str, seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.seconds = seconds


class _StoppedError(Exception):
    """Nobody wants the bytes any longer."""


@contextmanager
def _get(url: str, headers: Mapping[str, str]) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """The answer, once its head is there, and its body in blocks."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    session: Any = get_session()
    if callable(session.stream):  # httpx, or a fork of it
        options = {"headers": headers, "timeout": TIMEOUT_SECONDS, "follow_redirects": True}
        with session.stream("GET", url, **options) as response:
            yield response, response.iter_raw()
    else:  # requests, up to version 0.36 of the library; there it is an option
        with session.get(url, headers=headers, timeout=TIMEOUT_SECONDS, stream=True) as response:
            yield response, response.iter_content(1 << 15)


def _requests(ranges: Iterable[Range]) -> list[Range]:
    """The requests, bytes [begin, end), whose answers, one after the other, are these (begin, nbytes): neighbours
    joined, none too long."""
    joined: list[Range] = []
    for begin, nbytes in ranges:
        end = begin + nbytes
        while begin < end:
            if joined and joined[-1][1] == begin and begin - joined[-1][0] < REQUEST_BYTES:
                first = joined.pop()[0]
            else:
                first = begin
            begin = min(end, first + REQUEST_BYTES)
            joined.append((first, begin))
    return joined


def _asked_to_wait(headers: Mapping[str, str]) -> float:
    """Seconds: by Retry-After, a number or a date, or by the Hub's RateLimit ("resolvers";r=0;t=55)."""
    after = headers.get("Retry-After", "").strip()
    limit = re.search(r";\s*t=(\d{1,6})", headers.get("RateLimit", ""))
    if re.fullmatch(r"\d{1,6}", after):
        return float(after)
    if after:
        try:
            until = parsedate_to_datetime(after)
        except ValueError:
            return 0.0
        return max(0.0, (until - datetime.now(until.tzinfo or timezone.utc)).total_seconds())
    return float(limit[1]) if limit else 0.0


def _host(response: Any) -> str:
    return urlsplit(str(response.url)).netloc
