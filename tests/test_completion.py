"""Text of several tokens a pass is the text of one token a pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

from helpers.cases import DEMO
from helpers.guessing import Scripted, knowing
from helpers.thorough import quick
from penstock import LLM, SamplingParams
from penstock.completion import Completion, Output, Piece
from penstock.engine.sequence import Sequence
from penstock.errors import ChatTemplateError
from penstock.options import OpenOptions
from penstock.text.tokenizer import Tokenizer

PROMPT = "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n"
TOKENS = 40


@pytest.fixture(scope="module")
def plain() -> Iterator[LLM]:
    with LLM(DEMO, OpenOptions(threads=1, draft="none")) as llm:
        yield llm


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(DEMO, OpenOptions(threads=1, draft_nodes=64)) as llm:
        yield llm


@pytest.fixture(params=[0.0, 0.8])
def temperature(request: pytest.FixtureRequest) -> float:
    return float(request.param)


def params(temperature: float, **options: object) -> SamplingParams:
    return SamplingParams(**{"temperature": temperature, "seed": 3, "max_tokens": TOKENS} | options)  # type: ignore[arg-type]


def know(llm: LLM, output: Output) -> Scripted:
    """Let a model guess right what it would say."""
    drafter = knowing([llm.encode(PROMPT) + output.token_ids])
    llm.engine.speculator.drafters = [drafter]
    return drafter


def pieces(llm: LLM, wanted: SamplingParams) -> list[Piece]:
    return list(llm.stream(PROMPT, wanted))


def test_all_in_one_pass(plain: LLM, llm: LLM, temperature: float) -> None:
    [expected] = plain.generate([PROMPT], params(temperature))
    know(llm, expected)
    found = pieces(llm, params(temperature))
    assert [len(piece.token_ids) for piece in found] == [1, len(expected.token_ids) - 1]
    assert "".join(piece.text for piece in found) == expected.text
    assert [token for piece in found for token in piece.token_ids] == expected.token_ids
    assert found[-1].finish_reason == expected.finish_reason
    stats = found[-1].stats
    assert (stats.passes, stats.tokens) == (2, expected.stats.tokens)
    assert stats.tokens_per_pass == stats.tokens / 2


@pytest.mark.parametrize("max_tokens", quick([1, 7], [1, 2, 3, 7, 20]))
def test_max_tokens_within_a_run(plain: LLM, llm: LLM, temperature: float, max_tokens: int) -> None:
    [long] = plain.generate([PROMPT], params(temperature))
    [expected] = plain.generate([PROMPT], params(temperature, max_tokens=max_tokens))
    know(llm, long)
    [output] = llm.generate([PROMPT], params(temperature, max_tokens=max_tokens))
    assert same(output, expected)
    assert output.finish_reason == "length"
    assert output.stats.passes == (1 if max_tokens == 1 else 2)


@pytest.mark.parametrize("index", quick([4, 18], range(0, 30, 2)))
def test_a_stop_string_within_a_run(plain: LLM, llm: LLM, temperature: float, index: int) -> None:
    """Anywhere in the text, token's edge or not; what a pass drew beyond it never was."""
    [long] = plain.generate([PROMPT], params(temperature))
    stop = long.text[index : index + 3]
    if not stop:
        pytest.skip("the text is shorter")
    wanted = params(temperature, stop=[stop, "no such text"])
    [expected] = plain.generate([PROMPT], wanted)
    know(llm, long)
    [output] = llm.generate([PROMPT], wanted)
    assert same(output, expected)
    assert output.finish_reason == "stop"
    assert output.text == long.text[: long.text.index(stop)]
    assert output.stats.passes <= 2
    assert output.stats.tokens == expected.stats.tokens


def test_a_stop_string_that_is_never_complete(plain: LLM, llm: LLM) -> None:
    """What was held back for it comes with the end."""
    [long] = plain.generate([PROMPT], params(0))
    wanted = params(0, stop=long.text[-2:] + "never")
    know(llm, long)
    [output] = llm.generate([PROMPT], wanted)
    assert same(output, plain.generate([PROMPT], wanted)[0])
    assert output.text == long.text


