"""What a client asks for: the bodies of OpenAI's requests, checked.

Unknown fields are ignored. Those that OpenAI's API has and this one lacks are errors, unless they have values that
change nothing; so are values outside OpenAI's ranges. Null means: not given.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from penstock.errors import UsageError
from penstock.openai_api.errors import RequestError
from penstock.openai_api.fields import (
    LEAST_SEED,
    MOST_CHOICES,
    MOST_PROMPTS,
    MOST_SEED,
    WHOLE,
    Content,
    Prompt,
    Stop,
    only,
)
from penstock.sampling import MOST_LOGPROBS, MOST_WHOLE, SamplingParams
from penstock.strict_json import listed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

STRICT = ConfigDict(strict=True, extra="ignore")


class StreamOptions(BaseModel):
    """How to stream. `continuous_usage_stats` is not OpenAI's: every chunk then tells what was used so far."""

    model_config = STRICT

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Message(BaseModel):
    """One message of a conversation."""

    model_config = STRICT

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None
    tool_calls: only([]) = None  # type: ignore[valid-type]
    function_call: only() = None  # type: ignore[valid-type]
    audio: only() = None  # type: ignore[valid-type]

    def plain(self) -> dict[str, str]:
        """As chat templates expect it: text in one string, and `developer` under its older name."""
        content = self.content if isinstance(self.content, str) else "".join(part["text"] for part in self.content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content} | ({"name": self.name} if self.name else {})


class GenerationRequest(BaseModel):
    """What both kinds of completion have in common. `top_k`, `min_p`, `repetition_penalty` and `ignore_eos` are not
    OpenAI's."""

    model_config = STRICT

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MOST_WHOLE), WHOLE] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    seed: Annotated[int, Field(ge=LEAST_SEED, le=MOST_SEED), WHOLE] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST_WHOLE), WHOLE] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES), WHOLE] | None = None
    stop: Stop = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: only(0) = None  # type: ignore[valid-type]
    frequency_penalty: only(0) = None  # type: ignore[valid-type]
    logit_bias: only({}) = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _check(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "is for streams: set stream=true as well")
        return self

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def top_logprobs_wanted(self) -> int | None:
        """How many of the likeliest tokens to tell at each position; None tells no probability at all."""
        raise NotImplementedError

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens

    def params(self, default_seed: int | None = None) -> SamplingParams:
        """How to draw. Negative seeds count from the top of the 64-bit range."""
        seed = default_seed if self.seed is None else self.seed % 2**64
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=seed,
            max_tokens=self.token_limit,
            stop=self.stop or (),
            ignore_eos=bool(self.ignore_eos),
            logprobs=self.top_logprobs_wanted,
        )

    def check_model(self, *names: str) -> None:
        """Raise RequestError unless the request names one of these models, or none at all."""
        if self.model is not None and self.model not in names:
            raise RequestError(
                f"The model {self.model[:200]!r} is not served here.",
                f"Ask for {listed(names)}, or leave `model` out.",
                status=404,
                param="model",
                code="model_not_found",
            )

    def adapter(self, model: str, adapters: Collection[str]) -> str | None:
        """The adapter that the request names; None where it names the model itself, or nothing. Raises RequestError
        for any other name."""
        self.check_model(model, *adapters)
        return self.model if self.model in adapters else None


class ChatCompletionRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_WHOLE), WHOLE] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS), WHOLE] | None = None
    tools: only([]) = None  # type: ignore[valid-type]
    tool_choice: only("none", "auto") = None  # type: ignore[valid-type]
    functions: only([]) = None  # type: ignore[valid-type]
    function_call: only("none", "auto") = None  # type: ignore[valid-type]
    response_format: only({"type": "text"}) = None  # type: ignore[valid-type]
    modalities: only(["text"]) = None  # type: ignore[valid-type]
    audio: only() = None  # type: ignore[valid-type]
    prediction: only() = None  # type: ignore[valid-type]
    web_search_options: only() = None  # type: ignore[valid-type]
    reasoning_effort: only("none") = None  # type: ignore[valid-type]
    store: only(False) = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _check_chat(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "needs logprobs=true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise PydanticCustomError("max_tokens", "contradicts max_completion_tokens: give one of them")
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def top_logprobs_wanted(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    prompt: Prompt
    logprobs: Annotated[int, Field(ge=0, le=5), WHOLE] | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES), WHOLE] | None = None
    echo: only(False) = None  # type: ignore[valid-type]
    suffix: only("") = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _check_completion(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.choices:
            raise PydanticCustomError("best_of", "is not supported, unless it equals n: leave it out")
        if len(self.prompts) * self.choices > MOST_PROMPTS:
            raise PydanticCustomError("n", f"is too high: prompts times n are at most {MOST_PROMPTS}")
        return self

    @property
    def top_logprobs_wanted(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One or several, texts or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt


URLS: Mapping[str, type[ChatCompletionRequest] | type[CompletionRequest]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
}


def parse(url: str, body: Any) -> ChatCompletionRequest | CompletionRequest:
    """The request that a JSON body to this URL's path makes. Raises RequestError, with 404 for another URL."""
    if url not in URLS:
        raise RequestError(
            f"{url[:200]!r} is not served here.", f"Use one of: {', '.join(URLS)}.", status=404, param="url"
        )
    if not isinstance(body, dict):
        raise RequestError("The body is not a JSON object.", 'Send one like {"messages": [...]}.')
    try:
        request = URLS[url].model_validate(body)
        request.params()
    except ValidationError as error:
        raise request_error(error) from None
    except UsageError as error:
        raise RequestError.of(error) from None
    return request


def request_error(error: ValidationError) -> RequestError:
    """The first thing that is wrong, by the name that the client gave it."""
    first = error.errors(include_url=False, include_context=False)[0]
    kind, place = first["type"], first["loc"] or (first["type"],)
    param = str(place[0]) + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place[1:])
    message = first["msg"]
    if kind == "missing":
        return RequestError(f"{param} is missing.", param=param, code="missing_required_parameter")
    if kind == "unsupported":
        return RequestError(f"{param} {message}.", param=param, code="unsupported_parameter")
    if message[0].islower():
        return RequestError(f"{param} {message}.", param=param, code="invalid_value")
    value = "" if isinstance(first["input"], (dict, list)) else f"={json.dumps(first['input'])[:100]}"
    return RequestError(f"{param}{value}: {message}.", param=param, code="invalid_value")
