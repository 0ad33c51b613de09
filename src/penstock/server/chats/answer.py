"""An answer of a conversation on its way: it goes on whoever looks at it, and anybody may look at any time."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from penstock.openai_api.errors import RequestError
from penstock.server.chats.conversation import MOST_TEXT, MOST_TOKENS, Stats
from penstock.server.chats.markdown import GrowingMarkdown
from penstock.server.job import Ended, Failed, Pieces
from penstock.server.worker import failed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from concurrent.futures import Executor

    from penstock.completion import Piece
    from penstock.server.chats.conversation import Message, State
    from penstock.server.job import Job
    from penstock.server.worker import Worker

    Save = Callable[[Message, bool], Awaitable[None]]
    """Keeps a message; the flag says whether it is finished."""

SAVE_SECONDS = 3.0
"""What is lost at most where the server is killed."""
FRAME_SECONDS = 0.08
"""Between two frames, where text comes faster."""

log = logging.getLogger(__name__)


class RunningAnswer:
    """Takes what a job brings into a message, keeps that, and shows it to all who follow."""

    def __init__(self, message: Message, job: Job, worker: Worker, save: Save, executor: Executor) -> None:
        """`executor` renders: one thread, which all answers share."""
        self.message = message
        self.outcome = "cancelled"
        """As the metrics count it."""
        self._job = job
        self._worker = worker
        self._save = save
        self._executor = executor
        self._markdown = GrowingMarkdown()
        self._rendering = asyncio.Lock()
        self._rendered = 0
        """Characters that were."""
        self._tail: list[str] = []
        self._before = message.stats if job.drawn else Stats()
        """What it took before it was cut."""
        self._begin = self._first = self._last = time.monotonic()
        self._end: float | None = None
        self._first_tokens = 0
        self._passes = 0
        self._saved = 0.0
        self._revision = 0
        self._changed = asyncio.Condition()
        message.state, message.error, message.content, message.token_ids = "running", None, "", []

    @property
    def ended(self) -> bool:
        return self._end is not None

    async def run(self) -> None:
        """Until it ends, which this task alone sees to."""
        message = self.message
        try:
            message.state = await self._follow()
            await self._keep(finished=True)
        except RequestError as error:  # nobody can keep it
            log.warning("An answer was lost: %s", said(error))
            message.state, message.error = "failed", said(error)
        except Exception:
            log.exception("An answer failed.")
            message.state, message.error = "failed", said(failed())
        finally:
            self._worker.cancel(self._job)
            self._end = time.monotonic()
            await self._tell()

    def stop(self) -> None:
        """End it with what there is."""
        self._worker.cancel(self._job)
        self._job.tell(Failed(RequestError("Stopped.")))

    async def frames(self, seconds: float) -> AsyncIterator[dict[str, Any]]:
        """What to show from now on, first of all what there is; every so many seconds at least.

        `blocks`, where there are any, are HTML in place of those from number `from` on.
        """
        sent, seen = 0, -1
        while True:
            ended, revision = self.ended, self._revision
            frame: dict[str, Any] = {"state": self.message.state, "stats": self._stats().model_dump()}
            if not ended:
                frame |= self._worker.status(self._job)
            if revision != seen:
                async with self._rendering:
                    await self._render()
                    frame |= {"from": sent, "blocks": self._markdown.finished[sent:] + self._tail}
                    sent, seen = len(self._markdown.finished), revision
            yield frame
            if ended:
                return
            await asyncio.sleep(FRAME_SECONDS)
            await self._news(seen, seconds)

    async def _follow(self) -> State:
        """Take events until the last one, and say how it ended."""
        while True:
            event = await self._job.next(SAVE_SECONDS)
            if self._job.cancelled:
                return "stopped"
            if isinstance(event, Pieces):
                for _, piece in event.pieces:
                    self._take(piece)
                await self._tell()
            elif isinstance(event, Ended):
                self.outcome = "completed"
                return "length" if event.answers.completions[0].output().finish_reason == "length" else "done"
            elif isinstance(event, Failed):
                self.outcome = "failed"
                if event.error.status == 503:  # the server ends
                    return "cut"
                self.message.error = said(event.error)
                return "failed"
            if len(self.message.content) >= MOST_TEXT - 4096 or len(self.message.token_ids) >= MOST_TOKENS - 256:
                return "length"  # as much as a file may hold
            if self._last > self._saved and time.monotonic() - self._saved > SAVE_SECONDS:
                await self._keep(finished=False)

    def _take(self, piece: Piece) -> None:
        message, now = self.message, time.monotonic()
        message.content += piece.text
        message.token_ids += piece.token_ids
        if self._drawn <= 0:  # what an earlier run drew
            return
        if not self._passes:
            self._first, self._first_tokens = now, self._drawn
        self._last = now
        self._passes += 1

    @property
    def _drawn(self) -> int:
        """Tokens that were drawn here."""
        return len(self.message.token_ids) - len(self._job.drawn)

    def _stats(self) -> Stats:
        """The pace is that of this run alone."""
        later = self._drawn - self._first_tokens
        return Stats(
            tokens=self._before.tokens + max(0, self._drawn),
            passes=self._before.passes + self._passes,
            seconds=self._before.seconds + (self._end or time.monotonic()) - self._begin,
            seconds_per_token=(self._last - self._first) / later if self._passes and later > 0 else None,
        )

    async def _keep(self, *, finished: bool) -> None:
        self._saved = time.monotonic()
        self.message.stats = self._stats()
        await self._save(self.message, finished)

    async def _render(self) -> None:
        """The text as it is now, unless it was rendered already."""
        new = self.message.content[self._rendered :]
        if new:
            self._rendered += len(new)
            self._tail = await asyncio.get_running_loop().run_in_executor(self._executor, self._grow, new)

    def _grow(self, new: str) -> list[str]:
        self._markdown.add(new)
        return self._markdown.unfinished()

    async def _tell(self) -> None:
        async with self._changed:
            self._revision += 1
            self._changed.notify_all()

    async def _news(self, seen: int, seconds: float) -> None:
        """Wait until there is something new, or for so long."""

        async def wait() -> None:
            async with self._changed:
                await self._changed.wait_for(lambda: self._revision != seen)

        try:
            await asyncio.wait_for(wait(), seconds)
        except asyncio.TimeoutError:
            return


def said(error: RequestError) -> str:
    """An error in one line, as clients are told it."""
    message: str = error.body()["error"]["message"]
    return message
