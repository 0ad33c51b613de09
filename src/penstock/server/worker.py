"""The one thread that may touch the model: takes requests in between passes, runs passes, hands out what they bring.

Where several models are served, requests are taken in the order in which they came: one for a model that is not open
waits until all that came before it are done, and those behind it wait for it.

Whatever is raised while one request is seen to is that one's failure, and whatever a pass raises that of the requests
in it. The thread lives on, and so do the others.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from penstock.errors import InternalError, MemoryCeilingError, PenstockError
from penstock.openai_api.answers import submit
from penstock.openai_api.embeddings import Embedded, PreparedEmbeddings
from penstock.openai_api.errors import RequestError
from penstock.server.job import Ended, Failed, Job, Made, Pieces
from penstock.server.settings import MOST_SEQUENCES

if TYPE_CHECKING:
    from penstock.llm import LLM
    from penstock.openai_api.answers import Answers
    from penstock.server.metrics import Metrics
    from penstock.server.settings import Settings
    from penstock.server.shelf import Shelf

PASSES_TO_WAIT = 8
"""What a client is asked to wait where the queue is full."""

log = logging.getLogger(__name__)


class Abandoned(Exception):  # noqa: N818
    """Nobody wants what the running pass would bring."""


class Progress:
    """Where the running pass is. Written by the engine's thread, read by others."""

    def __init__(self, layers: int) -> None:
        self.passes = 0
        """Passes that have ended."""
        self.layers = layers
        """Of the open model."""
        self.layer = 0
        """Layers of the running pass that have ended."""
        self.seconds = 0.0
        """What the latest whole pass of the open model took."""
        self.opening: str | None = None
        """The model that is being opened."""
        self._begin: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds of the running pass; 0 between passes."""
        begin = self._begin
        return 0.0 if begin is None else time.monotonic() - begin

    def start(self) -> None:
        self.layer, self._begin = 0, time.monotonic()

    def end(self, whole: bool) -> None:
        if whole:
            self.seconds, self.passes = self.elapsed, self.passes + 1
        self.layer, self._begin = 0, None


class Worker:
    """Owns a shelf from `start` to the end of `close`; other threads offer and cancel jobs."""

    def __init__(self, shelf: Shelf, settings: Settings, metrics: Metrics) -> None:
        self.shelf = shelf
        self.progress = Progress(shelf.known(shelf.current).config.num_hidden_layers)
        self._settings = settings
        self._metrics = metrics
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._running: list[Job] = []
        """Submitted to the engine, the last of them maybe just now; changed by its thread alone."""
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        metrics.watch(shelf, lambda: self.queued, lambda: self.running)

    def start(self) -> None:
        if self.shelf.llm is not None:
            self.shelf.llm.on_layer = self._after_layer
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def queued(self) -> int:
        """Requests that wait for their turn, or for memory."""
        return len(self._queue) + sum(1 for job in list(self._running) if self._waits(job))

    @property
    def running(self) -> int:
        """Requests that passes serve."""
        return len(self._running) + len(self._queue) - self.queued

    def check_room(self, tokens: int = 0) -> None:
        """Raise RequestError, 429, where the queue has no room for so many tokens more."""
        waiting = list(self._queue)
        full = len(waiting) >= self._settings.queue
        if waiting and tokens:
            full = full or sum(job.request.tokens for job in waiting) + tokens > self._settings.queue_tokens
        if full:
            raise RequestError(
                f"{len(waiting)} requests wait already.", "Try again later.", status=429, code="queue_full"
            )

    @property
    def retry_seconds(self) -> int:
        """When there may be room in the queue again."""
        return max(1, min(600, math.ceil(PASSES_TO_WAIT * self.progress.seconds)))

    def offer(self, job: Job) -> None:
        """Queue a job. Raises RequestError where the queue is full, or the server ends."""
        with self._changed:
            if self._closing or not self.alive:
                raise ending()
            self.check_room(job.request.tokens)
            self._queue.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody wants this job any more; does nothing where it has ended."""
        job.cancelled = True
        with self._changed:
            if job in self._queue:
                self._queue.remove(job)
            self._changed.notify()

    def status(self, job: Job) -> dict[str, int | float]:
        """What to tell a client that waits: how many requests are ahead of it, and how far the running pass is.

        Seconds are those of the running pass so far, and of the latest whole one. `opening`: the model that it waits
        for is being opened.
        """
        progress = self.progress
        queue = list(self._queue)
        opens = {"opening": True} if progress.opening == job.model else {}
        return {
            "waiting": queue.index(job) + 1 if job in queue else int(self._waits(job)),
            "pass": progress.passes + 1,
            "layer": progress.layer,
            "layers": progress.layers,
            "seconds": round(progress.elapsed, 1),
            "pass_seconds": round(progress.seconds, 2),
            **opens,
        }

    def close(self, wait: bool = False) -> None:
        """End all jobs, and the thread at the next layer; `wait` for that."""
        with self._changed:
            self._closing = True
            for job in [*self._queue, *self._running]:
                job.tell(Failed(ending()))
            self._queue.clear()
            self._changed.notify()
        if wait and self.alive:
            self._thread.join()

    def _work(self) -> None:
        try:
            while self._await_work():
                try:
                    self._round()
                except Exception:
                    log.exception("The server failed between passes.")
                    self._fail_all(failed(), queued=True)
        except Exception:
            log.exception("The engine's thread has ended.")
            self.close()
        finally:
            for job in list(self._running):
                self._end(job)

    def _round(self) -> None:
        self._drop_cancelled()
        self._turn()
        self._admit()
        self._embed()
        self._pass()
        self._deliver()

    def _await_work(self) -> bool:
        """Sleep until there is something to do; False when the server ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._queue or self._running)
            return not self._closing

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._running if job.cancelled]:
            self._end(job)

    def _turn(self) -> None:
        """Open the model that the first of the queue is for, once nothing runs in the one that is open."""
        with self._changed:
            wanted = None if self._running or not self._queue else self._queue[0].model
        if wanted is None or self.shelf.is_open(wanted):
            return
        progress = self.progress
        progress.opening = wanted
        try:
            llm = self.shelf.open(wanted, self._after_layer)
            progress.layers, progress.seconds = llm.config.num_hidden_layers, 0.0
            self._metrics.opened(wanted)
        except PenstockError as error:
            log.warning("%s could not be opened: %s", wanted, error)
            self._refuse(wanted, RequestError(error.problem, error.remedy, status=500))
        except Exception:
            log.exception("%s could not be opened.", wanted)
            self._refuse(wanted, failed())
        finally:
            progress.opening = None

    def _refuse(self, model: str, error: RequestError) -> None:
        """Fail all that wait for a model."""
        with self._changed:
            waiting = [job for job in self._queue if job.model == model]
            for job in waiting:
                self._queue.remove(job)
        for job in waiting:
            job.tell(Failed(error))

    def _admit(self) -> None:
        """Submit what waits, in its order. At most one request waits in the engine, where prompts take more memory."""
        while (llm := self.shelf.llm) is not None and llm.waiting == 0 and self._sequences() < MOST_SEQUENCES:
            with self._changed:
                if not self._queue or not self.shelf.is_open(self._queue[0].model):
                    return
                job = self._queue.popleft()
                self._running.append(job)
            self._begin(llm, job)

    def _begin(self, llm: LLM, job: Job) -> None:
        """Submit a job, without the lock: that may take seconds where there is a grammar, and others offer and cancel
        meanwhile."""
        try:
            if not isinstance(job.request, PreparedEmbeddings):
                job.answers = submit(llm, job.request, drawn=(job.drawn,))
        except RequestError as error:
            self._fail(job, error)
        except Exception:
            log.exception("A request could not be begun.")
            self._fail(job, failed())

    def _embed(self) -> None:
        """Texts become vectors in passes of their own, between those of answers."""
        for job in list(self._running):
            request, llm = job.request, self.shelf.llm
            if llm is None or not isinstance(request, PreparedEmbeddings):
                continue
            self.progress.start()
            try:
                vectors = llm.embed(request.texts, pooling=request.pooling, adapter=request.adapter)
                job.tell(Made(Embedded(request, vectors)))
            except Abandoned:
                pass
            except PenstockError as error:
                job.tell(Failed(RequestError.of(error)))
            except Exception:
                log.exception("Texts could not become vectors.")
                job.tell(Failed(failed()))
            finally:
                self.progress.end(True)
                self._end(job)

    def _pass(self) -> None:
        if (llm := self.shelf.llm) is None or not llm.busy:
            return
        whole = False
        self.progress.start()
        try:
            self._metrics.took(llm.step())
            whole = True
        except Abandoned:
            pass
        except MemoryCeilingError as error:
            if not any(job.answers and job.answers.error for job in self._running):
                self._fail_all(RequestError.of(error))
        except PenstockError as error:
            log.warning("%s", error)
            self._fail_all(RequestError.of(error))
        except Exception:
            log.exception("A pass failed.")
            self._fail_all(failed())
        finally:
            self.progress.end(whole)

    def _deliver(self) -> None:
        """Hand out what came, and what ended."""
        for job in list(self._running):
            if job.answers is None:
                continue
            try:
                self._deliver_one(job, job.answers)
            except Exception:
                log.exception("An answer could not be handed out.")
                self._fail(job, failed())

    def _deliver_one(self, job: Job, answers: Answers) -> None:
        pieces = []
        for index, completion in enumerate(answers.completions):
            while completion.pieces:
                pieces.append((index, completion.pieces.popleft()))
        if pieces:
            job.tell(Pieces(pieces))
        if (error := answers.error) is not None:
            self._fail(job, failed() if isinstance(error, InternalError) else RequestError.of(error))
        elif not answers.runs:
            self._end(job)
            job.tell(Ended(answers))

    def _fail_all(self, error: RequestError, *, queued: bool = False) -> None:
        """End all that run, and those that have not begun as well where they are `queued`."""
        failing = list(self._running)
        if queued:
            with self._changed:
                failing += self._queue
                self._queue.clear()
        for job in failing:
            self._fail(job, error)

    def _fail(self, job: Job, error: RequestError) -> None:
        self._end(job)
        job.tell(Failed(error))

    def _end(self, job: Job) -> None:
        """Take a job out of the engine, whatever that raises; done again it does nothing."""
        if job not in self._running:
            return
        self._running.remove(job)
        try:
            if job.answers is not None:
                job.answers.cancel()
                self._metrics.left(job.answers)
        except Exception:
            log.exception("A request has left, and not all that it had was given back.")

    def _sequences(self) -> int:
        return sum(len(job.answers.completions) for job in self._running if job.answers)

    def _waits(self, job: Job) -> bool:
        """Whether a submitted job waits for memory."""
        answers, llm = job.answers, self.shelf.llm
        if answers is None or llm is None:
            return False
        return llm.waiting > 0 and not any(completion.stats.log for completion in answers.completions)

    def _after_layer(self, index: int, read: float, wait: float, compute: float) -> None:
        self.progress.layer = index + 1
        if self._closing or all(job.cancelled for job in self._running):
            raise Abandoned


def ending() -> RequestError:
    return RequestError("The server is shutting down.", status=503)


def failed() -> RequestError:
    return RequestError("The server failed; its log says why.", status=500)
