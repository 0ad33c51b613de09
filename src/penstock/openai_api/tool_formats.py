"""How models write that they want a function called: known by what their chat templates are written with.

The formats are those of the models' own templates: Hermes' tags, which Qwen, SmolLM3 and others took over; Llama 3's
bare JSON; Mistral's token before a list; the tags around a list of Granite 3 and Phi-4-mini.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from penstock.text.tokenizer import Tokenizer

ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One of them."""

    name: str
    opening: str
    """What calls begin with; empty where JSON itself tells."""
    closing: str = ""
    """What comes after each, or after all of a list."""
    listed: bool = False
    """Whether calls are in a JSON list."""
    arguments: str = "arguments"
    """The key of a call's arguments."""
    id_characters: int = 24
    """Of a call's id; Mistral's templates take no other number than theirs."""

    def markers(self) -> list[str]:
        """What is written beside JSON."""
        return [marker for marker in (self.opening.strip(), self.closing.strip(), "<|python_tag|>") if marker]


HERMES = ToolFormat("hermes", "<tool_call>\n", "\n</tool_call>")
LLAMA = ToolFormat("llama", "", arguments="parameters")
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", listed=True, id_characters=9)
PHI = ToolFormat("phi", "<|tool_call|>", "<|/tool_call|>", listed=True)
GRANITE = ToolFormat("granite", "<|tool_call|>", listed=True)
OTHERS = ("<function=", "<arg_key>", "[ARGS]", "[CALL_ID]")
"""In templates of formats that have tags in common with these, and no JSON of name and arguments within: Qwen3-Coder's,
GLM 4.5's, those of Mistral's models of 2025."""
BARE_CALL = re.compile(r'\{\\?"name\\?": [^{}]{1,60}\\?"parameters\\?":')
"""As Llama's templates tell the model to write one."""


def tool_format(template: str) -> ToolFormat | None:
    """The format that a chat template's source tells of; None where it has no place for tools, or tells of another."""
    if "tools" not in template or any(other in template for other in OTHERS):
        return None
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    if "<|/tool_call|>" in template:
        return PHI
    if "<|tool_call|>" in template:
        return GRANITE
    if "<tool_call>" in template:
        return HERMES
    return LLAMA if BARE_CALL.search(template) else None


def call_grammar(
    form: ToolFormat, tools: Mapping[str, Mapping[str, Any]], tokenizer: Tokenizer, *, must: bool, several: bool
) -> str:
    """A grammar, in Lark's notation, of answers that call these functions, given by name with the schemas of their
    arguments; `must`: whether they have to call one; `several`: whether they may call more than one."""
    opening, closing = _written(form.opening, tokenizer), _written(form.closing, tokenizer)
    calls = [_call_schema(form, name, _rooted(schema, index)) for index, (name, schema) in enumerate(tools.items())]
    call = {"x-guidance": ONE_LINE, "anyOf": calls}
    if form.listed:
        more, rest = '(", " json)*', f'"[" json{{}} "]" {closing}'
    elif form.opening:
        more, rest = f'("\\n" {opening} json {closing})*', f"json {closing}{{}}"
    else:
        more, rest = '("; " json)*', "json{}"
    lines = [
        "%llguidance {}",
        f"calls: {rest.format(f' {more}' if several else '')}",
        f"json: %json {json.dumps(call)}",
    ]
    if must:
        lines.append(f"start: {opening} calls")
    elif not form.opening:
        lines += ["start: calls | TEXT", r"TEXT: /([^{](.|\n)*)?/"]
    elif _is_token(form.opening, tokenizer):
        lines += [f"start: TEXT ({opening} calls)?", r"TEXT: /(.|\n)*/"]
    else:  # A lazy lexeme ends where the opening does first: no text has it without calls behind it.
        lines += ["start: opened calls | TEXT", f"opened[lazy]: TEXT {opening}", r"TEXT: /(.|\n)*/"]
    return "\n".join(lines)


def _rooted(schema: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The schema of a function's arguments with an address of its own: what it refers to as "#" is itself then, and not
    the schema of all calls."""
    schema = {**(schema or {"type": "object"})}
    if (reference := schema.pop("$ref", None)) is not None:  # beside one, older drafts see no address
        also = [{"allOf": schema["allOf"]}] if "allOf" in schema else []
        schema["allOf"] = [{"$ref": reference}, *also]
    address = f"https://penstock.invalid/{index}"
    return {**schema, "$id": address, "id": address}  # draft 4 calls it so


def _call_schema(form: ToolFormat, name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, form.arguments: schema},
        "required": ["name", form.arguments],
        "additionalProperties": False,
    }


def _is_token(text: str, tokenizer: Tokenizer) -> bool:
    """Whether it is a token of its own, which a grammar's text does not stand for."""
    return tokenizer.token_id(text.strip()) is not None


def _written(text: str, tokenizer: Tokenizer) -> str:
    """A marker in Lark's notation."""
    marker = text.strip()
    if not marker:
        return ""
    if not _is_token(marker, tokenizer):
        return json.dumps(text)
    before, after = text.split(marker)  # white space
    parts = (
        [json.dumps(before)] * bool(before),
        [f"<[{tokenizer.token_id(marker)}]>"],
        [json.dumps(after)] * bool(after),
    )
    return " ".join(one for part in parts for one in part)
