"""Sessions whose keys and values came through an adapter: they go on with that one alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.adapters import LoraCase
from helpers.cases import CASES
from penstock import LLM, SamplingParams, Session
from penstock.errors import SessionError, UsageError

pytestmark = pytest.mark.usefixtures("no_fsync")

PARAMS = SamplingParams(temperature=0.9, seed=3, max_tokens=20, ignore_eos=True)
PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    CASES["gqa-4"].write(path)
    for seed, name in enumerate(("one", "two")):
        LoraCase().write(path.parent / name, path, seed)
    return path


def opened(model: Path, *names: str) -> LLM:
    return LLM.open(model, draft="none", adapters=[model.parent / name for name in names or ("one", "two")])


def begin(model: Path, path: Path, adapter: str | None) -> list[int]:
    """What was drawn before it was left."""
    with opened(model) as llm, Session(llm, path, adapter) as session:
        pieces = session.complete(PROMPT, PARAMS)
        return [token for _ in range(4) for token in next(pieces).token_ids]


@pytest.mark.parametrize("adapter", ["one", "two", None])
def test_it_goes_on(model: Path, tmp_path: Path, adapter: str | None) -> None:
    begun = begin(model, tmp_path / "talk", adapter)
    with opened(model) as llm:
        [whole] = llm.generate([PROMPT], PARAMS, adapter=adapter)
        with Session(llm, tmp_path / "talk", adapter) as session:
            assert session.rows_to_come == 2
            drawn = [token for piece in session.go_on() for token in piece.token_ids]
    assert drawn == whole.token_ids
    assert drawn[: len(begun)] == begun


def test_under_another_name(model: Path, tmp_path: Path) -> None:
    begin(model, tmp_path / "talk", "one")
    with LLM.open(model, draft="none", adapters=[f"other={model.parent / 'one'}"]) as llm:
        Session(llm, tmp_path / "talk", "other").close()


@pytest.mark.parametrize(
    ("began", "now", "said"),
    [("one", "two", "with another adapter"), ("one", None, "with an adapter"), (None, "one", "without an adapter")],
)
def test_others_are_refused(model: Path, tmp_path: Path, began: str | None, now: str | None, said: str) -> None:
    begin(model, tmp_path / "talk", began)
    made_by = f"{model} and the adapter {model.parent / 'one'}" if began else str(model)
    with opened(model) as llm, pytest.raises(SessionError) as error:
        Session(llm, tmp_path / "talk", now)
    assert str(error.value) == (
        f"{tmp_path}/talk was made {said}, by {made_by}; its keys and values are of no use here.\n"
        "Open it with what made it (--adapter), or begin another session."
    )


def test_other_weights_come_first(model: Path, tmp_path: Path) -> None:
    begin(model, tmp_path / "talk", "one")
    other = CASES["gqa-4"].write(tmp_path / "other", seed=1)
    with LLM.open(other, draft="none") as llm, pytest.raises(SessionError, match="the weights are others"):
        Session(llm, tmp_path / "talk")


def test_an_adapter_that_is_not_open(model: Path) -> None:
    with opened(model, "one") as llm, pytest.raises(UsageError, match="no adapter called 'two'"):
        Session(llm, adapter="two")
