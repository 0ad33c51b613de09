"""Whatever is sent: no answer of 500, and the server answers as before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from helpers import http_requests as made
from helpers.http_siege import Siege, write_model
from helpers.serving import serving
from helpers.thorough import quick
from penstock import LLM
from penstock.openai_api.requests import URLS

GREAT = [text.encode() for text in (str(10**400), f"-{10**400}", "9" * 4300, "9" * 4301, str(2**63), str(2**64))]
SHARP = [*GREAT, b"1e400", b"-1e400", b"1e308", b"-0.0", b"NaN", b'"\\ud800"', b'"\\u0000"', b"[" * 500 + b"]" * 500]
"""Values that went wrong once, or nearly, in some server."""
KEY = {"Authorization": "Bearer key"}
SETTINGS: dict[str, dict[str, Any]] = {"open": {}, "for others": {"loopback": False}, "with a key": {"api_key": "key"}}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path: Path = tmp_path_factory.mktemp("tiny") / "model"
    write_model(path)
    with LLM.open(str(path), memory="1GiB", draft="none", context=64) as llm:
        yield llm


@pytest.fixture(params=SETTINGS)
def siege(llm: LLM, request: pytest.FixtureRequest) -> Iterator[Siege]:
    with serving(llm, max_body=20000, body_seconds=1.0, **SETTINGS[request.param]) as server:
        yield Siege(server.url, KEY)


@pytest.fixture
def open_siege(llm: LLM) -> Iterator[Siege]:
    with serving(llm, max_body=20000, body_seconds=1.0) as server:
        yield Siege(server.url)


def some(cases: Iterable[made.Case], count: int) -> list[made.Case]:
    """So many of them; `./scripts/fuzz --http` sends them all."""
    return Random(1).sample(list(cases), count)


def test_every_field_with_the_sharpest_values(open_siege: Siege) -> None:
    assert list(open_siege.findings(made.field_cases(SHARP))) == []
    assert {200, 400} <= set(open_siege.statuses) <= {200, 400, 404}


@pytest.mark.parametrize("count", quick([100], [100, 400]))
def test_fields(open_siege: Siege, count: int) -> None:
    assert list(open_siege.findings(some(made.field_cases(), count))) == []


def test_several_things_at_once(open_siege: Siege) -> None:
    random = Random(2)
    assert list(open_siege.findings(made.random_case(random) for _ in range(300))) == []


@pytest.mark.parametrize("count", quick([100], [100, 400]))
def test_bodies(open_siege: Siege, count: int) -> None:
    assert list(open_siege.findings(some(made.body_cases(), count))) == []


@pytest.mark.parametrize("count", quick([100], [100, 500]))
def test_headers(siege: Siege, count: int) -> None:
    assert list(siege.findings(some(made.header_cases(), count))) == []


def test_origins_and_hosts(siege: Siege) -> None:
    named = ("/health Host", "/nothing/here Host", "/health Origin", "/nothing/here Origin")
    cases = [case for case in made.header_cases() if case.label.startswith(named)]
    assert list(siege.findings(cases)) == []


def test_paths(siege: Siege) -> None:
    assert list(siege.findings(some(made.path_cases(), 200))) == []


def test_the_generator_knows_every_field() -> None:
    labels = {case.label for case in made.field_cases([b"null"])}
    for path, model in URLS.items():
        assert {f"{path} {name}=null" for name in model.model_fields} <= labels
