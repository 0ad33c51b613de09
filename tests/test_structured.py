"""Answers that are held to a form: the same with guesses and without, alone and in company, interrupted and not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.cases import DEMO
from helpers.thorough import quick
from penstock import LLM, SamplingParams
from penstock.completion import Output
from penstock.errors import TokenizerError, UsageError
from penstock.options import OpenOptions
from penstock.packing.pack import pack
from penstock.sampling import Sampler

PROMPT = "def add(a, b):\n    return a + b\n\n\nclass Sub:\n"
FORMS: dict[str, dict[str, Any]] = {
    "object": {
        "schema": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "kind": {"enum": ["method", "module", "class"]},
                "sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
            },
            "required": ["name", "kind", "sizes"],
            "additionalProperties": False,
        }
    },
    "unlikely": {"regex": "((zq|xj|qqz|ÿ){1,3},){3}[A-Z]{2,4};"},
    "choice": {"regex": "(positive|negative|neutral)"},
    "fixed": {"regex": "the one answer that there is"},
    "grammar": {"grammar": 'start: expr\nexpr: NUMBER | "(" expr OP expr ")"\nNUMBER: /[0-9]{1,3}/\nOP: /[-+*]/'},
}


def params(form: str, temperature: float = 0, **options: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": temperature, "seed": 5, "max_tokens": 60} | FORMS[form] | options)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "demo"
    pack(DEMO, path)
    return path


@pytest.fixture(scope="module")
def plain() -> Iterator[LLM]:
    with LLM(DEMO, OpenOptions(threads=1, draft="none")) as llm:
        yield llm


@pytest.fixture(scope="module")
def guessing(packed: Path) -> Iterator[LLM]:
    with LLM(packed, OpenOptions(threads=1, draft_nodes=12)) as llm:
        yield llm


def one(llm: LLM, wanted: SamplingParams, prompt: str = PROMPT) -> Output:
    return llm.generate([prompt], wanted)[0]


@pytest.mark.parametrize("temperature", [0, *quick([], [0.8])])
@pytest.mark.parametrize("form", FORMS)
def test_guesses_change_nothing(plain: LLM, guessing: LLM, form: str, temperature: float) -> None:
    for seed in (1, 2):
        expected = one(plain, params(form, temperature, seed=seed))
        found = one(guessing, params(form, temperature, seed=seed))
        assert (found.token_ids, found.text, found.finish_reason) == (
            expected.token_ids,
            expected.text,
            expected.finish_reason,
        )
        assert found.stats.passes <= expected.stats.passes


@pytest.mark.parametrize("form", ["unlikely", "choice", "fixed"])
def test_text_that_an_expression_matches(plain: LLM, form: str) -> None:
    output = one(plain, params(form, ignore_eos=form == "fixed"))
    assert output.finish_reason == "stop"
    assert re.fullmatch(FORMS[form]["regex"], output.text)


def test_json_of_a_schema(plain: LLM) -> None:
    answer = json.loads(one(plain, params("object")).text)
    assert list(answer) == ["name", "kind", "sizes"]
    assert answer["kind"] in ("method", "module", "class")
    assert 2 <= len(answer["sizes"]) <= 3


def test_what_is_forced_costs_no_pass(plain: LLM) -> None:
    output = one(plain, params("fixed"))
    assert (output.stats.passes, output.text) == (0, "the one answer that there is")
    assert one(plain, params("object")).stats.passes < len(one(plain, params("object")).token_ids)


def test_greedy_guesses_know_only_the_likeliest_tokens(guessing: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none of them may be drawn, the next pass tells: without that, the draw would not be the model's."""
    told: list[bool] = []
    best = Sampler.best

    def spy(*arguments: Any) -> int | None:
        token = best(*arguments)
        told.append(token is not None)
        return token

    monkeypatch.setattr(Sampler, "best", spy)
    one(guessing, params("unlikely"))
    assert not all(told)


@pytest.mark.parametrize("most", range(1, 24, 4))
def test_an_answer_ends_where_it_must(plain: LLM, guessing: LLM, most: int) -> None:
    """Also amid what is forced."""
    whole = one(plain, params("object"))
    for llm in (plain, guessing):
        cut = one(llm, params("object", max_tokens=most))
        assert (cut.token_ids, cut.finish_reason) == (whole.token_ids[:most], "length")


def test_probabilities_are_told_of_every_token(plain: LLM, guessing: LLM) -> None:
    for llm in (plain, guessing):
        output = one(llm, params("object", logprobs=2))
        assert [told.token for told in output.logprobs] == output.token_ids == one(plain, params("object")).token_ids
        forced = [told for told in output.logprobs if told.logprob == 0]
        assert forced
        assert all(told.top == ((told.token, 0.0),) for told in forced)


def test_answers_of_all_forms_share_passes(guessing: LLM, plain: LLM) -> None:
    wanted = [params(form, temperature) for form in FORMS for temperature in (0, 0.7)]
    expected = [one(plain, each) for each in wanted]
    completions = [guessing.submit(PROMPT, each) for each in wanted]
    for _ in guessing.drive(completions):
        pass
    for completion, alone in zip(completions, expected, strict=True):
        assert completion.output().token_ids == alone.token_ids


@pytest.mark.parametrize("form", ["object", "grammar"])
def test_an_answer_that_was_interrupted_goes_on(plain: LLM, guessing: LLM, form: str) -> None:
    """After every pass."""
    expected, drawn = one(plain, params(form, 0.8)).token_ids, []
    for piece in guessing.stream(PROMPT, params(form, 0.8)):
        drawn += piece.token_ids
        completion = plain.submit(PROMPT, params(form, 0.8), drawn=drawn)
        for _ in plain.drive([completion]):
            pass
        assert completion.output().token_ids == expected


def test_stop_strings(plain: LLM) -> None:
    output = one(plain, params("object", stop='"kind"'))
    assert output.finish_reason == "stop"
    assert output.text.endswith(", ")
    assert '"kind"' not in output.text


def test_what_cannot_be_asked(plain: LLM, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be followed"):
        plain.generate([PROMPT], SamplingParams(schema={"type": "nothing"}))
    with pytest.raises(UsageError, match="given together"):
        SamplingParams(schema={}, regex="a")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(DEMO / name)
    with LLM.open(tmp_path) as textless, pytest.raises(TokenizerError, match="no tokenizer"):
        textless.generate([[1, 2]], SamplingParams(regex="a"))
