"""The values that requests may have: types for pydantic that check them and describe them truly in JSON Schema."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from penstock.sampling import MOST_BIASED

MOST_CHOICES = 8
MOST_PROMPTS = 128
MOST_STOPS = 4
LEAST_SEED, MOST_SEED = -(2**63), 2**64 - 1


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 2.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""For annotations of int, behind their bounds."""


def only(*values: Any) -> Any:
    """The type of a parameter that OpenAI's API has and this one lacks: it may have values that change nothing."""

    def check(value: Any) -> Any:
        if value is None or any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in values):
            return value
        raise PydanticCustomError("unsupported", "is not supported: leave it out")

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": [*values, None]})]


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is kind for item in value)


def _check_prompt(value: Any) -> Any:
    """One look decides what a prompt is, so that one error says what it may be."""
    if isinstance(value, str) or _is_list_of(value, int):
        return value
    several = _is_list_of(value, str) or (_is_list_of(value, list) and all(_is_list_of(item, int) for item in value))
    if not several:
        raise PydanticCustomError(
            "prompt", "must be a string, a list of strings, a list of token ids, or a list of such lists, not empty"
        )
    if len(value) > MOST_PROMPTS:
        raise PydanticCustomError("prompts", f"must have at most {MOST_PROMPTS} prompts")
    return value


def _check_content(value: Any) -> Any:
    if isinstance(value, list):
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind != "text":
                raise PydanticCustomError("part", "has parts other than text, which are not supported")
            if kind is None or not isinstance(part.get("text"), str):
                raise PydanticCustomError("part", 'must have parts like {"type": "text", "text": "..."}')
    if value == [] or not isinstance(value, (str, list)):
        raise PydanticCustomError("content", "must be a string or a list of text parts")
    return value


def _check_stop(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if value not in (None, []) and not (_is_list_of(stops, str) and all(stops) and len(stops) <= MOST_STOPS):
        raise PydanticCustomError("stop", f"must be a non-empty string or a list of at most {MOST_STOPS} of them")
    return value


def _check_bias(value: Any) -> Any:
    if value is None:
        return value
    if not isinstance(value, dict) or len(value) > MOST_BIASED:
        raise PydanticCustomError("bias", f"must be an object with at most {MOST_BIASED} token ids")
    for token, bias in value.items():
        number = isinstance(bias, (int, float)) and not isinstance(bias, bool)
        if not (token.isascii() and token.isdigit() and len(token) < 10 and number and -100 <= bias <= 100):
            raise PydanticCustomError("bias", "must give each token id, in quotes, a number from -100 to 100")
    return value


TEXT_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}


def _array(items: dict[str, Any], most: int | None = None) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": items} | ({} if most is None else {"maxItems": most})


def _any_of(*schemas: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": list(schemas)})


_TEXT, _STOP, _IDS = {"type": "string"}, {"type": "string", "minLength": 1}, _array({"type": "integer", "minimum": 0})

Prompt = Annotated[
    Any,
    AfterValidator(_check_prompt),
    _any_of(_TEXT, _array(_TEXT, MOST_PROMPTS), _IDS, _array(_IDS, MOST_PROMPTS)),
]
Content = Annotated[Any, AfterValidator(_check_content), _any_of(_TEXT, _array(TEXT_PART))]
Stop = Annotated[
    Any,
    AfterValidator(_check_stop),
    _any_of(_STOP, {"type": "array", "items": _STOP, "maxItems": MOST_STOPS}, {"type": "null"}),
]
LogitBias = Annotated[
    Any,
    AfterValidator(_check_bias),
    _any_of(
        {
            "type": "object",
            "maxProperties": MOST_BIASED,
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        },
        {"type": "null"},
    ),
]
