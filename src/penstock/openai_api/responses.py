"""The shapes of what is answered, for descriptions and for tests; answers themselves are built as plain objects."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema


class Body(BaseModel):
    """An object with the fields that it names and no others."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PromptTokensDetails(Body):
    """Of the prompts' tokens: those whose keys and values were there, in memory or in the prefix cache."""

    cached_tokens: int


class Usage(Body):
    """Tokens of the prompts, each counted once, and of the answers, without stop tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(Body):
    """A token that was likely, and the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the answer, beside the likeliest ones."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Body):
    """One entry a token of the answer."""

    content: list[TokenLogprob]
    refusal: None


class TextLogprobs(Body):
    """Lists with one entry a token of the answer, and before them of the prompt, where it is echoed."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """Null for the first token of a prompt, which follows nothing."""
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Function(Body):
    """A function with its arguments, which are JSON if the model wrote any."""

    name: str
    arguments: str


class Call(Body):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: Function


class AssistantMessage(Body):
    """What the model said, and the functions that it wants called."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[Call] | SkipJsonSchema[None] = Field(default=None, exclude_if=lambda calls: calls is None)


class Choice(Body):
    """What all answers have."""

    index: int
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatChoice(Choice):
    """One answer to a conversation."""

    message: AssistantMessage
    logprobs: ChatLogprobs | None


class TextChoice(Choice):
    """One answer to a prompt; those of the first prompt come first."""

    text: str
    logprobs: TextLogprobs | None


class Completion(Body):
    """What both kinds of completion have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    seed: int
    """With it, the same request gets the same answer."""
    usage: Usage


class ChatCompletion(Completion):
    """The answer to POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextCompletion(Completion):
    """The answer to POST /v1/completions."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class Embedding(Body):
    """A text as a vector: numbers, or the base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Body):
    """Tokens of all texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Body):
    """The answer to POST /v1/embeddings, in the order of its texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Model(Body):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int


class ModelList(Body):
    """All models that are served."""

    object: Literal["list"]
    data: list[Model]


class Health(Body):
    """Whether the server works, and how busy it is."""

    status: Literal["ok", "failed"]
    model: str
    running: int
    queued: int


class ErrorDetail(Body):
    """What is wrong, and with which parameter."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Body):
    """OpenAI's error object."""

    error: ErrorDetail
