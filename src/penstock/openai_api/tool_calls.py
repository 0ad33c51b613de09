"""The text of an answer becomes what it says and the calls of functions that it asks for, as it comes.

What might become a call is held back. A call is told as soon as its name is known, and then its arguments piece by
piece, as the model writes them; what turns out to be no call is text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from penstock.openai_api.tool_formats import ToolFormat

HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*')
MOST_HEAD = 1024
"""Characters within which a call's name has to come to be told before the call has ended: what is looked at again."""
BETWEEN = " \t\r\n,;[]}"
"""What may stand between the arguments of a call and the next one."""
SURROGATE = re.compile("[\ud800-\udfff]")


class Said(NamedTuple):
    """Text of the answer."""

    text: str


class Called(NamedTuple):
    """A call begins."""

    call: int
    name: str


class Argued(NamedTuple):
    """More of a call's arguments, which together are JSON."""

    call: int
    text: str


Event = Said | Called | Argued


@dataclass(slots=True)
class ToolCall:
    """One call."""

    name: str
    arguments: str


class ToolCalls:
    """Of one answer: `push` its text, then `finish`."""

    def __init__(self, form: ToolFormat, names: Iterable[str]) -> None:
        """`names`: of the functions that there are; a call of any other is text."""
        self._form = form
        self._names = frozenset(names)
        self._markers = form.markers()
        self._text = ""
        self._scan: _Value | None = None
        """Arguments on their way."""
        self._object = _Value()
        """What is held back since it may be a call."""
        self._among_calls = not form.opening
        """Whether a call may come next."""
        self.calls: list[ToolCall] = []
        self.said = ""

    def push(self, text: str) -> list[Event]:
        """What more text tells."""
        self._text += text
        events: list[Event] = []
        while True:
            before = len(self._text), self._scan, self._among_calls
            events += self._noted(self._step(ended=False))
            if (len(self._text), self._scan, self._among_calls) == before or not self._text:
                return events

    def finish(self) -> list[Event]:
        """The answer has ended: what was held back is text, or the end of arguments that were cut."""
        events = self._noted(self._step(ended=True))
        rest, self._text = self._text, ""
        return events + self._noted([Said(rest)])

    def _noted(self, events: list[Event]) -> list[Event]:
        for event in events:
            if isinstance(event, Said):
                self.said += event.text
            elif isinstance(event, Called):
                self.calls.append(ToolCall(event.name, ""))
            else:
                self.calls[event.call].arguments += event.text
        return [event for event in events if not isinstance(event, Said) or event.text]

    def _step(self, *, ended: bool) -> list[Event]:
        if self._scan is not None:
            return self._argue(ended)
        return self._call(ended) if self._among_calls else self._say(ended)

    def _say(self, ended: bool) -> list[Event]:
        """Text up to what begins calls; the beginning of that is held back."""
        places = [(place, marker) for marker in self._markers if (place := self._text.find(marker)) >= 0]
        if places:
            place, marker = min(places)
            said, self._text = self._text[:place], self._text[place + len(marker) :]
            self._among_calls = True
            return [Said(said.rstrip())]
        held = 0 if ended else max(_overlap(self._text, marker) for marker in self._markers)
        cut = len(self._text) - held
        cut = cut if ended else len(self._text[:cut].rstrip())  # white space before a call is left out
        said, self._text = self._text[:cut], self._text[cut:]
        return [Said(said)]

    def _call(self, ended: bool) -> list[Event]:
        """The beginning of a call, or what there is in place of it."""
        text = self._text.lstrip(" \t\r\n[")
        if self.calls or self._form.opening:
            text = self._text = self._text.lstrip(BETWEEN)
        for marker in self._markers:
            if text.startswith(marker):
                self._text = text[len(marker) :]
                return []
            if text and not ended and marker.startswith(text):
                return []
        if not text:
            return []
        if not text.startswith("{"):
            self._among_calls = False
            return self._say(ended)
        if head := HEAD.match(text, 0, MOST_HEAD):
            name = _string(head[1])
            if name in self._names:
                self._text, self._scan, self._object = text[head.end() :], _Value(), _Value()
                return [Called(len(self.calls), name), *self._argue(ended, len(self.calls))]
        end = self._object.take(text)
        if end is None and not ended:
            return []
        return self._whole(text, len(text) if end is None else end)

    def _whole(self, text: str, end: int) -> list[Event]:
        """An object whose keys come in another order, or that is no call at all."""
        written, self._text, self._object = text[:end], text[end:], _Value()
        try:
            value = json.loads(written)
            name, told = value["name"], _as_json(value.get("arguments", value.get("parameters", {})))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            name, told = None, ""
        if not isinstance(name, str) or name not in self._names:
            self._among_calls = False
            return [Said(written)]
        index = len(self.calls)
        return [Called(index, name), Argued(index, told)]

    def _argue(self, ended: bool, index: int | None = None) -> list[Event]:
        """More of a call's arguments; all of them at once where they are a string."""
        if (scan := self._scan) is None:
            return []
        index = len(self.calls) - 1 if index is None else index
        if not scan.first:
            self._text = self._text.lstrip()
        end = scan.take(self._text)
        if end is None and scan.first == '"' and not ended:
            return []
        told, self._text = (self._text, "") if end is None else (self._text[:end], self._text[end:])
        scan.taken = 0
        if end is not None:
            self._scan = None
            told = _unquoted(told) if scan.first == '"' else told
        return [Argued(index, told)] if told else []


class _Value:
    """Looks for the end of a JSON value that comes bit by bit."""

    def __init__(self) -> None:
        self.first = ""
        """Its first character."""
        self.taken = 0
        """Characters of its text that were looked at; less where some of these are not there any more."""
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def take(self, text: str) -> int | None:
        """Where the value ends within its text, of which the first `taken` are known; None where it goes on."""
        self.first = self.first or text[:1]
        begin, self.taken = self.taken, len(text)
        for place, character in enumerate(text[begin:], begin):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
                    if not self._depth:
                        return place + 1
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return place + (self._depth == 0)
            elif not self._depth and character == ",":
                return place
        return None


def _overlap(text: str, marker: str) -> int:
    """How much of the text's end may be the beginning of a marker."""
    return next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if marker.startswith(text[-n:])), 0)


def _as_json(arguments: Any) -> str:
    """Arguments as they are told: some models write their JSON as a string."""
    told = (
        arguments if isinstance(arguments, str) and _is_json(arguments) else json.dumps(arguments, ensure_ascii=False)
    )
    return SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", told)  # which UTF-8 does not have


def _unquoted(written: str) -> str:
    """The same of arguments that were written as a string."""
    try:
        return _as_json(json.loads(written))
    except ValueError:
        return written


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _string(written: str) -> str | None:
    try:
        value = json.loads(written)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
