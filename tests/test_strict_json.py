from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import FormatError
from penstock.strict_json import MAX_JSON_BYTES, Fields, listed, parse_json_object, read_json_object, shown

MALFORMED = {
    "not UTF-8": (b'{"a": "\xff"}', "config.json is not UTF-8 (at its byte 7)"),
    "empty": (b"", "config.json is not JSON: Expecting value"),
    "cut off": (b'{"a": 1', "config.json is not JSON: Expecting ',' delimiter: line 1 column 8 (char 7)"),
    "infinite": (b'{"a": -Infinity}', "config.json is not JSON: -Infinity is not a JSON value"),
    "a list": (b"[1]", "config.json is [1], not a JSON object"),
    "null": (b"null", "config.json is None, not a JSON object"),
    "key twice": (b'{"a": {"b": 1, "b": 1}}', "config.json has the key 'b' twice"),
    "too deep": (b"[" * 200_000, "config.json is nested too deep"),
    "lone surrogate": (b'{"a": "\\udc00"}', "config.json is not JSON: 'utf-8' codec can't encode"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "config.json is a Git LFS pointer, not the file"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_named(case: str, tmp_path: Path) -> None:
    content, message = MALFORMED[case]
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_json_object(path)
    assert message in caught.value.problem
    assert str(tmp_path) in caught.value.problem
    assert caught.value.remedy


def test_reads_an_object(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(' \n{"ä": [1, 2.5, null, {"b": "\\ud83d\\ude00"}]}\n', encoding="utf-8")
    assert read_json_object(path) == {"ä": [1, 2.5, None, {"b": "😀"}]}


def test_endless_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(FormatError, match="is larger than 100,000,000 bytes, the limit for a JSON file"):
        read_json_object(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"config\.json cannot be read: No such file"):
        read_json_object(tmp_path / "config.json")


@given(st.binary(max_size=40) | st.text('{}[]":,0123456789.eE-\\ud falsetrn', max_size=40).map(str.encode))
def test_any_bytes_parse_or_raise(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        assert isinstance(parse_json_object(data, "x"), dict)


def test_shown_is_short_and_on_one_line() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert shown("a\nb") == "'a\\nb'"
    assert len(shown("x" * 1000)) == 100
    assert shown(nested) == "a nested list"


def test_listed_counts_what_it_leaves_out() -> None:
    assert listed(["a", "b"]) == "'a', 'b'"
    assert listed(["a", "b", "c"], most=2) == "'a', 'b' and 1 more"


@pytest.mark.parametrize(
    ("method", "arguments", "value", "result"),
    [
        ("size", (), 3, 3),
        ("optional_size", (), None, None),
        ("optional_size", (), 3, 3),
        ("positive", (), 2, 2.0),
        ("optional_number", (lambda x: x < 1, "small"), None, None),
        ("optional_number", (lambda x: x < 1, "small"), 0.5, 0.5),
        ("flag", (False,), True, True),
        ("optional_count", (), None, None),
        ("optional_count", (), 0, 0),
        ("token_ids", (), None, ()),
        ("token_ids", (), 5, (5,)),
        ("token_ids", (), [5, 0], (5, 0)),
    ],
)
def test_fields_have_types(method: str, arguments: tuple[Any, ...], value: object, result: object) -> None:
    found = getattr(Fields({"key": value}, "x"), method)("key", *arguments)
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(
    ("method", "arguments", "value", "expected"),
    [
        ("size", (), 0, "a positive integer below 2**31"),
        ("size", (), -1, "a positive integer below 2**31"),
        ("size", (), 2**31, "a positive integer below 2**31"),
        ("size", (), True, "a positive integer below 2**31"),
        ("size", (), 4.0, "a positive integer below 2**31"),
        ("size", (), None, "a positive integer below 2**31"),
        ("optional_size", (), 0, "a positive integer below 2**31"),
        ("positive", (), 0, "a positive number"),
        ("positive", (), "1", "a positive number"),
        ("positive", (), True, "a positive number"),
        ("positive", (), 1e999, "a positive number"),
        ("positive", (), 10**400, "a positive number"),
        ("positive", (), None, "a positive number"),
        ("optional_number", (lambda x: x < 1, "small"), 1, "small"),
        ("optional_number", (lambda x: x < 1, "small"), "0", "small"),
        ("flag", (False,), 1, "true or false"),
        ("flag", (False,), None, "true or false"),
        ("optional_count", (), -1, "an integer from 0 to 2**31 - 1"),
        ("optional_count", (), [1], "an integer from 0 to 2**31 - 1"),
        ("token_ids", (), True, "an integer from 0 to 2**31 - 1 or a list of them"),
        ("token_ids", (), [1, None], "an integer from 0 to 2**31 - 1 or a list of them"),
        ("part", (), [], "an object or null"),
    ],
)
def test_wrong_fields_are_named(method: str, arguments: tuple[Any, ...], value: object, expected: str) -> None:
    with pytest.raises(FormatError) as caught:
        getattr(Fields({"key": value}, "x.json"), method)("key", *arguments)
    assert caught.value.problem == f"x.json: key is {shown(value)}, not {expected}"


def test_required_fields_are_named() -> None:
    with pytest.raises(FormatError, match=r"^x.json: part.key is missing, not a positive number"):
        Fields({"part": {}}, "x.json").part("part").positive("key")


def test_unknown_are_those_that_nobody_asked_for() -> None:
    fields = Fields({"a": 1, "b": 2, "c": 3, "part": {"d": 4, "e": 5}}, "x.json")
    fields.size("a")
    fields.part("part").size("d")
    assert fields.unknown(frozenset({"c"})) == ["b", "part.e"]
