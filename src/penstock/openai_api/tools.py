"""Functions that an answer may call: what a request says of them, and what comes of it for prompt and answer."""

from __future__ import annotations

import json
import secrets
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from penstock.openai_api.errors import RequestError
from penstock.openai_api.tool_calls import ToolCalls
from penstock.openai_api.tool_formats import ToolFormat, call_grammar, tool_format

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from penstock.openai_api.tool_calls import ToolCall
    from penstock.text.tokenizer import Tokenizer

STRICT = ConfigDict(strict=True, extra="forbid")
MOST_TOOLS = 128
NAME = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")


class FunctionSpec(BaseModel):
    """A function: its name, what it is for, and the JSON Schema of its arguments."""

    model_config = STRICT

    name: Annotated[str, NAME]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool, which is a function."""

    model_config = STRICT

    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(BaseModel):
    """Which function to call."""

    model_config = STRICT

    name: str


class NamedTool(BaseModel):
    """Which tool to call."""

    model_config = STRICT

    type: Literal["function"]
    function: NamedFunction


class CalledFunction(BaseModel):
    """What an earlier answer called; the arguments are JSON."""

    model_config = STRICT

    name: str
    arguments: str


class CalledTool(BaseModel):
    """A call of an earlier answer."""

    model_config = ConfigDict(strict=True, extra="ignore")

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction

    def plain(self) -> dict[str, Any]:
        """As chat templates expect it: arguments as what their JSON stands for."""
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = self.function.arguments
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


def _distinct(tools: list[Tool]) -> list[Tool]:
    if len({tool.function.name for tool in tools}) < len(tools):
        raise PydanticCustomError("tools", "must have different names")
    return tools


Tools = Annotated[list[Tool], Field(max_length=MOST_TOOLS), AfterValidator(_distinct)]
Choice = Literal["none", "auto", "required"] | NamedTool


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What one request's answers may call, and how the model writes that."""

    form: ToolFormat
    names: tuple[str, ...]
    shown: frozenset[int]
    """Special tokens that calls are written with."""
    grammar: str | None
    """What answers are held to; None where the model is free to call what it likes."""

    def calls(self) -> ToolCalls:
        """Takes one answer apart."""
        return ToolCalls(self.form, self.names)

    def new_id(self) -> str:
        """Of a call."""
        characters = string.ascii_letters + string.digits
        made = "".join(secrets.choice(characters) for _ in range(self.form.id_characters))
        return made if self.form.id_characters < 10 else f"call_{made}"

    def as_json(self, calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
        """Calls as a message has them."""
        return [
            {"id": self.new_id(), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]


def tool_use(
    tools: Sequence[Tool], choice: Choice | None, several: bool | None, template: str, tokenizer: Tokenizer
) -> ToolUse | None:
    """What a request's tools come to with a model of this chat template; None where there are none to call.

    A call is held to its function's schema where one has to be made, and where a tool is strict. Raises RequestError.
    """
    if choice == "none" or not tools:
        return None
    form = tool_format(template)
    if form is None:
        raise RequestError(
            "This model's chat template has no place for tools, or has them called in a way that is not known here.",
            "Leave tools out, or serve another model.",
            param="tools",
        )
    schemas = {tool.function.name: tool.function.parameters or {} for tool in tools}
    if isinstance(choice, NamedTool):
        schemas = {choice.function.name: schemas[choice.function.name]}
    must, many = choice not in (None, "auto"), several is not False and not isinstance(choice, NamedTool)
    held = must or any(tool.function.strict for tool in tools)
    grammar = call_grammar(form, schemas, tokenizer, must=must, several=many) if held else None
    ids = (tokenizer.token_id(marker) for marker in form.markers())
    shown = frozenset(token for token in ids if token is not None) & tokenizer.special_ids
    return ToolUse(form, tuple(schemas), shown, grammar)


def for_template(tools: Sequence[Tool]) -> list[Mapping[str, Any]]:
    """Tools as chat templates expect them."""
    return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]
