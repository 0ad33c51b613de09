"""`LLM.score`: texts, pairs, windows, in company and under ceilings."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from helpers.checkpoints import random_tensors, tiny_config, write_checkpoint
from penstock import LLM, SamplingParams
from penstock.errors import ContextError, NumericsError, TokenizerError, UsageError
from penstock.logprobs import token_logprobs
from penstock.scoring import windows

TOKENS = [7, 20, 33, 5, 64, 90, 11, 2, 48, 48, 7, 20, 33, 5, 64, 91]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_checkpoint(path)
    return path


def expected(llm: LLM, tokens: list[int], top: int = 0) -> list[float]:
    logits = llm.logits(tokens)
    return [token_logprobs(row, token, top).logprob for row, token in zip(logits, tokens[1:], strict=False)]


class TestOneText:
    def test_is_scored_as_its_logits_say(self, tiny: Path) -> None:
        with LLM.open(tiny) as llm:
            [score] = llm.score([TOKENS], top=3)
            assert score.logprobs.tolist() == expected(llm, TOKENS)
            best = llm.logits(TOKENS)[:-1].argmax(axis=1)
        assert score.start == 1
        assert score.token_ids == TOKENS
        assert score.is_greedy.tolist() == (best == TOKENS[1:]).tolist()
        np.testing.assert_array_equal(score.top_tokens[:, 0], best)
        assert score.total == math.fsum(score.logprobs)
        assert score.perplexity == pytest.approx(math.exp(-np.mean(score.logprobs)))
        assert repr(score).startswith("Score(15 of 16 tokens, total=-")

    def test_what_was_drawn_has_the_logarithms_that_it_was_drawn_with(self) -> None:
        with LLM.open("demo") as llm:
            prompt = llm.encode("def add(a, b):\n")
            params = SamplingParams(temperature=0, max_tokens=12, logprobs=3, ignore_eos=True)
            [output] = llm.generate([prompt], params)
            [score] = llm.score([(prompt, output.token_ids)], top=3)
        assert score.logprobs.tolist() == [told.logprob for told in output.logprobs]
        tops = zip(score.top_tokens.tolist(), score.top_logprobs.tolist(), strict=True)
        assert [tuple(zip(*top, strict=True)) for top in tops] == [told.top for told in output.logprobs]
        assert score.all_greedy

    def test_of_text_all_tokens_but_the_first(self) -> None:
        with LLM.open("demo") as llm:
            [score] = llm.score(["import os\n"])
            assert score.token_ids == llm.encode("import os\n")
        assert len(score.logprobs) == len(score.token_ids) - 1


class TestPairs:
    def test_only_what_follows_is_scored(self, tiny: Path) -> None:
        with LLM.open(tiny) as llm:
            whole, pair = llm.score([TOKENS, (TOKENS[:10], TOKENS[10:])])
        assert pair.start == 10
        assert pair.logprobs.tolist() == whole.logprobs[9:].tolist()

    def test_texts_are_divided_as_one(self) -> None:
        """A token that begins in the context and ends behind it is scored."""
        with LLM.open("demo") as llm:
            [score] = llm.score([("def add(a, b):\n    ret", "urn a + b\n")])
            whole, before = llm.encode("def add(a, b):\n    return a + b\n"), llm.encode("def add(a, b):\n    ret")
            assert score.token_ids == whole
            assert score.token_ids[: score.start] == before[: score.start]
            assert score.token_ids[score.start] != before[score.start : score.start + 1]
            text = llm.text_side().decode(score.token_ids[score.start :])
        assert text.endswith("return a + b\n")

    def test_contexts_that_they_share_are_computed_once(self, tiny: Path) -> None:
        context = (TOKENS * 5)[:70]
        with LLM.open(tiny) as llm:
            pairs = [(context, [token]) for token in range(8)]
            scorer = llm.scorer(pairs)
            rows: list[int] = []
            llm.events.listeners.append(
                lambda event: rows.append(int(event.name.split()[0])) if event.kind == "pass" else None
            )
            for _ in scorer.run():
                pass
            alone = [llm.score([pair])[0].total for pair in pairs]
        assert [score.total for score in scorer.scores] == alone
        assert sum(rows[:1]) == 70 + 7 * (70 - 64)


class TestWindows:
    @pytest.mark.parametrize(
        ("tokens", "start", "width", "stride"), [(100, 1, 16, 8), (17, 1, 16, 15), (40, 25, 16, 5)]
    )
    def test_each_token_is_scored_once_after_enough_others(
        self, tokens: int, start: int, width: int, stride: int
    ) -> None:
        found = list(windows(tokens, start, width, stride))
        assert [at for window in found for at in range(window.start, window.end)] == list(range(start, tokens))
        for window in found:
            assert window.end - window.begin <= width
            assert window.begin == 0 or window.start - window.begin >= width - stride
            assert window.start > window.begin

    def test_of_a_text_longer_than_the_context(self, tiny: Path) -> None:
        text = (TOKENS * 4)[:50]
        with LLM.open(tiny, context=16) as llm:
            [score] = llm.score([text], stride=4)
            for window in windows(50, 1, 16, 4):
                own = expected(llm, text[window.begin : window.end])
                first = window.start - window.begin - 1
                assert score.logprobs[window.start - 1 : window.end - 1].tolist() == own[first:]

    def test_it_is_refused_without_a_stride(self, tiny: Path) -> None:
        with LLM.open(tiny, context=16) as llm:
            assert len(llm.score([[*TOKENS, 3]])[0].logprobs) == 16
            with pytest.raises(ContextError, match=r"18 tokens are too many .* the context is 16") as told:
                llm.score([[*TOKENS, 3, 4]])
        assert "stride" in told.value.remedy

    @pytest.mark.parametrize("stride", [0, 16, -1, 2.5])
    def test_strides_out_of_range(self, tiny: Path, stride: int) -> None:
        with LLM.open(tiny, context=16) as llm, pytest.raises(UsageError, match="windows have 16 tokens"):
            llm.score([TOKENS * 2], stride=stride)


class TestCompany:
    def test_many_texts_share_passes_and_have_the_bits_that_they_have_alone(self, tiny: Path) -> None:
        texts = [TOKENS[at:] + TOKENS for at in range(12)]
        with LLM.open(tiny) as llm:
            scorer = llm.scorer(texts)
            assert len(list(scorer.run())) == 1
            for text, score in zip(texts, scorer.scores, strict=True):
                assert score.logprobs.tolist() == llm.score([text])[0].logprobs.tolist()

    def test_beside_what_is_drawn(self, tiny: Path) -> None:
        params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
        with LLM.open(tiny) as llm:
            alone = llm.generate([TOKENS], params)[0].token_ids
            completion = llm.submit(TOKENS, params)
            sequence = llm.engine.score(TOKENS, 1, 2)
            while llm.busy:
                llm.step()
            assert completion.output().token_ids == alone
            assert sequence.scored.logprobs.tolist() == llm.score([TOKENS])[0].logprobs.tolist()

    def test_in_chunks_of_few_rows(self, tiny: Path) -> None:
        text = TOKENS * 6
        with LLM.open(tiny) as llm:
            whole = llm.score([text])[0].logprobs.tolist()
            llm.engine.scheduler.max_rows = 7
            scorer = llm.scorer([text, (text[:40], text[40:])])
            assert len(list(scorer.run())) > 10
        assert scorer.scores[0].logprobs.tolist() == whole
        assert scorer.scores[1].logprobs.tolist() == whole[39:]

    def test_interrupted_it_leaves_nothing_behind(self, tiny: Path) -> None:
        with LLM.open(tiny) as llm:
            llm.engine.scheduler.max_rows = 7
            run = llm.scorer([TOKENS]).run()
            next(run)
            run.close()
            assert not llm.busy


class TestRefusals:
    @pytest.mark.parametrize(
        ("texts", "message"),
        [
            ("text", "takes a list of texts"),
            ([1, 2], "takes a list of texts"),
            ([[5]], "none can be scored"),
            ([[]], "no tokens"),
            ([[1, 96]], "not in the model's vocabulary"),
            ([([], [1, 2])], "follows nothing"),
            ([([1, 2], [])], "none can be scored"),
            ([("a", [1])], "a text and token ids"),
        ],
    )
    def test_what_cannot_be_scored(self, tiny: Path, texts: list[object], message: str) -> None:
        with LLM.open(tiny) as llm, pytest.raises(UsageError, match=message):
            llm.score(texts)  # type: ignore[arg-type]

    @pytest.mark.parametrize("top", [-1, 21, 1.5])
    def test_tops_out_of_range(self, tiny: Path, top: int) -> None:
        with LLM.open(tiny) as llm, pytest.raises(UsageError, match="Give a number from 0 to 20"):
            llm.score([TOKENS], top=top)

    def test_text_without_a_tokenizer(self, tiny: Path) -> None:
        with LLM.open(tiny) as llm, pytest.raises(TokenizerError):
            llm.score(["text"])

    def test_weights_that_overflow(self, tmp_path: Path) -> None:
        tensors = random_tensors(tiny_config())
        tensors["lm_head.weight"][3] = 0x7FC0
        write_checkpoint(tmp_path, tensors=tensors)
        with LLM.open(tmp_path) as llm, pytest.raises(NumericsError, match="not finite"):
            llm.score([TOKENS])


def test_what_scoring_takes_is_planned(tiny: Path) -> None:
    """Logits of some rows at a time, however many there are, and none of the rows that are not scored."""
    with LLM.open(tiny) as llm:
        text = (TOKENS * 30)[:400]
        asked = []
        make = llm.memory.rooms[0].make
        llm.memory.rooms[0].make = lambda need: (asked.append(need), make(need))  # type: ignore[method-assign]
        llm.score([(text[:100], text[100:])])
        [need] = [need for need in asked if need.rows]
        assert (need.rows, need.logit_rows, need.scored_rows, need.guesses) == (399, 0, 300, 0)
        budget = llm.memory.budget
        few, many = (budget._activations(4000, 0, 0, rows) for rows in (1000, 4000))
        assert many - few < 3000 * 4 * llm.config.vocab_size + 3000 * 1200
