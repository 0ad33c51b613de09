"""The lines of a batch shared out to several benches, and what comes of them taken in, whoever is first.

Each bench is at one call at a time: it takes up lines, or runs a pass. Each pass is kept in one transaction, as if its
bench were alone. The lines of one that is lost go to others with the tokens that the desk has of them, so that the pass
it was at is all that is lost. No result says who answered.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from penstock.batch.exchange import Begun
from penstock.errors import ClusterError, InternalError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from penstock.batch.desk import Desk
    from penstock.batch.elsewhere import BenchLike
    from penstock.batch.exchange import Assignment, Passed, Standing
    from penstock.batch.progress import Unfinished
    from penstock.batch.watcher import Watcher

    Call = Future[Any]  # of Begun or Passed

MOST_SENT, MOST_SENT_BYTES = 32, 1 << 20
"""Lines that are handed out in one call, and their bytes but for the last."""
LONGEST_PASSES, MORE_SECONDS = 3, 30.0
"""A bench may be silent for so many times its longest pass, and so many seconds more; in its first pass, for ever."""
LOOK_SECONDS = 0.5
"""How often silent ones are looked for."""
AWAY_SECONDS = 10.0
"""Where looks are further apart, this process was stopped itself, and has heard nobody."""


@dataclass(slots=True, eq=False)
class Seat:
    """A bench, and what it is at."""

    bench: BenchLike
    ceiling: int
    """Bytes that it may take."""
    lines: set[int] = field(default_factory=set)
    """Those that it has taken up."""
    sent: list[Assignment] = field(default_factory=list)
    """Those that it is asked to take up."""
    call: Call | None = None
    since: float = 0.0
    """When the call began."""
    heard: float = 0.0
    """When it was last heard of, for certain."""
    longest: float | None = None
    """Seconds of its longest pass so far."""
    has_room: bool = True
    unfinished: Sequence[Unfinished] = ()

    @property
    def count(self) -> int:
        """Of its lines."""
        return len(self.lines) + len(self.sent)

    @property
    def silence(self) -> float:
        """Seconds since it was last heard of."""
        return time.monotonic() - max(self.heard, self.bench.heard())

    def limit(self, patience: float | None) -> float:
        """For how many seconds it may be silent."""
        if patience is not None:
            return patience
        return math.inf if self.longest is None else LONGEST_PASSES * self.longest + MORE_SECONDS


@dataclass(slots=True)
class Sharing:
    """The loop."""

    desk: Desk
    seats: list[Seat]
    """Of those that are at work."""
    watcher: Watcher
    patience: float | None = None
    """Seconds for which a bench may be silent; None for what its passes suggest."""
    _returned: dict[int, int] = field(default_factory=dict)
    """Lines that were handed out and that nobody has, each with a ceiling that is too small for it."""
    _lost: dict[str, str] = field(default_factory=dict)
    """Why, by name."""
    _looked: float = 0.0

    def run(self) -> None:
        """Until every line has a result.

        Raises ClusterError where no bench is left, and as the desk does; the state then has every pass that was heard
        of.
        """
        while True:
            self.desk.progress.nodes = [seat.bench.name for seat in self.seats]
            for seat in self.seats:
                if seat.call is None:
                    self._go_on(seat)
            calls = {seat.call: seat for seat in self.seats if seat.call is not None}
            if not calls:
                break
            self._hear_some(calls)
        if self.desk.has_ended:
            self.desk.settle()

    def _go_on(self, seat: Seat) -> None:
        """Begin the next call of a bench, if there is anything for it to do."""
        seat.sent = self._lines_for(seat) if seat.has_room else []
        seat.since = seat.heard = time.monotonic()
        if seat.sent:
            seat.call = seat.bench.begin(seat.sent)
        elif seat.lines:
            seat.call = seat.bench.step()

    def _lines_for(self, seat: Seat) -> list[Assignment]:
        """Some lines for a bench with room: so many that all of these have as many, as a pass of few takes hardly less
        time than one of many."""
        takers = [other for other in self.seats if other.has_room]
        left = self.desk.progress.total - self.desk.progress.done - sum(other.count for other in self.seats)
        share = math.ceil((left + sum(other.count for other in takers)) / len(takers))
        lines: list[Assignment] = []
        nbytes = 0
        while len(lines) < min(MOST_SENT, share - seat.count) and nbytes < MOST_SENT_BYTES:
            one = self._next(seat)
            if one is None:
                break
            lines.append(one)
            nbytes += one.line.nbytes
        return lines

    def _next(self, seat: Seat) -> Assignment | None:
        """The first line that nobody has, as far as a bench has memory for it."""
        is_roomiest = seat.ceiling == max(other.ceiling for other in self.seats)
        fitting = [number for number, too_small in self._returned.items() if is_roomiest or too_small < seat.ceiling]
        if fitting:
            number = min(fitting)
            del self._returned[number]
            return replace(self.desk.again(number), last_resort=is_roomiest)
        while (one := self.desk.next()) is None and self.desk.has_ended:
            self.desk.settle()
        return None if one is None else replace(one, last_resort=is_roomiest)

    def _hear_some(self, calls: dict[Call, Seat]) -> None:
        """Take in what calls came to, waiting until there is one or it is time to look for silent benches."""
        done, _ = wait(calls, LOOK_SECONDS, FIRST_COMPLETED)
        looked, self._looked = self._looked, time.monotonic()
        if self._looked - looked > AWAY_SECONDS:
            for seat in calls.values():
                seat.heard = self._looked
        for call, seat in calls.items():
            if call in done:
                self._hear(seat, call)
            elif (silence := seat.silence) > seat.limit(self.patience):
                self._lose(seat, f"silent for {silence:.0f} s")

    def _hear(self, seat: Seat, call: Call) -> None:
        try:
            told: Begun | Passed = call.result()
        except Exception as error:  # whatever it was, others may do without that bench
            self._lose(seat, InternalError.of(error).problem.rstrip("."))
            return
        seat.call = None
        if isinstance(told, Begun):
            seat.lines.update(one.line.number for one in seat.sent[: told.taken])
            self._returned.update((one.line.number, 0) for one in seat.sent[told.taken :])
            seat.sent = []
            self._note(seat, told.standing)
            self.desk.progress.unfinished = self._unfinished
        else:
            seat.longest = max(seat.longest or 0.0, time.monotonic() - seat.since)
            seat.lines.difference_update(result.number for result in told.finished)
            self._note(seat, told.standing)
            self.desk.take(told, self._unfinished)
            self.watcher.passed()

    def _note(self, seat: Seat, standing: Standing) -> None:
        seat.has_room, seat.unfinished = standing.has_room, standing.unfinished
        seat.lines.difference_update(standing.handed_back)
        self._returned.update((number, seat.ceiling) for number in standing.handed_back)

    def _lose(self, seat: Seat, reason: str) -> None:
        """Do without a bench from now on: others get its lines."""
        seat.bench.close()
        self.seats.remove(seat)
        self._lost[seat.bench.name] = reason
        self._returned.update((number, 0) for number in (*seat.lines, *(one.line.number for one in seat.sent)))
        self.watcher.lost(seat.bench.name, reason)
        if not self.seats:
            lost = "; ".join(f"{name} ({why})" for name, why in self._lost.items())
            raise ClusterError(
                f"No machine is left to answer the other requests: {lost}.",
                "See to them, and give the same command again: it goes on from here.",
            )

    @property
    def _unfinished(self) -> list[Unfinished]:
        return [one for seat in self.seats for one in seat.unfinished]
