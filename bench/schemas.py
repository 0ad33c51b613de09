"""200 JSON schemas of the kinds that programs ask for: those below by hand, a keyword or a way of writing each, and
others that a generator puts together, always the same ones.

Strings, arrays and numbers are bounded nearly everywhere, so that an answer ends within a few hundred tokens.
"""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]
COUNT = 200
SEED = 7

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
TEXT: Schema = {"type": "string", "maxLength": 16}
WORD: Schema = {"type": "string", "pattern": "^[a-z]{2,10}$"}
COUNTED: Schema = {"type": "integer", "minimum": 0, "maximum": 999}
FORMATS = ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")


def thing(optional: tuple[str, ...] = (), **properties: Any) -> Schema:
    """An object of these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def some(items: Any, least: int = 1, most: int = 3) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


_POINT = thing(x=COUNTED, y=COUNTED)
_TREE = thing(name=WORD, children=some({"$ref": "#/$defs/tree"}, 0, 2))

BY_HAND: dict[str, Schema] = {
    # types
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "string": TEXT,
    "integer": {"type": "integer", "minimum": -50, "maximum": 50},
    "number": {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.01},
    "types in a list": {"type": ["boolean", "null"]},
    "nullable string": {"type": ["string", "null"], "maxLength": 8},
    "nullable by anyOf": {"anyOf": [COUNTED, {"type": "null"}]},
    "type from enum": {"enum": ["small", "medium", "large"]},
    # enum and const
    "enum of kinds": {"enum": ["one", 1, 1.5, True, None]},
    "enum of objects": {"enum": [{"a": 1}, {"a": 2, "b": [3]}]},
    "enum with type": {"type": "string", "enum": ["a \"quoted\" word", "a \\ backslash", "tab\there"]},
    "enum beyond ASCII": {"enum": ["größer", "日本", "🙂"]},
    "const string": {"const": "exactly this"},
    "const object": {"const": {"kind": "fixed", "list": [1, 2, {"deep": None}]}},
    "const in an object": thing(version={"const": 2}, name=WORD),
    # strings
    "lengths": thing(code={"type": "string", "minLength": 4, "maxLength": 6}),
    "least length": {"type": "string", "minLength": 3, "maxLength": 20},
    "pattern": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
    "pattern of alternatives": {"type": "string", "pattern": "^(red|green|blue)( (light|dark))?$"},
    "pattern with classes": {"type": "string", "pattern": "^\\d{2}:\\d{2}$"},
    "pattern with a length": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 7},
    "telephone": thing(phone={"type": "string", "pattern": "^\\+[1-9][0-9]{6,12}$"}),
    **{f"format {name}": thing(value={"type": "string", "format": name, "maxLength": 40}) for name in FORMATS},
    "bare date": {"type": "string", "format": "date"},
    "bare uuid": {"type": "string", "format": "uuid"},
    # numbers
    "bounds": {"type": "integer", "minimum": 17, "maximum": 4711},
    "exclusive bounds": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10},
    "negative": {"type": "integer", "minimum": -20, "exclusiveMaximum": 0},
    "multiple": {"type": "integer", "minimum": 0, "maximum": 1000, "multipleOf": 25},
    "price": thing(price={"type": "number", "minimum": 0, "exclusiveMaximum": 100, "multipleOf": 0.05}),
    "half open": {"type": "integer", "minimum": 1_000_000, "maximum": 9_999_999},
    "number without bounds": thing(value={"type": "number"}),
    # arrays
    "array": some(WORD),
    "array of a length": some(COUNTED, 3, 3),
    "empty or not": some(WORD, 0, 2),
    "array of arrays": some(some(COUNTED, 2, 2), 2, 2),
    "tuple": {"type": "array", "prefixItems": [WORD, COUNTED, {"type": "boolean"}], "items": False, "minItems": 3},
    "tuple and more": {"type": "array", "prefixItems": [WORD], "items": COUNTED, "minItems": 2, "maxItems": 4},
    "tuple that may end": {"type": "array", "prefixItems": [WORD, COUNTED], "items": False},
    "items in a list": {"$schema": DRAFT_7,
                        "type": "array", "items": [COUNTED, WORD], "additionalItems": False,
                        "minItems": 2},
    "array of kinds": some({"anyOf": [WORD, COUNTED]}),
    # objects
    "object": thing(name=WORD, age=COUNTED),
    "optional properties": thing(("b", "c"), a=COUNTED, b=COUNTED, c=WORD),
    "only optional ones": thing(("a", "b"), a=COUNTED, b=WORD),
    "other order": {**thing(first=WORD, second=WORD), "required": ["second", "first"]},
    "other properties": {"type": "object", "additionalProperties": COUNTED, "maxProperties": 2},
    "one property": {"type": "object", "additionalProperties": COUNTED, "minProperties": 1, "maxProperties": 1},
    "required but not described": {"type": "object", "required": ["id", "name"], "additionalProperties": COUNTED,
                                   "properties": {"name": WORD}, "maxProperties": 2},
    "pattern properties": {"type": "object", "patternProperties": {"^x-[a-z]{1,8}$": COUNTED},
                           "additionalProperties": False, "minProperties": 1, "maxProperties": 1},
    "pattern and properties": {"type": "object", "properties": {"id": COUNTED}, "required": ["id"],
                               "patternProperties": {"^note_[0-9]$": TEXT}, "additionalProperties": False},
    "empty object": thing(),
    "keys to be escaped": thing(**{'say "so"': COUNTED, "back\\slash": COUNTED, "größe": COUNTED}),
    "nested": thing(a=thing(b=thing(c=thing(d=COUNTED)))),
    # combinations
    "anyOf objects": {"anyOf": [thing(cat=WORD), thing(dog=COUNTED)]},
    "tagged": {"anyOf": [thing(kind={"const": "circle"}, radius=COUNTED), thing(kind={"const": "box"}, side=COUNTED)]},
    "oneOf types": {"oneOf": [COUNTED, WORD]},
    "oneOf tagged": {"oneOf": [thing(kind={"const": "a"}, n=COUNTED), thing(kind={"const": "b"}, s=WORD)]},
    "allOf": {"allOf": [{"type": "integer", "minimum": 5}, {"maximum": 50}]},
    "allOf objects": {"allOf": [{"type": "object", "properties": {"a": COUNTED}, "required": ["a"]},
                                {"properties": {"b": WORD}, "required": ["b"]}], "additionalProperties": False,
                      "properties": {"a": True, "b": True}},
    "anyOf beside": {"type": "string", "maxLength": 9, "anyOf": [{"minLength": 3}, {"const": "no"}]},
    # references
    "definitions": {**thing(start={"$ref": "#/$defs/point"}, end={"$ref": "#/$defs/point"}),
                    "$defs": {"point": _POINT}},
    "older definitions": {**thing(at={"$ref": "#/definitions/point"}), "definitions": {"point": _POINT}},
    "reference with more": {**thing(at={"$ref": "#/$defs/n", "maximum": 5}), "$defs": {"n": COUNTED}},
    "tree": {"$ref": "#/$defs/tree", "$defs": {"tree": _TREE}},
    "linked list": {"$ref": "#/$defs/node", "$defs": {"node": thing(
        value=COUNTED, next={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]})}},
    "anchor": {"$ref": "#place", "$defs": {"a": {"$anchor": "place", **TEXT}}},
    "reference to the root": thing(("inner",), name=WORD, inner={"$ref": "#"}),
    "two that call each other": {"$ref": "#/$defs/a", "$defs": {
        "a": thing(("b",), n=COUNTED, b={"$ref": "#/$defs/b"}), "b": thing(("a",), s=WORD, a={"$ref": "#/$defs/a"})}},
    # what tells and does not hold
    "annotations": {**thing(n={**COUNTED, "title": "N", "description": "A number.", "default": 3, "examples": [4]}),
                    "title": "T", "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://x.example/t"},
    # as programs have them
    "person": thing(("email",), name=TEXT, born={"type": "string", "format": "date"},
                    email={"type": "string", "format": "email", "maxLength": 30}),
    "order": thing(id={"type": "string", "format": "uuid"}, paid={"type": "boolean"},
                   items=some(thing(sku={"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"}, count=COUNTED))),
    "sentiment": thing(label={"enum": ["positive", "negative", "neutral"]}, score={"enum": [1, 2, 3, 4, 5]}),
    "GeoJSON": thing(type={"const": "Point"}, coordinates=some({"type": "integer", "minimum": 0, "maximum": 90}, 2, 2)),
    "call of a function": thing(name={"enum": ["search", "open"]}, arguments=thing(query=TEXT)),
}  # fmt: skip

_LEAVES: list[Schema] = [
    TEXT,
    WORD,
    COUNTED,
    {"type": "boolean"},
    {"type": "integer", "exclusiveMinimum": -10, "maximum": 10},
    {"type": "integer", "minimum": 0, "maximum": 600, "multipleOf": 5},
    {"type": "number", "minimum": 0, "maximum": 10, "multipleOf": 0.1},
    {"type": ["integer", "null"], "minimum": 1, "maximum": 9},
    {"type": "string", "minLength": 2, "maxLength": 5},
    {"type": "string", "pattern": "^[A-Z][a-z]{1,6}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "ipv4"},
    {"enum": ["yes", "no", None]},
    {"const": "v1"},
]
_NAMES = ("id", "name", "kind", "size", "tags", "owner", "created", "status", "parts", "note", "first_name", "isOpen")


class _Generator:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def schema(self) -> Schema:
        """An object, some of whose parts are defined apart."""
        shared = self._part(1)
        made = self._object(3, shared)
        return made | {"$defs": {"shared": shared}}

    def _part(self, depth: int, shared: Schema | None = None) -> Schema:
        kind = self._random.random()
        if shared is not None and kind < 0.1:
            return {"$ref": "#/$defs/shared"}
        if not depth or kind < 0.45:
            return self._random.choice(_LEAVES)
        if kind < 0.65:
            return some(self._part(depth - 1, shared), self._random.randint(0, 1), self._random.randint(1, 3))
        if kind < 0.72:
            return {"anyOf": [self._part(0), {"type": "null"}]}
        if kind < 0.8:
            kinds = (thing(kind={"const": f"k{n}"}, value=self._part(0)) for n in range(self._random.randint(2, 3)))
            return {"anyOf": [*kinds]}
        if kind < 0.85:
            return {"type": "array", "prefixItems": [self._part(0), self._part(0)], "items": False, "minItems": 2}
        return self._object(depth - 1, shared)

    def _object(self, depth: int, shared: Schema | None = None) -> Schema:
        names = self._random.sample(_NAMES, self._random.randint(1, 4))
        optional = tuple(name for name in names[1:] if self._random.random() < 0.25)
        return thing(optional, **{name: self._part(depth, shared) for name in names})


def all_schemas(count: int = COUNT) -> dict[str, Schema]:
    """By name, those by hand first."""
    made = {f"generated {n}": _Generator(SEED * COUNT + n).schema() for n in range(count - len(BY_HAND))}
    return dict([*BY_HAND.items(), *made.items()][:count])


REFUSED: dict[str, Schema] = {
    "not": {"not": {"type": "string"}},
    "if, then, else": {"if": {"type": "string"}, "then": {"maxLength": 3}, "else": {"type": "null"}},
    "uniqueItems": some(COUNTED) | {"uniqueItems": True},
    "contains": {"type": "array", "contains": COUNTED},
    "dependentRequired": thing(("b",), a=COUNTED, b=COUNTED) | {"dependentRequired": {"a": ["b"]}},
    "dependentSchemas": {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}},
    "propertyNames": {"type": "object", "propertyNames": {"maxLength": 3}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "unevaluatedItems": {"type": "array", "unevaluatedItems": False},
    "$dynamicRef": {"$dynamicRef": "#node"},
    "a reference elsewhere": {"$ref": "https://example.org/schema.json"},
    "a reference to nothing": {"$ref": "#/$defs/none"},
    "a format that is not known": {"type": "string", "format": "colour"},
    "oneOf that overlap": {"oneOf": [{"type": "integer", "maximum": 5}, {"type": "integer", "minimum": 3}]},
    "allOf that contradict": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "a pattern that looks around": {"type": "string", "pattern": "^(?=a)b$"},
    "a type that is none": {"type": "text"},
}

ANNOTATIONS: dict[str, Schema] = {
    "contentEncoding": {"type": "string", "contentEncoding": "base64"},
    "a keyword that is none": {"type": "string", "maxlength": 3},
}
"""Words that hold an answer to nothing, as JSON Schema has it."""
