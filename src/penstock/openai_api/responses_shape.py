"""The shape of what POST /v1/responses answers, for descriptions and for tests, as responses.py has that of others."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from penstock.openai_api.responses import Body
from penstock.openai_api.responses_request import FlatChoice


class OutputText(Body):
    """The text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)]
    logprobs: Annotated[list[Any], Field(max_length=0)]


class OutputMessage(Body):
    """What the model said."""

    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: Literal["completed", "incomplete", "in_progress"]
    content: list[OutputText]


class OutputCall(Body):
    """A call that the model asks for; the arguments are JSON if it wrote any."""

    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["completed", "incomplete", "in_progress"]


class AnsweredTool(Body):
    """A tool of the request."""

    type: Literal["function"]
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


class AnsweredText(Body):
    """What the answer had to be, as the request says it."""

    format: dict[str, Any]


class Reason(Body):
    """Why an answer is not complete."""

    reason: Literal["max_output_tokens"]


class Failure(Body):
    """Why there is no answer."""

    code: Literal["server_error"]
    message: str


class NoReasoning(Body):
    """Nothing of that kind is told."""

    effort: None
    summary: None


class InputDetails(Body):
    """Of the prompt's tokens: those whose keys and values were there."""

    cached_tokens: int
    cache_write_tokens: Literal[0]


class OutputDetails(Body):
    """Of the answer's tokens."""

    reasoning_tokens: Literal[0]


class ResponsesUsage(Body):
    """Tokens of the prompt, and of the answer without the stop token."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseObject(Body):
    """The answer to POST /v1/responses; what the request left out is null, or what it means then."""

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["completed", "incomplete", "in_progress", "failed"]
    error: Failure | None
    incomplete_details: Reason | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    output: list[Annotated[OutputMessage | OutputCall, Field(discriminator="type")]]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: NoReasoning
    store: Literal[False]
    temperature: float | None
    text: AnsweredText
    tool_choice: Literal["none", "auto", "required"] | FlatChoice
    tools: list[AnsweredTool]
    top_p: float | None
    truncation: Literal["disabled"]
    usage: ResponsesUsage | None
    user: str | None
