from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.held_out import held_out
from penstock import LLM, PenstockError
from penstock.benchmarks import acceptance as speculation_benchmark
from penstock.benchmarks.acceptance import PAGE_BREAK, TextResult, TextSettings, cut_prompts, read_text, run_text
from penstock.benchmarks.timed_decoding import Decoding
from penstock.checkpoints.store import find_model
from penstock.errors import MemoryCeilingError, TokenizerError, UsageError
from penstock.packing.pack import pack


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "held-out.txt"
    path.write_text(held_out()[:20_000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "packed"
    pack(find_model("demo"), path)
    return path


@pytest.fixture(scope="module")
def result(text: Path, packed: Path) -> TextResult:
    """The model is its own draft, which is right at every position of greedy text."""
    settings = TextSettings(
        text=text, draft="demo", nodes=(1, 4), prompts=2, prompt_tokens=20, tokens=6, threads=1, kv_dtype="f32"
    )
    return run_text(packed, settings)


class TestResult:
    def test_every_drafter_and_all_together(self, result: TextResult) -> None:
        drafters = ("lookup", "coarse", "draft", "recycling", "together")
        assert {(one.drafter, one.nodes, one.temperature) for one in result.acceptance} == {
            (name, nodes, temperature) for name in drafters for nodes in (1, 4) for temperature in (0.0, 1.0)
        }
        assert {"lookup", "coarse", "draft"} <= set(result.together)
        assert result.identical

    def test_figures_agree(self, result: TextResult) -> None:
        for one in result.acceptance:
            assert one.tokens >= 2 * 6
            assert one.tokens_per_pass == one.tokens / one.passes
            assert 0 <= one.nodes_per_pass <= one.nodes
            assert one.tokens_per_pass <= one.nodes + 1
            assert all(0 <= share <= 1 for share in one.right_by_depth)
            assert (one.asked_per_pass > 0) == (one.drafter not in ("lookup", "recycling"))
            assert one.steps_per_pass <= one.asked_per_pass
            assert one.seconds_per_token > 0

    def test_a_draft_that_knows_everything(self, result: TextResult) -> None:
        rates = {
            one.nodes: one.tokens_per_pass
            for one in result.acceptance
            if (one.drafter, one.temperature) == ("draft", 0)
        }
        assert rates[1] == 2.0
        assert 2.0 < rates[4] <= 5.0
        [first] = [one for one in result.first_guesses if (one.drafter, one.temperature) == ("draft", 0)]
        assert first.within == {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}
        assert first.positions == 2 * 6

    def test_first_guesses_of_those_that_take_time(self, result: TextResult) -> None:
        assert {(one.drafter, one.temperature) for one in result.first_guesses} == {
            (name, temperature) for name in ("coarse", "draft") for temperature in (0.0, 1.0)
        }
        for one in result.first_guesses:
            assert 0 <= one.within[1] <= one.within[2] <= one.within[4] <= one.within[8] <= 1

    def test_chains_cost_as_much_as_trees(self, result: TextResult) -> None:
        trees = {(one.drafter, one.temperature, one.nodes): one for one in result.acceptance}
        assert len(result.chains) == 2 * 2 * 2 * 2
        for chain in result.chains:
            tree = trees[chain.drafter, chain.temperature, chain.nodes]
            assert chain.tree_tokens_per_pass == tree.tokens_per_pass
            cost = {"steps": tree.steps_per_pass, "rows": tree.asked_per_pass}[chain.same]
            assert chain.length == max(1, round(cost))
            assert 1 <= chain.tokens_per_pass <= chain.length + 1

    def test_json(self, result: TextResult) -> None:
        said = json.loads(json.dumps(result.as_object()))
        assert (said["measures"], said["identical"]) == ("acceptance on a text", True)
        assert said["first_guesses"][0]["within"].keys() == {"1", "2", "4", "8"}


def test_another_token_is_an_error(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = speculation_benchmark.decode

    def wrong(llm: LLM, *arguments: object) -> Decoding:
        run = decode(llm, *arguments)  # type: ignore[arg-type]
        if llm.engine.speculator.drafters:
            run.token_ids[2] += 1
        return run

    monkeypatch.setattr(speculation_benchmark, "decode", wrong)
    settings = TextSettings(text=text, nodes=(4,), prompts=1, prompt_tokens=9, tokens=4)
    with pytest.raises(PenstockError, match=r"Prompt 0, lookup, 4 guesses: token 2 is \d+, and \d+ in plain decoding"):
        run_text("demo", settings)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM.open("demo") as llm:
        yield llm


class TestCuts:
    def test_pieces_of_documents(self, llm: LLM) -> None:
        assert llm.tokenizer is not None
        text = PAGE_BREAK.join(["one = 1\n" * 30, "x", "def two():\n    return 2\n" * 30])
        documents = [llm.tokenizer.encode(part, add_special_tokens=False) for part in text.split(PAGE_BREAK)]
        prompts = cut_prompts(llm, text, 6, 20)
        assert prompts == cut_prompts(llm, text, 6, 20)
        first = llm.encode("")[:1]
        for prompt in prompts:
            assert len(prompt) == 20
            assert prompt[: len(first)] == first
            inner = prompt[len(first) :]
            assert any(inner == d[i : i + len(inner)] for d in documents for i in range(len(d)))
        assert len({tuple(prompt) for prompt in prompts}) > 1

    def test_a_text_that_is_too_short(self, llm: LLM) -> None:
        with pytest.raises(
            UsageError, match=r"The longest document of the text has \d tokens, and a prompt 20"
        ) as error:
            cut_prompts(llm, PAGE_BREAK.join(["one", "two three"]), 1, 20)
        assert "--prompt-tokens" in error.value.remedy

    def test_no_tokenizer(self, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(llm, "tokenizer", None)
        with pytest.raises(TokenizerError, match="no tokenizer"):
            cut_prompts(llm, "text", 1, 20)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"absent.txt cannot be read: No such file") as error:
            read_text(tmp_path / "absent.txt")
        assert "--text" in error.value.remedy

    def test_a_text_that_has_no_room_is_not_read(self, tmp_path: Path) -> None:
        with (tmp_path / "long.txt").open("wb") as file:
            file.truncate(1 << 40)
        settings = TextSettings(text=tmp_path / "long.txt", memory="2GiB")
        with pytest.raises(MemoryCeilingError, match="too small for this model and prompt"):
            run_text("demo", settings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": 0}, "--prompts 0: at least 1"),
        ({"prompt_tokens": 0}, "--prompt-tokens 0: at least 1"),
        ({"tokens": -1}, "--tokens -1: at least 1"),
        ({"nodes": (0,)}, "--draft-nodes 0: at least 1"),
    ],
)
def test_settings_that_cannot_be_meant(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TextSettings(text=Path("text"), **changes)  # type: ignore[arg-type]
