"""A desk: what is to be done of a batch, and what was. It has the requests, the state and the results, and no model."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.batch.bench import MOST_HELD
from penstock.batch.exchange import Assignment, Before
from penstock.batch.lines import parse_line
from penstock.batch.requests import LineError
from penstock.batch.state import Result
from penstock.logprobs import TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from penstock.batch.exchange import Passed
    from penstock.batch.progress import Progress, Unfinished
    from penstock.batch.records import Names
    from penstock.batch.requests import RequestFile
    from penstock.batch.results import ResultFile
    from penstock.batch.state import Drawn, State, ToDo


@dataclass(slots=True)
class Desk:
    """Hands out lines, reading from `requests`, and keeps what comes of them in `state` and `results`.

    Its methods raise PenstockError where a file cannot be read or written; what was kept before is kept then.
    """

    requests: RequestFile
    state: State
    results: ResultFile
    names: Names
    progress: Progress
    has_chat_template: bool
    most_line_bytes: int
    """Longer lines are not taken into memory."""
    _ended: list[Result] = field(default_factory=list)
    """Lines that are no requests."""
    _begun: int = 0
    """The last line that was handed out."""
    _to_do: Iterator[ToDo] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether there are results that nobody's pass brought, to be kept with the next one's."""
        return bool(self._ended)

    def next(self) -> Assignment | None:
        """The next line that can be asked; None where there is none, or where MOST_HELD that cannot be have come."""
        if self._to_do is None:
            self._to_do = self._lines()
        while len(self._ended) < MOST_HELD and (one := next(self._to_do, None)) is not None:
            try:
                return self._assignment(one)
            except LineError as error:
                record = self.names.not_a_request(one.line, error)
                self._ended.append(Result(one.line.number, record, failed=True, tokens=0))
        return None

    def again(self, number: int) -> Assignment:
        """A line that was handed out before, with what was drawn for it since."""
        [one] = self.state.to_do(number - 1, most=1)
        return self._assignment(one)

    def take(self, passed: Passed, unfinished: Sequence[Unfinished]) -> None:
        """Keep what a pass brought, in one transaction; `unfinished`: all requests that go on."""
        if passed.seconds is not None:
            self.progress.count_pass(passed.seconds)
        self._keep(passed.drawn, passed.finished, passed.tokens, unfinished)

    def settle(self) -> None:
        """Keep the results that nobody's pass brought."""
        self._keep((), (), 0, self.progress.unfinished)

    def _keep(
        self, drawn: Iterable[Drawn], finished: Iterable[Result], tokens: int, unfinished: Sequence[Unfinished]
    ) -> None:
        results = [*self._ended, *finished]
        self.state.commit(drawn, results)
        self.results.append(result.record for result in results)
        self.progress.count(results, unfinished, tokens, time.perf_counter())
        self._ended = []

    def _lines(self) -> Iterator[ToDo]:
        while lines := self.state.to_do(self._begun, most=64):
            for one in lines:
                self._begun = one.line.number
                yield one

    def _assignment(self, one: ToDo) -> Assignment:
        """Raises LineError for a line that is no request."""
        line = one.line
        data = self.requests.read(line, self.most_line_bytes)
        request = parse_line(data, line.number, self.has_chat_template)
        if one.first_of_id is not None:
            problem = f"Line {one.first_of_id} has the same custom_id."
            raise LineError("duplicate_custom_id", problem, request.custom_id)
        return Assignment(line, request, tuple(self._before(parts) for parts in self.state.drawn(line.number)))

    def _before(self, parts: Sequence[Drawn]) -> Before:
        """What earlier passes drew for one completion, from the state's contents, as a bench writes them."""
        before = Before()
        for part in parts:
            if part.first != len(before.tokens):
                raise self.state.damaged(f"line {part.number} lacks tokens from number {len(before.tokens)} on")
            tokens, logprobs = json.loads(part.content)
            before.tokens.extend(tokens)
            before.logprobs.extend(
                TokenLogprobs.of(token, logprob, ((i, p) for i, p in top)) for token, logprob, top in logprobs
            )
        return before