def test_a_stop_token_within_a_run(plain: LLM, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted among the tokens drawn, and is not told."""
    [long] = plain.generate([PROMPT], params(0))
    for index in (0, 1, 5, 11):
        eos = long.token_ids[index]
        for model in (plain, llm):
            monkeypatch.setattr(model.engine, "_defaults", with_eos(model, eos))
        [expected] = plain.generate([PROMPT], params(0))
        know(llm, long)
        [output] = llm.generate([PROMPT], params(0))
        assert same(output, expected)
        assert output.token_ids == long.token_ids[: long.token_ids.index(eos)]
        assert (output.finish_reason, output.stats.tokens) == ("stop", expected.stats.tokens)
        assert output.stats.passes <= 2


def with_eos(model: LLM, eos: int) -> object:
    return replace(model.defaults, eos_token_ids=(eos,))


def test_a_stop_string_and_a_stop_token_in_one_run(plain: LLM, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that comes first ends the text."""
    [long] = plain.generate([PROMPT], params(0))
    eos = long.token_ids[12]
    for model in (plain, llm):
        monkeypatch.setattr(model.engine, "_defaults", with_eos(model, eos))
    for index in (1, 60):
        wanted = params(0, stop=long.text[index : index + 4])
        know(llm, long)
        assert same(llm.generate([PROMPT], wanted)[0], plain.generate([PROMPT], wanted)[0])


def test_closing_a_stream_early(plain: LLM, llm: LLM) -> None:
    [expected] = plain.generate([PROMPT], params(0))
    know(llm, expected)
    stream = llm.stream(PROMPT, params(0))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert llm.engine.scheduler.active == []
    assert same(llm.generate([PROMPT], params(0))[0], expected)


def test_several_prompts_that_stop_at_different_places(plain: LLM, llm: LLM, temperature: float) -> None:
    prompts = [PROMPT, "import os\n", "class Stack:\n    def push"]
    wanted = params(temperature, stop=["self", "return", "\n\n"])
    expected = [plain.generate([prompt], wanted)[0] for prompt in prompts]
    longs = [plain.generate([prompt], params(temperature))[0] for prompt in prompts]
    texts = [llm.encode(prompt) + long.token_ids for prompt, long in zip(prompts, longs, strict=True)]
    llm.engine.speculator.drafters = [knowing(texts, (5, 6))]
    for output, one in zip(llm.generate(prompts, wanted), expected, strict=True):
        assert same(output, one)


def same(output: Output, expected: Output) -> bool:
    assert output.token_ids == expected.token_ids
    assert output.text == expected.text
    assert output.finish_reason == expected.finish_reason
    return True


def test_what_is_printed(plain: LLM) -> None:
    """An answer is its text; what a Python prompt shows of it stays short, however many passes and tokens it took."""
    question = [{"role": "user", "content": "print it"}]
    wanted = params(0.8, max_tokens=200, ignore_eos=True, logprobs=20)
    answer = plain.chat(question, wanted)
    streamed = list(plain.chat_stream(question, wanted))
    assert str(answer) == answer.text == "".join(map(str, streamed))
    assert len(answer.token_ids) == 200
    assert re.fullmatch(
        r"Output\(text='.*', token_ids=\[(\d+, ){6}\.\.\.\], finish_reason='length', stats=Stats\(prompt_tokens=\d+, "
        r"tokens=200, passes=200, seconds=[\d.e-]+, first_token_seconds=[\d.e-]+, bytes_read=\d+, seed=3\)\)",
        repr(answer),
    )
    for shown in (answer, answer.stats, streamed[0], [answer, answer]):
        assert len(repr(shown)) < 800


def test_a_conversation_is_checked_at_once(plain: LLM) -> None:
    with pytest.raises(ChatTemplateError):
        plain.chat_stream([{"role": "nobody"}])


SPECIAL = ["<s>", "<PRE>", "<SUF>", "<MID>"]
BYTES = ["<0x0A>", "<0xE4>", "<0xBD>", "<0xA0>"]
WORDS = ["▁", "▁Hello", "▁world", "▁x", "return", "wor", "!", "▁▁▁▁"]
UNITS = [[word] for word in WORDS] + [["<0x0A>"], ["<0xE4>", "<0xBD>", "<0xA0>"], ["<SUF>"]]
"""Tokens that are whole characters together."""


def tokenizer_of(*decoder: decoders.Decoder) -> Tokenizer:
    backend = tokenizers.Tokenizer(
        models.BPE({token: index for index, token in enumerate([*SPECIAL, *BYTES, *WORDS])}, [])
    )
    backend.add_special_tokens(SPECIAL)
    backend.decoder = decoders.Sequence([*decoder])
    return Tokenizer(backend)


SENTENCEPIECE = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
STRIPPING = {
    "sentencepiece": tokenizer_of(*SENTENCEPIECE, decoders.Strip(" ", 1, 0)),
    "of many": tokenizer_of(*SENTENCEPIECE, decoders.Strip(" ", 8, 0)),
    "metaspace": tokenizer_of(decoders.Metaspace()),
    "not at all": tokenizer_of(*SENTENCEPIECE),
}


def ids_of(tokenizer: Tokenizer, tokens: list[str]) -> list[int]:
    found = map(tokenizer.token_id, tokens)
    return [token for token in found if token is not None]


def behind(
    tokenizer: Tokenizer, prompt: list[str], passes: list[list[str]], drawn: int = 0, *, continues: bool = True
) -> str:
    """The text of tokens behind a prompt, given what each pass brings, of which an earlier run had so many passes."""
    ids = [ids_of(tokenizer, tokens) for tokens in (prompt, *passes)]
    fake: Any = SimpleNamespace(seed=0)
    sequence = Sequence(ids[0], fake, 99, frozenset(), fake, token_ids=[*chain(*ids[1 : drawn + 1])])
    completion = Completion(sequence, tokenizer, continues=continues)
    stats: Any = SimpleNamespace(totals=lambda: None, parts=())
    for tokens in ids[drawn + 1 :]:
        sequence.token_ids += tokens
        sequence.after_pass(stats)
    sequence.finish_reason = "length"
    sequence.after_pass(stats)
    text = completion.output().text
    assert "".join(piece.text for piece in completion.pieces) == text
    return text


@pytest.mark.parametrize("name", STRIPPING)
@given(prompt=st.lists(st.sampled_from(UNITS), max_size=20), answer=st.lists(st.sampled_from(UNITS), max_size=8))
def test_text_goes_on_with_the_prompts(name: str, prompt: list[list[str]], answer: list[list[str]]) -> None:
    """However many tokens a pass brings, and wherever an earlier run ended."""
    tokenizer, before, tokens = STRIPPING[name], ["<s>", *chain(*prompt)], [*chain(*answer)]
    whole, first = (tokenizer.decode(ids_of(tokenizer, some)) for some in (before + tokens, before))
    assert first + behind(tokenizer, before, [tokens]) == whole
    for drawn in range(len(tokens) + 1):
        assert first + behind(tokenizer, before, [[token] for token in tokens], drawn) == whole


def test_the_space_between_a_prompt_and_its_answer() -> None:
    for name in ("sentencepiece", "of many", "metaspace"):
        tokenizer, world = STRIPPING[name], [["▁world", "!"]]
        assert behind(tokenizer, ["<s>", "▁Hello"], world) == " world!"
        assert behind(tokenizer, ["<s>", "<PRE>", "return", "<SUF>", "<MID>"], [["▁x"]]) == " x", "infilling"
        assert behind(tokenizer, ["<s>"], world) == "world!", "of nothing"
        assert behind(tokenizer, ["<s>", "▁Hello"], world, continues=False) == "world!", "as in a chat"


def test_a_line_that_the_prompt_ended_is_not_told_again() -> None:
    assert behind(STRIPPING["sentencepiece"], ["▁x", "<0x0A>"], [["▁▁▁▁"], ["return"]]) == "    return"


def test_a_character_that_the_answer_completes_is_told() -> None:
    """Where a prompt was given as tokens. Half a character that it does not complete was the prompt's."""
    tokenizer, prompt = STRIPPING["sentencepiece"], ["▁x", "<0xE4>"]
    assert behind(tokenizer, prompt, [["<0xBD>"], ["<0xA0>"], ["wor"]]) == "你wor"
    assert behind(tokenizer, prompt, [["wor"], ["!"]]) == "wor!"
    assert behind(tokenizer, prompt, []) == ""


def test_who_goes_on_with_a_prompt(plain: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text does, and token ids, which may be those of a chat, do not."""
    said: list[bool] = []

    class Recording(Completion):
        def __init__(self, *arguments: Any, continues: bool = False) -> None:
            said.append(continues)
            super().__init__(*arguments, continues=continues)

    for place in ("penstock.llm", "penstock.open_model"):
        monkeypatch.setattr(f"{place}.Completion", Recording)
    params = SamplingParams(max_tokens=1)
    plain.generate(["def", plain.encode("def")], params)
    list(plain.stream("def", params))
    plain.chat([{"role": "user", "content": "def"}], params)
    plain.cancel(plain.submit("def", params))
    assert said == [True, False, True, False, False]
