"""The body of POST /v1/responses, checked, and the chat that it comes to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from penstock.openai_api.fields import WHOLE, only
from penstock.openai_api.requests import STRICT, ChatCompletionRequest, check_params, validated
from penstock.openai_api.tools import MOST_TOOLS, FunctionSpec, NamedFunction
from penstock.sampling import MOST_WHOLE


def _check_text(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("content", "must be a string or a list of text parts")
    for part in value:
        if not isinstance(part, dict) or part.get("type") not in ("input_text", "output_text"):
            raise PydanticCustomError(
                "part", "has parts other than input_text and output_text, which are not supported"
            )
        if not isinstance(part.get("text"), str):
            raise PydanticCustomError("part", 'must have parts like {"type": "input_text", "text": "..."}')
    return value


PART = {
    "type": "object",
    "properties": {"type": {"enum": ["input_text", "output_text"]}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
Text = Annotated[Any, AfterValidator(_check_text), Field(json_schema_extra={
    "anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": PART}, {"type": "null"}]
})]  # fmt: skip
NEEDED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
}


class InputItem(BaseModel):
    """A message, a call that an earlier answer made, or what that call gave."""

    model_config = {"strict": True, "extra": "ignore"}  # what an answer's item had beside comes back with it

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Text = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Text = None

    @model_validator(mode="after")
    def _check(self) -> InputItem:
        missing = [name for name in NEEDED[self.type] if getattr(self, name) is None]
        if missing:
            raise PydanticCustomError("item", f"is a {self.type} without {missing[0]}")
        return self


def _items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class FlatTool(FunctionSpec):
    """A function that an answer may call."""

    type: Literal["function"]


class FlatChoice(NamedFunction):
    """Which function to call."""

    type: Literal["function"]


class TextFormat(BaseModel):
    """What the answer has to be: text, any JSON object, or JSON of a schema."""

    model_config = STRICT

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> TextFormat:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise PydanticCustomError("schema", "has a schema if its type is json_schema, and else none")
        return self


class TextOptions(BaseModel):
    """About the text of the answer."""

    model_config = STRICT

    format: TextFormat | None = None
    verbosity: only("medium") = None  # type: ignore[valid-type]


class ResponsesRequest(BaseModel):
    """The body of POST /v1/responses. Nothing is stored: the whole conversation comes with each request."""

    model_config = STRICT

    model: str | None = None
    input: Annotated[
        list[InputItem],
        Field(min_length=1, fail_fast=True),
        BeforeValidator(_items, json_schema_input_type=str | list[InputItem]),
    ]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=MOST_WHOLE), WHOLE] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    tools: Annotated[list[FlatTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    stream: bool | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: only(False) = None  # type: ignore[valid-type]
    previous_response_id: only() = None  # type: ignore[valid-type]
    conversation: only() = None  # type: ignore[valid-type]
    background: only(False) = None  # type: ignore[valid-type]
    include: only([]) = None  # type: ignore[valid-type]
    reasoning: only() = None  # type: ignore[valid-type]
    prompt: only() = None  # type: ignore[valid-type]
    truncation: only("disabled") = None  # type: ignore[valid-type]
    max_tool_calls: only() = None  # type: ignore[valid-type]
    top_logprobs: only(0) = None  # type: ignore[valid-type]
    stream_options: only() = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _check(self) -> ResponsesRequest:
        form = self.text and self.text.format
        if self.tools and self.tool_choice != "none" and form and form.type != "text":
            raise PydanticCustomError("text", ".format other than text is not supported together with tools")
        return self

    def chat(self) -> ChatCompletionRequest:
        """The same request as one of a chat. Raises RequestError."""
        chat = self.model_dump(include={
            "model", "temperature", "top_p", "parallel_tool_calls", "user", "metadata", "stream"
        })  # fmt: skip
        chat["messages"] = self._messages()
        chat["max_completion_tokens"] = self.max_output_tokens
        if self.tools is not None:
            chat["tools"] = [{"type": "function", "function": tool.model_dump(exclude={"type"})} for tool in self.tools]
        choice = self.tool_choice
        named = isinstance(choice, FlatChoice)
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.name}} if named else choice  # type: ignore[union-attr]
        form = self.text and self.text.format
        if form:
            schema = form.model_dump(by_alias=True, exclude={"type"})
            chat["response_format"] = {"type": form.type} | (
                {"json_schema": schema} if form.schema_ is not None else {}
            )
        return validated(ChatCompletionRequest, chat, '{"messages": [...]}')

    def _messages(self) -> list[dict[str, Any]]:
        """A text and the calls behind it are one message of the assistant."""
        messages: list[dict[str, Any]] = []
        if self.instructions is not None:
            messages.append({"role": "system", "content": self.instructions})
        for item in self.input:
            if item.type == "message":
                messages.append({"role": item.role, "content": _plain(item.content)})
            elif item.type == "function_call_output":
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _plain(item.output)})
            else:
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": None})
                function = {"name": item.name, "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                messages[-1].setdefault("tool_calls", []).append(call)
        return messages


def _plain(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def parse_responses(body: Any) -> tuple[ResponsesRequest, ChatCompletionRequest]:
    """The request that a JSON body makes, and its chat. Raises RequestError."""
    request = validated(ResponsesRequest, body, '{"input": "..."}')
    chat = request.chat()
    check_params(chat)
    return request, chat
