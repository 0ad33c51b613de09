"""Keys and values are shared between sequences that go through the same adapter, and no others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.adapters import LoraCase
from helpers.cases import CASES, random_tokens
from penstock import LLM, SamplingParams
from penstock.models.kv_cache import BLOCK_SLOTS

PROMPT = random_tokens(3 * BLOCK_SLOTS + 5, 96)
PARAMS = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    model = CASES["gqa-4"].write(tmp_path_factory.mktemp("model") / "model")
    paths = [LoraCase().write(model.parent / name, model, seed) for seed, name in enumerate(("one", "two"))]
    with LLM.open(model, draft="none", adapters=paths) as llm:
        yield llm


@pytest.fixture(autouse=True)
def _nothing_kept(llm: LLM) -> None:
    llm.memory.caches.kept.clear()


@pytest.fixture(scope="module")
def alone(llm: LLM) -> dict[str | None, list[int]]:
    drawn = {}
    for name in ("one", "two", None):
        llm.memory.caches.kept.clear()
        drawn[name] = llm.generate([PROMPT], PARAMS, adapter=name)[0].token_ids
    assert len({tuple(tokens) for tokens in drawn.values()}) == 3
    return drawn


def rows_of(llm: LLM, names: list[str | None], alone: dict[str | None, list[int]]) -> int:
    """Rows of the first pass of sequences that begin together."""
    completions = [llm.submit(PROMPT, PARAMS, adapter=name) for name in names]
    rows = llm.step().rows
    for _ in llm.drive(completions):
        pass
    for name, completion in zip(names, completions, strict=True):
        assert completion.sequence.token_ids == alone[name]
    return rows


@pytest.mark.parametrize(
    ("names", "computed"), [(["one", "one"], 1), (["one", "two"], 2), ([None, "two"], 2), (["one", None, "one"], 2)]
)
def test_within_a_pass(llm: LLM, alone: dict[str | None, list[int]], names: list[str | None], computed: int) -> None:
    shared = len(names) - computed
    assert rows_of(llm, names, alone) == len(names) * len(PROMPT) - shared * 3 * BLOCK_SLOTS


def test_what_is_kept(llm: LLM, alone: dict[str | None, list[int]]) -> None:
    """Of each adapter by itself, though the tokens are the same."""
    for name in ("one", None, "two"):
        assert rows_of(llm, [name], alone) == len(PROMPT)
    assert len(list(llm.memory.caches.kept)) == 3
    for name in ("two", "one", None):
        assert rows_of(llm, [name], alone) == len(PROMPT) - 3 * BLOCK_SLOTS
    assert len(list(llm.memory.caches.kept)) == 3


def test_what_is_expected_of_others(llm: LLM) -> None:
    """Promises of memory count on blocks of the same adapter only."""
    first, second, third = (llm.submit(PROMPT, PARAMS, adapter=name).sequence for name in ("one", "two", "one"))
    assert second.expected_blocks([first]) == 0
    assert third.expected_blocks([first, second]) == 3
    for sequence in (first, second, third):
        llm.engine.cancel(sequence)
