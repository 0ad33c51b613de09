"""POST /tokenize and /detokenize, in vLLM's form: texts and conversations as token ids, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from penstock.errors import PenstockError
from penstock.openai_api.errors import RequestError
from penstock.openai_api.requests import STRICT, Message, validated
from penstock.openai_api.responses import Body

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.known_model import KnownModel

    Find = Callable[[str | None], KnownModel]
    """The model that a request names; raises RequestError for names that are not served."""


class TokenizeRequest(BaseModel):
    """A text, or the messages of a conversation."""

    model_config = STRICT

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError("prompt", "or messages has to be given, and not both")
        return self


class DetokenizeRequest(BaseModel):
    """Token ids."""

    model_config = STRICT

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, lt=2**32)]]


class Tokens(Body):
    """The answer to POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]


class Text(Body):
    """The answer to POST /detokenize."""

    prompt: str


def tokenize(find: Find, body: Any) -> Tokens:
    """Raises RequestError."""
    request = validated(TokenizeRequest, body, '{"prompt": "..."}')
    model = find(request.model)
    try:
        tokenizer = model.text_side()
        if request.messages is None:
            special = request.add_special_tokens is not False
            ids = tokenizer.encode(request.prompt or "", add_special_tokens=special)
        else:
            messages = [message.plain() for message in request.messages]
            begins = request.add_generation_prompt is not False
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=begins)
    except PenstockError as error:
        raise RequestError.of(error, "prompt" if request.messages is None else "messages") from error
    return Tokens(count=len(ids), max_model_len=model.context, tokens=ids)


def detokenize(find: Find, body: Any) -> Text:
    """With special tokens as they are written; else as `tokenize`."""
    request = validated(DetokenizeRequest, body, '{"tokens": [...]}')
    model = find(request.model)
    try:
        return Text(prompt=model.text_side().decode(request.tokens, skip_special_tokens=False))
    except PenstockError as error:
        raise RequestError.of(error, "tokens") from error
