"""What a client asks for: the bodies of OpenAI's requests, checked.

Unknown fields are errors, so that none is left out in silence; so are those that OpenAI's API has and this one lacks,
unless they have values that change nothing; and values outside OpenAI's ranges. Null means: not given.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from penstock.errors import UsageError
from penstock.grammars.grammar import ANY_OBJECT
from penstock.openai_api.errors import RequestError
from penstock.openai_api.fields import (
    LEAST_SEED,
    MOST_CHOICES,
    MOST_PROMPTS,
    MOST_SEED,
    WHOLE,
    Content,
    LogitBias,
    Prompt,
    Stop,
    only,
)
from penstock.openai_api.tools import CalledTool, Choice, NamedTool, Tools
from penstock.sampling import MOST_LOGPROBS, MOST_WHOLE, SamplingParams
from penstock.strict_json import listed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

Body = TypeVar("Body", bound=BaseModel)
STRICT = ConfigDict(strict=True, extra="forbid")


class StreamOptions(BaseModel):
    """How to stream. `continuous_usage_stats` is not OpenAI's: every chunk then tells what was used so far."""

    model_config = STRICT

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: only(False) = None  # type: ignore[valid-type]


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(strict=True, extra="ignore")  # what an answer had beside its text comes back with it

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: list[CalledTool] | None = None
    content: Annotated[Content | None, Field(validate_default=True)] = None
    name: str | None = None
    tool_call_id: str | None = None
    function_call: only() = None  # type: ignore[valid-type]
    audio: only() = None  # type: ignore[valid-type]

    @field_validator("tool_calls")
    @classmethod
    def _check_calls(cls, value: list[CalledTool] | None, info: ValidationInfo) -> list[CalledTool] | None:
        if value and info.data.get("role") != "assistant":
            raise PydanticCustomError("tool_calls", "is for messages of the assistant")
        return value

    @field_validator("content")
    @classmethod
    def _check_content(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and not info.data.get("tool_calls"):
            raise PydanticCustomError("content", "must be a string or a list of text parts")
        return value

    def plain(self) -> dict[str, Any]:
        """As chat templates expect it: text in one string, and `developer` under its older name."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            message["tool_calls"] = [call.plain() for call in self.tool_calls]
        more = {"name": self.name, "tool_call_id": self.tool_call_id}
        return message | {key: value for key, value in more.items() if value}


class JsonSchema(BaseModel):
    """A schema with a name; it is held to whether it is `strict` or not."""

    model_config = ConfigDict(strict=True, extra="forbid", populate_by_name=True)

    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What an answer has to be: text, any JSON object, or JSON of a schema."""

    model_config = STRICT

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise PydanticCustomError("json_schema", "has a json_schema if its type is json_schema, and else none")
        return self

    def form(self) -> dict[str, Any]:
        """As SamplingParams takes it."""
        if self.type == "text":
            return {}
        return {"schema": self.json_schema.schema_ if self.json_schema else ANY_OBJECT}


class StructuredOutputs(BaseModel):
    """As vLLM has it: one of these."""

    model_config = ConfigDict(strict=True, extra="forbid", populate_by_name=True)

    json_: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _check(self) -> StructuredOutputs:
        if len(self.model_fields_set) != 1:
            raise PydanticCustomError("structured", "has one of json, regex, choice and grammar")
        return self

    def form(self) -> dict[str, Any]:
        """As SamplingParams takes it."""
        if self.choice is not None:
            return {"grammar": "start: " + " | ".join(json.dumps(choice) for choice in self.choice)}
        form = {"schema": self.json_, "regex": self.regex, "grammar": self.grammar}
        return {key: value for key, value in form.items() if value is not None}


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
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check(self) -> GenerationRequest:
        if self.structured_outputs is not None and self.form:
            raise PydanticCustomError("response_format", "and structured_outputs are given together")
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "is for streams: set stream=true as well")
        return self

    @property
    def form(self) -> dict[str, Any]:
        """What response_format asks for, as SamplingParams takes it."""
        return {} if self.response_format is None else self.response_format.form()

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
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            seed=seed,
            max_tokens=self.token_limit,
            stop=self.stop or (),
            ignore_eos=bool(self.ignore_eos),
            logprobs=self.top_logprobs_wanted,
            **(self.form if self.structured_outputs is None else self.structured_outputs.form()),
        )

    def adapter(self, model: str, adapters: Collection[str]) -> str | None:
        """The adapter that the request names; None where it names the model itself, or nothing. Raises RequestError
        for any other name."""
        return adapter_named(self.model, model, adapters)


class ChatCompletionRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_WHOLE), WHOLE] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS), WHOLE] | None = None
    tools: Tools | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    functions: only([]) = None  # type: ignore[valid-type]
    function_call: only("none", "auto") = None  # type: ignore[valid-type]
    modalities: only(["text"]) = None  # type: ignore[valid-type]
    audio: only() = None  # type: ignore[valid-type]
    prediction: only() = None  # type: ignore[valid-type]
    web_search_options: only() = None  # type: ignore[valid-type]
    reasoning_effort: only("none") = None  # type: ignore[valid-type]
    verbosity: only("medium") = None  # type: ignore[valid-type]
    moderation: only() = None  # type: ignore[valid-type]
    store: only(False) = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _check_chat(self) -> ChatCompletionRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "needs logprobs=true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise PydanticCustomError("max_tokens", "contradicts max_completion_tokens: give one of them")
        named = [self.tool_choice.function.name] if isinstance(self.tool_choice, NamedTool) else []
        if self.tool_choice == "required" and not self.tools:
            raise PydanticCustomError("tool_choice", "needs tools")
        if not {*named} <= {tool.function.name for tool in self.tools or []}:
            raise PydanticCustomError("tool_choice", "names a function that is not among the tools")
        if self.tools and self.tool_choice != "none" and (self.form or self.structured_outputs is not None):
            raise PydanticCustomError("response_format", "other than text is not supported together with tools")
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
    max_tokens: Annotated[int, Field(ge=0, le=MOST_WHOLE), WHOLE] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5), WHOLE] | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES), WHOLE] | None = None
    echo: bool | None = None
    suffix: str | None = None

    @model_validator(mode="after")
    def _check_completion(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.choices:
            raise PydanticCustomError("best_of", "is not supported, unless it equals n: leave it out")
        if len(self.prompts) * self.choices > MOST_PROMPTS:
            raise PydanticCustomError("n", f"is too high: prompts times n are at most {MOST_PROMPTS}")
        if self.echo and self.stream:
            raise PydanticCustomError("echo", "is not supported in streams: leave stream out")
        if self.suffix and self.echo:
            raise PydanticCustomError("suffix", "is not supported together with echo: leave one of them out")
        if self.suffix and not isinstance(self.prompts[0], str):
            raise PydanticCustomError("suffix", "is for prompts of text, and not of token ids")
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens or None

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


def check_model(wanted: str | None, *names: str) -> None:
    """Raise RequestError unless the model that a request names is one of these; None names none."""
    if wanted is not None and wanted not in names:
        raise RequestError(
            f"The model {wanted[:200]!r} is not served here.",
            f"Ask for {listed(names)}, or leave `model` out.",
            status=404,
            param="model",
            code="model_not_found",
        )


def adapter_named(wanted: str | None, model: str, adapters: Collection[str]) -> str | None:
    """The adapter that a request names; None where it names the model itself, or nothing. Raises RequestError for any
    other name."""
    check_model(wanted, model, *adapters)
    return wanted if wanted in adapters else None


def parse(url: str, body: Any) -> ChatCompletionRequest | CompletionRequest:
    """The request that a JSON body to this URL's path makes. Raises RequestError, with 404 for another URL."""
    if url not in URLS:
        raise RequestError(
            f"{url[:200]!r} is not served here.", f"Use one of: {', '.join(URLS)}.", status=404, param="url"
        )
    request = validated(URLS[url], body, '{"messages": [...]}')
    check_params(request)
    return request


def check_params(request: GenerationRequest) -> None:
    """Raise RequestError for what no sampling can be."""
    try:
        request.params()
    except UsageError as error:
        raise RequestError.of(error) from None


def validated(kind: type[Body], body: Any, like: str) -> Body:
    """A JSON body as what it has to be; `like`: an example. Raises RequestError."""
    if not isinstance(body, dict):
        raise RequestError("The body is not a JSON object.", f"Send one like {like}.")
    return checked(kind, body)


def checked(kind: type[Body], value: Any) -> Body:
    """As `validated`, of any JSON value."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _request_error(error) from None


def _request_error(error: ValidationError) -> RequestError:
    """The first thing that is wrong, by the name that the client gave it."""
    first = error.errors(include_url=False, include_context=False)[0]
    kind, place = first["type"], first["loc"] or (first["type"],)
    # Where a value may be of several kinds, pydantic names the kind in between: "literal['none']", "NamedTool".
    inner = [part for part in place[1:] if isinstance(part, int) or (part.isidentifier() and not part[0].isupper())]
    param = str(place[0]) + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in inner)
    message = first["msg"]
    if kind == "missing":
        return RequestError(f"{param} is missing.", param=param, code="missing_required_parameter")
    if kind == "extra_forbidden":
        return RequestError(f"{param[:200]} is not known here: leave it out.", param=param, code="unknown_parameter")
    if kind == "unsupported":
        return RequestError(f"{param} {message}.", param=param, code="unsupported_parameter")
    if message[0].islower():
        return RequestError(f"{param} {message}.", param=param, code="invalid_value")
    value = "" if isinstance(first["input"], (dict, list)) else f"={json.dumps(first['input'])[:100]}"
    return RequestError(f"{param}{value}: {message}.", param=param, code="invalid_value")
