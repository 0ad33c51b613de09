"""What the records of a session mean: the latest turn, and where the keys and values of its first positions lie.

model   which model and KV type; the first record
turn    a prompt: the conversation, all tokens, how to draw and how much, and how many positions stay
pass    what a pass brought: tokens from number `first` on, why the answer ended, and as payload keys and values from
        position `at` on
told    the answer has been shown

A record says what is so from then on, whatever was there before: one that is written twice does no harm. Nothing that
it says is believed before it was checked: types, ranges, tokens against the vocabulary, counts against each other.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from penstock.errors import UsageError
from penstock.sampling import SamplingParams, SamplingRule
from penstock.sessions.fields import MOST, RecordFields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from penstock.engine.sequence import Sequence
    from penstock.sessions.log import Record, SessionLog
    from penstock.text.tokenizer import Tokenizer

    Message = dict[str, Any]

MODEL, TURN, PASS, TOLD = "mod ", "turn", "pass", "told"
ENDS = ("stop", "length", "cut")
LATER = ("frequency_penalty", "presence_penalty", "logit_bias", "schema", "regex", "grammar")
"""Parameters that are written only where they are set: before there were any, no session had them."""
UNSET = SamplingParams()
SETTLED = (*(f.name for f in fields(SamplingRule)), "seed")
"""Parameters that no turn leaves open."""


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
    def begun(cls, messages: list[Message] | None, asked: str, sequence: Sequence, params: SamplingParams) -> Turn:
        """A turn whose first pass is to come; the sequence knows what `params` leave open."""
        sampler = sequence.sampler
        settled = SamplingParams(
            **asdict(sampler.rule),
            seed=sampler.seed,
            max_tokens=params.max_tokens,
            stop=params.stops,
            ignore_eos=params.ignore_eos,
            logprobs=params.logprobs,
            schema=params.schema,
            regex=params.regex,
            grammar=params.grammar,
        )
        return cls(messages, asked, sequence.prompt, settled, sequence.max_tokens)

    @classmethod
    def answered(cls, messages: list[Message], prompt: list[int], text: str, later: Turn) -> Turn:
        """An earlier turn of the conversation that `later` was of: `prompt` is all of its tokens, its answer's too."""
        return cls(messages, messages[-1]["content"], prompt, later.params, later.limit, end="stop", text=text)

    @property
    def system(self) -> str | None:
        """What the model is told before the conversation."""
        first = self.messages[0] if self.messages else {"role": "user"}
        return str(first["content"]) if first["role"] == "system" else None

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
            "params": {
                name: value
                for name, value in asdict(self.params).items()
                if name not in LATER or value != getattr(UNSET, name)
            },
            "limit": self.limit,
            "cached": cached,
        }

    @classmethod
    def from_json(cls, meta: object, vocab_size: int) -> tuple[Turn, int]:
        """The turn, and how many positions are there. Raises ValueError, ArithmeticError, UsageError for what `as_json`
        does not give."""
        said = RecordFields(meta, ("messages", "asked", "prompt", "params", "limit", "cached"))
        prompt, asked = said.tokens("prompt", vocab_size), said.text("asked")
        messages = None if said["messages"] is None else _messages(said.list("messages"))
        if messages is not None and messages[-1]["content"] != asked:
            raise ValueError
        params = _params(said["params"])
        limit = said.whole("limit", 1, min(params.max_tokens or MOST, MOST))
        turn = cls(messages, asked, prompt, params, limit)
        return turn, said.whole("cached", 0, len(prompt) - 1)


def _messages(values: list[object]) -> list[Message]:
    """A conversation up to a question: questions and answers in turn, after a system message or none."""
    said = [RecordFields(value, ("role", "content")) for value in values]
    messages = [{"role": one["role"], "content": one.text("content")} for one in said]
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if len(turns) % 2 == 0 or turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise ValueError
    return messages


def _params(value: object) -> SamplingParams:
    """What SamplingParams checks itself is left to it."""
    if isinstance(value, dict):
        value = {name: getattr(UNSET, name) for name in LATER} | value
    said = RecordFields(value, [f.name for f in fields(SamplingParams)])
    if any(said[name] is None for name in SETTLED):
        raise ValueError
    return SamplingParams(**said.all | {"stop": said.texts("stop"), "ignore_eos": said.flag("ignore_eos")})


@dataclass(slots=True)
class Held:
    """What a log holds."""

    turn: Turn | None = None
    positions: int = 0
    slot_bytes: int = 0
    vocab_size: int = 0
    extents: list[tuple[Record, int]] = field(default_factory=list)
    """Records with keys and values, in order, and how many positions of each count."""

    def take(self, record: Record) -> None:
        """What the next record says. Raises ValueError, ArithmeticError, UsageError for what no session writes."""
        if record.kind == PASS and self.turn is not None:
            self._take_pass(self.turn, record)
            return
        if record.payload_bytes:
            raise ValueError
        if record.kind == TURN:
            self.turn, cached = Turn.from_json(record.meta, self.vocab_size)
            self._keep(cached)
        elif record.kind == TOLD and self.turn is not None:
            RecordFields(record.meta, ())
            self.turn.told = True
        else:
            raise ValueError

    def _take_pass(self, turn: Turn, record: Record) -> None:
        said = RecordFields(record.meta, ("at", "first", "drawn", "end", "text"))
        turn.drawn[said.whole("first", 0, len(turn.drawn)) :] = said.tokens("drawn", self.vocab_size)
        turn.end, turn.text = said["end"], said.text("text")
        if turn.end not in (None, *ENDS) or (turn.end is None and turn.text) or len(turn.drawn) > turn.limit:
            raise ValueError
        self._keep(said.whole("at", 0, self.positions))
        count, rest = divmod(record.payload_bytes, self.slot_bytes)
        if rest or self.positions + count > len(turn.tokens):
            raise ValueError
        self.extents += [(record, count)] * (count > 0)
        self.positions += count

    def _keep(self, positions: int) -> None:
        """Forget the positions past the first so many. Raises ValueError where there are not so many."""
        if positions > self.positions:
            raise ValueError
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


def read_log(log: SessionLog, slot_bytes: int, vocab_size: int, check_model: Callable[[object], None]) -> Held:
    """Go through a log of a model with so many tokens.

    `check_model`: looks at what the first record says; it raises SessionError, and ValueError for nonsense. Raises
    SessionError where the log is damaged or makes no sense.
    """
    held = Held(slot_bytes=slot_bytes, vocab_size=vocab_size)
    first = True
    try:
        for record in log.replay():
            if not first:
                held.take(record)
            elif record.kind == MODEL:
                check_model(record.meta)
            else:
                raise ValueError
            first = False
    except (ValueError, ArithmeticError, RecursionError, UsageError) as error:
        raise log.malformed() from error
    return held
