"""A conversation as it is kept in a file and sent to the page. Whatever is read from either is held to these shapes."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError, from_json

from penstock.openai_api.errors import RequestError
from penstock.openai_api.fields import LEAST_SEED, MOST_SEED

MOST_MESSAGES = 2000
MOST_TEXT = 1 << 17
"""Characters of one message."""
MOST_TOKENS = 1 << 15
"""Token ids that are kept of one answer."""
TITLE_LENGTH, MOST_TITLE = 60, 200

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Title = Annotated[str, Field(min_length=1, max_length=MOST_TITLE)]
Text = Annotated[str, Field(max_length=MOST_TEXT)]
Count = Annotated[int, Field(ge=0)]
State = Literal["running", "done", "length", "stopped", "failed", "cut"]
"""`length`: it reached its limit of tokens. `cut`: the server ended before it did."""


def new_id() -> str:
    return uuid.uuid4().hex


class Shape(BaseModel):
    """An object with the fields that it names and no others."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class ChatSettings(Shape):
    """How to answer in one conversation; None leaves it to the server and the model."""

    model: Annotated[str, Field(max_length=500)] | None = None
    system: Text | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    seed: Annotated[int, Field(ge=LEAST_SEED, le=MOST_SEED)] | None = None
    json_schema: Annotated[str, Field(max_length=1 << 16)] | None = None
    """The text of a JSON schema that answers have to follow."""

    @field_validator("json_schema")
    @classmethod
    def _is_object(cls, text: str | None) -> str | None:
        try:
            if text is None or isinstance(from_json(text), dict):
                return text
        except ValueError as error:
            raise PydanticCustomError("json", "is not JSON: {why}", {"why": str(error)}) from None
        raise PydanticCustomError("json", "is no JSON object")

    def fields(self) -> dict[str, Any]:
        """As those of a request for a chat completion, the system message apart."""
        fields = self.model_dump(exclude={"system", "json_schema"}, exclude_none=True)
        if self.json_schema is not None:
            schema = {"name": "answer", "strict": True, "schema": from_json(self.json_schema)}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        return fields


class Stats(Shape):
    """What an answer took."""

    tokens: Count = 0
    passes: Count = 0
    seconds: Annotated[float, Field(ge=0)] = 0.0
    """From the request to the end."""
    seconds_per_token: Annotated[float, Field(ge=0)] | None = None
    """After those that came first."""


class Message(Shape):
    """One turn. What follows `content` is about answers."""

    id: Id = Field(default_factory=new_id)
    role: Literal["user", "assistant"]
    content: Text = ""
    state: State = "done"
    error: str | None = None
    model: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    token_ids: Annotated[list[Count], Field(max_length=MOST_TOKENS)] = Field(default_factory=list)
    """What was drawn so far: with these and the seed a cut answer goes on as if it had never been."""
    stats: Stats = Field(default_factory=Stats)

    @property
    def resumable(self) -> bool:
        return self.role == "assistant" and bool(self.token_ids) and self.state not in ("done", "running")


class Chat(Shape):
    """One conversation. `version` grows with each change that a person makes, and when an answer ends."""

    format: Literal[1] = 1
    id: Id = Field(default_factory=new_id)
    title: Title = "New chat"
    created: float = Field(default_factory=time.time)
    updated: float = Field(default_factory=time.time)
    version: Annotated[int, Field(ge=1)] = 1
    settings: ChatSettings = Field(default_factory=ChatSettings)
    messages: Annotated[list[Message], Field(max_length=MOST_MESSAGES)] = Field(default_factory=list)

    def message(self, id: str) -> Message | None:
        return next((message for message in self.messages if message.id == id), None)

    def request(self) -> dict[str, Any]:
        """The body of a request for the answer that comes last here. Turns without text are left out."""
        turns: list[dict[str, str]] = []
        if self.settings.system:
            turns.append({"role": "system", "content": self.settings.system})
        for message in self.messages[:-1]:
            if not message.content:
                continue
            if turns and turns[-1]["role"] == message.role:  # templates want turns to take turns
                turns[-1]["content"] += "\n\n" + message.content
            else:
                turns.append({"role": message.role, "content": message.content})
        fields, answer = self.settings.fields(), self.messages[-1]
        if answer.token_ids and answer.model is not None:  # tokens of that model, which alone can go on with them
            fields["model"] = answer.model
        return {**fields, "messages": turns}


class ChatChange(Shape):
    """What to change of a conversation."""

    title: Title | None = None
    settings: ChatSettings | None = None


class Ask(Shape):
    """What to answer: of the messages there are the first `keep`, then `content` where there is any.

    So one shape asks something new, asks a question again in other words, and has the last one answered anew.
    `resume` goes on with the last answer instead, which was cut, stopped, or at its limit.
    """

    keep: Count = 0
    content: Annotated[str, Field(min_length=1, max_length=MOST_TEXT)] | None = None
    resume: bool = False

    def apply(self, chat: Chat) -> Message:
        """Bring a conversation to where the answer begins, and return that, the last message. Raises RequestError."""
        if self.resume:
            return self._resumed(chat)
        if self.keep > len(chat.messages):
            raise RequestError(f"The conversation has {len(chat.messages)} messages.", param="keep")
        del chat.messages[self.keep :]
        if self.content is not None:
            chat.messages.append(Message(role="user", content=self.content))
        if not chat.messages or chat.messages[-1].role != "user":
            raise RequestError("There is no question to answer.", "Send content.", param="content")
        if len(chat.messages) >= MOST_MESSAGES:
            raise RequestError(
                f"A conversation has at most {MOST_MESSAGES} messages.", "Begin a new one.", param="content"
            )
        if len(chat.messages) == 1 and chat.title == Chat.model_fields["title"].default:
            chat.title = title_of(chat.messages[0].content)
        chat.messages.append(Message(role="assistant", state="running"))
        return chat.messages[-1]

    def _resumed(self, chat: Chat) -> Message:
        last = chat.messages[-1] if chat.messages else None
        if last is None or not (last.resumable or (last.token_ids and last.state == "running")):
            raise RequestError("There is no unfinished answer to go on with.", "Ask anew.", param="resume")
        return last


def title_of(text: str) -> str:
    """A name for the conversation that begins so."""
    line = " ".join(text[:1000].split())
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1].rstrip() + "…"
