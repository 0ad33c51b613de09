"""Working a batch off: lines become requests, requests share passes, and what each pass brings is kept at once."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.batch.lines import parse_line
from penstock.batch.progress import Unfinished
from penstock.batch.requests import LineError
from penstock.batch.state import Drawn, Result
from penstock.errors import InternalError, MemoryCeilingError, PenstockError
from penstock.logprobs import TokenLogprobs
from penstock.openai_api.answers import submit
from penstock.openai_api.errors import RequestError
from penstock.openai_api.requests import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from penstock.batch.opening import Labels
    from penstock.batch.progress import Progress
    from penstock.batch.records import Names
    from penstock.batch.requests import Line, Request, RequestFile
    from penstock.batch.results import ResultFile
    from penstock.batch.state import State, ToDo
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

    line: Line
    custom_id: str
    url: str
    answers: Answers
    told: list[int]
    """How many tokens of each completion the state has."""
    counted: int
    """How many of all of them the progress has."""

    @property
    def tokens(self) -> int:
        return sum(len(completion.sequence.token_ids) for completion in self.answers.completions)

    @property
    def limit(self) -> int:
        return sum(completion.sequence.max_tokens for completion in self.answers.completions)


@dataclass(slots=True)
class Worker:
    """The loop. It reads from `requests`, and writes to `state` and `results`."""

    llm: LLM
    requests: RequestFile
    state: State
    results: ResultFile
    names: Names
    labels: Labels
    max_tokens: int
    """Of requests that name no limit."""
    at_once: int
    """Answers that take part in passes, where that makes more than one request."""
    most_line_bytes: int
    """Longer lines are not taken into memory."""
    progress: Progress
    running: list[Running] = field(default_factory=list)
    _finished: list[Result] = field(default_factory=list)
    _begun: int = 0
    """The last line that was taken up."""

    def run(self, tell: Callable[[], None]) -> None:
        """Until every line has a result; `tell` is called after every pass.

        Raises ReadError and MemoryCeilingError of passes, and PenstockError where a file cannot be read or written; the
        state then has all but the pass that failed.
        """
        to_do = self._to_do()
        while self._fill(to_do) or self.running or self._finished:
            self.progress.unfinished = self._unfinished
            if self.llm.busy:
                self._pass()
            self._take()
            tell()

    def _to_do(self) -> Iterator[ToDo]:
        while lines := self.state.to_do(self._begun, most=64):
            for one in lines:
                self._begun = one.line.number
                yield one

    def _fill(self, to_do: Iterator[ToDo]) -> bool:
        """Take up lines, in their order, while there is room for more; whether any was."""
        begun = self._begun
        while self._has_room and (one := next(to_do, None)) is not None:
            self._take_up(one)
        return self._begun > begun

    @property
    def _has_room(self) -> bool:
        answers = sum(len(running.answers.completions) for running in self.running)
        return not self.llm.waiting and answers < self.at_once and len(self._finished) < MOST_HELD

    def _take_up(self, one: ToDo) -> None:
        line = one.line
        try:
            data = self.requests.read(line, self.most_line_bytes)
            request = parse_line(data, line.number, self.llm.has_chat_template)
            if one.first_of_id is not None:
                problem = f"Line {one.first_of_id} has the same custom_id."
                raise LineError("duplicate_custom_id", problem, request.custom_id)
        except LineError as error:
            self._end(line, self.names.not_a_request(line, error), failed=True)
            return
        try:
            self.running.append(self._submit(line, request))
        except RequestError as error:
            self._end(line, self.names.refused(line, request.custom_id, error), failed=True)
        except PenstockError:
            raise
        except Exception as error:
            refused = RequestError.of(InternalError.of(error))
            self._end(line, self.names.refused(line, request.custom_id, refused), failed=True)

    def _submit(self, line: Line, request: Request) -> Running:
        """Raises RequestError; MemoryCeilingError where an earlier run had room for the request, and began it."""
        asked = parse(request.url, request.body)
        if asked.stream:
            raise RequestError("stream has no meaning in a batch: leave it out.", param="stream", code=UNSUPPORTED)
        if asked.token_limit is None:  # else it would depend on memory
            asked = asked.model_copy(update={"max_tokens": self.max_tokens})
        # Without adapters a name says nothing: files are often written for other services.
        adapter = asked.adapter(self.labels.model, self.llm.adapters) if self.llm.adapters else None
        drawn = [self._before(parts) for parts in self.state.drawn(line.number)]
        try:
            tokens = [before.tokens for before in drawn]
            answers = submit(self.llm, asked, default_seed=line.seed, drawn=tokens, adapter=adapter)
        except RequestError as error:
            if isinstance(error.__cause__, MemoryCeilingError) and any(before.tokens for before in drawn):
                raise error.__cause__ from None
            raise
        told = [0] * len(answers.completions)
        for index, before in enumerate(drawn):
            answers.completions[index].sequence.logprobs[:0] = before.logprobs
            told[index] = len(before.tokens)
        return Running(line, request.custom_id, request.url, answers, told, counted=sum(told))

    def _before(self, parts: Sequence[Drawn]) -> _Before:
        """What earlier passes drew for one completion, from the state's contents, as `_new_tokens` writes them."""
        before = _Before([], [])
        for part in parts:
            if part.first != len(before.tokens):
                raise self.state.damaged(f"line {part.number} lacks tokens from number {len(before.tokens)} on")
            tokens, logprobs = json.loads(part.content)
            before.tokens.extend(tokens)
            before.logprobs.extend(
                TokenLogprobs.of(token, logprob, ((i, p) for i, p in top)) for token, logprob, top in logprobs
            )
        return before

    def _pass(self) -> None:
        begin = time.perf_counter()
        try:
            self.llm.step()
        except MemoryCeilingError:
            if not any(running.answers.error for running in self.running):
                raise
        self.progress.count_pass(time.perf_counter() - begin)

    def _take(self) -> None:
        """Keep what the pass brought."""
        drawn, count, going_on = list[Drawn](), 0, list[Running]()
        for running in self.running:
            count += running.tokens - running.counted
            running.counted = running.tokens
            try:
                if running.answers.runs and running.answers.error is None:
                    drawn.extend(_new_tokens(running))
                    going_on.append(running)
                else:
                    self._finish(running)
            except Exception as error:  # of this request alone
                self._refuse(running, InternalError.of(error))
        self.running = going_on
        self.state.commit(drawn, self._finished)
        self.results.append(result.record for result in self._finished)
        self.progress.count(self._finished, self._unfinished, count, time.perf_counter())
        self._finished = []

    @property
    def _unfinished(self) -> list[Unfinished]:
        return [Unfinished(running.tokens, running.limit) for running in self.running]

    def _finish(self, running: Running) -> None:
        line, answers, names = running.line, running.answers, self.names
        if answers.error is not None:
            self._refuse(running, answers.error)
            return
        name = names.answer(line, running.url)
        model = answers.request.adapter or self.labels.model
        body = answers.response(id=name, created=self.labels.created, model=model, cached=False)
        record = names.answered(line, running.custom_id, body)
        answers.cancel()
        self._end(line, record, failed=False, tokens=running.tokens)

    def _refuse(self, running: Running, error: PenstockError) -> None:
        """A request that was begun has failed."""
        record = self.names.refused(running.line, running.custom_id, RequestError.of(error))
        running.answers.cancel()
        self._end(running.line, record, failed=True)

    def _end(self, line: Line, record: bytes, *, failed: bool, tokens: int = 0) -> None:
        self._finished.append(Result(line.number, record, failed, tokens))


@dataclass(frozen=True, slots=True)
class _Before:
    """What earlier passes drew for one completion."""

    tokens: list[int]
    logprobs: list[TokenLogprobs]


def _new_tokens(running: Running) -> Iterator[Drawn]:
    """What the state has not been told yet, of each of a request's completions."""
    for choice, completion in enumerate(running.answers.completions):
        completion.pieces.clear()
        first, tokens = running.told[choice], completion.sequence.token_ids
        if len(tokens) > first:
            content = json.dumps([tokens[first:], _logprobs(completion, first)], separators=(",", ":"))
            running.told[choice] = len(tokens)
            yield Drawn(running.line.number, choice, first, content)


def _logprobs(completion: Completion, first: int) -> list[tuple[int, float, object]]:
    return [(t.token, t.logprob, t.top) for t in completion.sequence.logprobs[first:]]
