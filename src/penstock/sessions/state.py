"""What the records of a session mean: the latest turn, and where the keys and values of its first positions lie.

model   which model and KV type; the first record
turn    a prompt: the conversation, all tokens, how to draw and how much, and how many positions stay
pass    what a pass brought: tokens from number `first` on, why the answer ended, and as payload keys and values from
        position `at` on
told    the answer has been shown

A record says what is so from then on, whatever was there before: one that is written twice does no harm.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from penstock.errors import UsageError
from penstock.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from penstock.engine.generation import Generation
    from penstock.sessions.log import Record, SessionLog
    from penstock.text.tokenizer import Tokenizer

    Message = dict[str, Any]

MODEL, TURN, PASS, TOLD = "mod ", "turn", "pass", "told"


@dataclass(slots=True)
class Turn:
    """A prompt and its answer."""

    messages: list[Message] | None
    """The conversation up to the question; None where a text goes on."""
    asked: str
    """The question, or what was added to the text."""
    prompt: list[int]
    """All tokens before the answer's."""
    params: SamplingParams
    """With nothing left open but max_tokens."""
    limit: int
    """How many tokens the answer may have, by all that limited it as it began."""
    drawn: list[int] = field(default_factory=list)
    end: str | None = None
    """Why the answer ended: a finish reason, or "cut" where somebody stopped it; None while it goes on."""
    text: str = ""
    """The answer, once it has ended."""
    told: bool = False
    """Whether it has been shown as a whole."""

    @classmethod
    def begun(cls, messages: list[Message] | None, asked: str, generation: Generation, params: SamplingParams) -> Turn:
        """A turn whose first pass is to come; the generation knows what `params` leave open."""
        sampler = generation.sampler
        settled = SamplingParams(
            **asdict(sampler.rule),
            seed=sampler.seed,
            max_tokens=params.max_tokens,
            stop=params.stops,
            ignore_eos=params.ignore_eos,
            logprobs=params.logprobs,
        )
        return cls(messages, asked, generation.prompt, settled, generation.max_tokens)

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.drawn

    @property
    def unfinished(self) -> bool:
        return self.end in (None, "cut")

    def answer(self, tokenizer: Tokenizer | None) -> str:
        """The answer as far as it has come."""
        if self.end is not None or tokenizer is None:
            return self.text
        return tokenizer.decode(self.drawn)

    def as_json(self, cached: int) -> dict[str, Any]:
        """What a record says of a turn that begins, `cached` positions of which are there."""
        return {
            "messages": self.messages,
            "asked": self.asked,
            "prompt": self.prompt,
            "params": asdict(self.params),
            "limit": self.limit,
            "cached": cached,
        }

    @classmethod
    def from_json(cls, meta: Mapping[str, Any]) -> Turn:
        """Raises KeyError, TypeError, UsageError for what `as_json` does not give."""
        params = SamplingParams(**{**meta["params"], "stop": tuple(meta["params"]["stop"])})
        return cls(meta["messages"], meta["asked"], list(map(int, meta["prompt"])), params, int(meta["limit"]))


@dataclass(slots=True)
class Held:
    """What a log holds."""

    turn: Turn | None = None
    positions: int = 0
    slot_bytes: int = 0
    extents: list[tuple[Record, int]] = field(default_factory=list)
    """Records with keys and values, in order, and how many positions of each count."""

    def keep(self, positions: int) -> None:
        """Forget the positions past the first so many."""
        while self.positions > positions:
            record, count = self.extents.pop()
            drop = min(count, self.positions - positions)
            self.positions -= drop
            if count > drop:
                self.extents.append((record, count - drop))

    def slots(self, log: SessionLog) -> Iterator[bytes]:
        """The keys and values of each position. Raises SessionError where a payload is damaged."""
        for record, count in self.extents:
            for index, data in enumerate(log.payload(record, self.slot_bytes)):
                if index < count:
                    yield data


def read_log(log: SessionLog, slot_bytes: int, check_model: Callable[[dict[str, Any]], None]) -> Held:
    """Go through a log. Raises SessionError where it is damaged or makes no sense, and what `check_model` does."""
    held = Held(slot_bytes=slot_bytes)
    first = True
    try:
        for record in log.replay():
            if first:
                check_model(record.meta if record.kind == MODEL else {})
            else:
                _take(held, record)
            first = False
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise log.malformed() from error
    return held


def _take(held: Held, record: Record) -> None:
    """Raises KeyError, TypeError, ValueError, UsageError for what no session writes."""
    if record.kind == TURN:
        held.turn = Turn.from_json(record.meta)
        held.keep(record.meta["cached"])
    elif record.kind == PASS and held.turn is not None:
        turn, meta = held.turn, record.meta
        if not 0 <= meta["first"] <= len(turn.drawn):
            raise ValueError
        turn.drawn[meta["first"] :] = map(int, meta["drawn"])
        turn.end, turn.text = meta["end"], meta["text"]
        held.keep(meta["at"])
        count = record.payload_bytes // held.slot_bytes
        if held.positions != meta["at"] or count * held.slot_bytes != record.payload_bytes:
            raise ValueError
        held.extents += [(record, count)] * (count > 0)
        held.positions += count
        if held.positions > len(turn.tokens):
            raise ValueError
    elif record.kind == TOLD and held.turn is not None:
        held.turn.told = True
    else:
        raise ValueError
