"""A bench: an open model and the requests that run on it. It takes up lines, runs passes, and tells what each brought.

It knows neither the files of the batch nor its state: those are the desk's (desk.py).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.batch.exchange import Begun, Passed, Standing
from penstock.batch.progress import Unfinished
from penstock.batch.state import Drawn, Result
from penstock.errors import InternalError, MemoryCeilingError, PenstockError
from penstock.openai_api.answers import submit
from penstock.openai_api.errors import RequestError
from penstock.openai_api.requests import parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from penstock.batch.exchange import Assignment, Terms
    from penstock.completion import Completion
    from penstock.llm import LLM
    from penstock.openai_api.answers import Answers

MOST_AT_ONCE = 1024
"""Answers that take part in passes, however much room there is: each has a row in every pass, of 4,096 at most."""
UNSUPPORTED = "unsupported_parameter"
MOST_HELD = 256
"""Results that are kept together, where lines fail without a pass."""


@dataclass(slots=True)
class Running:
    """A request on its way."""

    asked: Assignment
    answers: Answers
    told: list[int]
    """How many tokens of each completion the desk has."""
    counted: int
    """How many of all of them were counted."""

    @property
    def tokens(self) -> int:
        return sum(len(completion.sequence.token_ids) for completion in self.answers.completions)

    @property
    def limit(self) -> int:
        return sum(completion.sequence.max_tokens for completion in self.answers.completions)


class Bench:
    """Not to be used by two threads at once."""

    def __init__(self, llm: LLM, terms: Terms) -> None:
        """`llm`: open, and the caller's to close."""
        self.llm = llm
        self.terms = terms
        self.running: list[Running] = []
        self._finished: list[Result] = []
        self._handed_back: list[int] = []
        llm.favour_prompts()

    @property
    def has_room(self) -> bool:
        """Whether it may take up another line: one more than memory has room for, at most."""
        answers = sum(len(running.answers.completions) for running in self.running)
        return not self.llm.waiting and answers < self.terms.at_once and len(self._finished) < MOST_HELD

    @property
    def has_work(self) -> bool:
        """Whether a step would bring anything."""
        return bool(self.running or self._finished)

    @property
    def unfinished(self) -> tuple[Unfinished, ...]:
        """The requests that go on."""
        return tuple(Unfinished(running.tokens, running.limit) for running in self.running)

    def begin(self, assignments: Sequence[Assignment]) -> Begun:
        """Take up lines, in their order, as long as there is room. Raises as `take_up` does."""
        taken = 0
        for asked in assignments:
            if not self.has_room:
                break
            self.take_up(asked)
            taken += 1
        return Begun(taken, self._standing())

    def take_up(self, asked: Assignment) -> None:
        """Let a line take part in the passes from now on. What is wrong with it becomes its result.

        Raises MemoryCeilingError where an earlier run had room for the line, and began it; PenstockError.
        """
        try:
            self.running.append(self._submit(asked))
        except RequestError as error:
            self._refuse(asked, error)
        except PenstockError:
            raise
        except Exception as error:
            self._refuse(asked, InternalError.of(error))

    def step(self) -> Passed:
        """A pass, where there is anything to compute, and what came of all that was taken up.

        Raises ReadError and MemoryCeilingError of passes; what earlier ones brought has been told then.
        """
        seconds = self._pass() if self.llm.busy else None
        drawn, tokens, going_on = list[Drawn](), 0, list[Running]()
        for running in self.running:
            tokens += running.tokens - running.counted
            running.counted = running.tokens
            try:
                if running.answers.runs and running.answers.error is None:
                    drawn.extend(_new_tokens(running))
                    going_on.append(running)
                else:
                    self._finish(running)
            except Exception as error:  # of this request alone
                self._end(running, InternalError.of(error))
        self.running = going_on
        finished, self._finished = tuple(self._finished), []
        return Passed(tuple(drawn), finished, tokens, seconds, self._standing())

    def _standing(self) -> Standing:
        handed_back, self._handed_back = tuple(self._handed_back), []
        return Standing(self.unfinished, self.has_room, handed_back)

    def _submit(self, one: Assignment) -> Running:
        """Raises RequestError; MemoryCeilingError where an earlier run had room for the request, and began it."""
        asked = parse(one.request.url, one.request.body)
        if asked.stream:
            raise RequestError("stream has no meaning in a batch: leave it out.", param="stream", code=UNSUPPORTED)
        if asked.token_limit is None:  # else it would depend on memory
            asked = asked.model_copy(update={"max_tokens": self.terms.max_tokens})
        # Without adapters a name says nothing: files are often written for other services.
        adapter = asked.adapter(self.terms.labels.model, self.llm.adapters) if self.llm.adapters else None
        tokens = [before.tokens for before in one.drawn]
        try:
            answers = submit(self.llm, asked, default_seed=one.line.seed, drawn=tokens, adapter=adapter)
        except RequestError as error:
            if isinstance(error.__cause__, MemoryCeilingError) and any(tokens) and one.last_resort:
                raise error.__cause__ from None
            raise
        told = [0] * len(answers.completions)
        for index, before in enumerate(one.drawn):
            answers.completions[index].sequence.logprobs[:0] = before.logprobs
            told[index] = len(before.tokens)
        return Running(one, answers, told, counted=sum(told))

    def _pass(self) -> float:
        """Seconds."""
        begin = time.perf_counter()
        try:
            self.llm.step()
        except MemoryCeilingError:
            if not any(running.answers.error for running in self.running):
                raise
        return time.perf_counter() - begin

    def _finish(self, running: Running) -> None:
        asked, answers, terms = running.asked, running.answers, self.terms
        if answers.error is not None:
            self._end(running, answers.error)
            return
        name = terms.names.answer(asked.line, asked.request.url)
        model = answers.request.adapter or terms.labels.model
        body = answers.response(id=name, created=terms.labels.created, model=model, cached=False)
        record = terms.names.answered(asked.line, asked.request.custom_id, body)
        answers.cancel()
        self._finished.append(Result(asked.line.number, record, failed=False, tokens=running.tokens))

    def _end(self, running: Running, error: PenstockError) -> None:
        """A request that was begun has failed."""
        running.answers.cancel()
        self._refuse(running.asked, error)

    def _refuse(self, asked: Assignment, error: PenstockError) -> None:
        number = asked.line.number
        if not asked.last_resort and MemoryCeilingError in (type(error), type(error.__cause__)):
            self._handed_back.append(number)
            return
        record = self.terms.names.refused(asked.line, asked.request.custom_id, RequestError.of(error))
        self._finished.append(Result(number, record, failed=True, tokens=0))


def _new_tokens(running: Running) -> Iterator[Drawn]:
    """What the desk has not been told yet, of each of a request's completions."""
    for choice, completion in enumerate(running.answers.completions):
        completion.pieces.clear()
        first, tokens = running.told[choice], completion.sequence.token_ids
        if len(tokens) > first:
            content = json.dumps([tokens[first:], _logprobs(completion, first)], separators=(",", ":"))
            running.told[choice] = len(tokens)
            yield Drawn(running.asked.line.number, choice, first, content)


def _logprobs(completion: Completion, first: int) -> list[tuple[int, float, object]]:
    return [(t.token, t.logprob, t.top) for t in completion.sequence.logprobs[first:]]
