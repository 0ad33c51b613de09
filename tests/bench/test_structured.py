"""The schemas, and the measurement of them, on the demo model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import structured
from schemas import ANNOTATIONS, BY_HAND, COUNT, REFUSED, all_schemas

from helpers.cases import DEMO
from helpers.thorough import quick
from penstock import LLM
from penstock.errors import UsageError
from penstock.grammars.grammar import Grammar
from penstock.options import OpenOptions
from penstock.packing.pack import pack

QUICK = ("tagged", "optional properties", "pattern properties", "tree", "price", "format date", "keys to be escaped")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "demo"
    pack(DEMO, path)
    return path


def test_there_are_so_many_and_always_the_same() -> None:
    assert all_schemas() == all_schemas()
    assert len(all_schemas()) == COUNT > len(BY_HAND)


@pytest.mark.parametrize("name", quick(0, all_schemas()))
def test_all_make_grammars(name: str) -> None:
    assert Grammar("schema", json.dumps(all_schemas()[name])).source()


@pytest.mark.parametrize("names", quick(1, [[*QUICK], [*all_schemas()]]), ids=len)
def test_answers_are_valid_and_the_same_with_guesses(packed: Path, names: list[str]) -> None:
    chosen = {name: all_schemas()[name] for name in names}
    with LLM(DEMO, OpenOptions(threads=1, draft="none")) as plain, LLM(packed, OpenOptions(threads=1)) as guessing:
        for temperature in structured.ROUNDS.values():
            answers = [structured.answers(llm, chosen, temperature, 200) for llm in (plain, guessing)]
            found = structured.compare(chosen, *answers)
            assert found.wrong == []
            assert found.ended > len(chosen) / 2


def test_what_is_wrong_is_told() -> None:
    schema = BY_HAND["bounds"]
    assert structured.why_invalid(schema, "18") is None
    assert structured.why_invalid(schema, "16") == "16 is less than the minimum of 17"
    assert str(structured.why_invalid(schema, "1 8")).startswith("no JSON")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_held_to_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="This JSON schema cannot be followed"):
        Grammar("schema", json.dumps(REFUSED[name])).source()


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_what_holds_to_nothing_is_taken(name: str) -> None:
    assert Grammar("schema", json.dumps(ANNOTATIONS[name])).source()


def test_matchers_alone() -> None:
    found = structured.walk(DEMO, all_schemas(12), 50)
    assert found["tokens"] >= found["masks"] > 0 < found["ms_a_token"]
