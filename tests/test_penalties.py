"""Penalties and biases, held to a plain reading of OpenAI's formula, and to guesses."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import LLM, SamplingParams
from penstock.compute.kernels import Kernels
from penstock.errors import UsageError
from penstock.sampling import Sampler, SamplingRule

KERNELS = Kernels(1)
VOCAB = 40
finite = st.floats(-2, 2, width=16)


@given(
    st.lists(st.floats(-20, 20, width=16), min_size=VOCAB, max_size=VOCAB),
    st.lists(st.integers(0, VOCAB - 1), max_size=12),
    st.integers(0, 6),
    finite,
    finite,
    st.dictionaries(st.integers(0, VOCAB + 5), st.floats(-100, 100, width=16), max_size=5),
)
def test_what_is_drawn(
    logits: list[float], seen: list[int], prompt: int, frequency: float, presence: float, bias: dict[int, float]
) -> None:
    rule = SamplingRule(
        temperature=0, frequency_penalty=frequency, presence_penalty=presence, logit_bias=tuple(sorted(bias.items()))
    )
    counts = Counter(seen[prompt:])
    expected = [
        logit - counts[token] * frequency - (counts[token] > 0) * presence + bias.get(token, 0)
        for token, logit in enumerate(np.float32(logits).tolist())
    ]
    sampler = Sampler(rule, 1, KERNELS, prompt=prompt)
    drawn = sampler(np.float32(logits), len(seen), seen)
    assert expected[drawn] == pytest.approx(max(expected), abs=1e-9)
    some = np.arange(3, VOCAB, 2)
    ranked, scores = sampler.rank(some, np.float32(logits)[some], len(seen), seen, 5)
    for token, score in zip(ranked.tolist(), scores.tolist(), strict=True):
        assert score == pytest.approx(expected[token] - expected[int(ranked[0])], abs=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"frequency_penalty": 1.2},
        {"presence_penalty": -1.0, "temperature": 0.9},
        {"logit_bias": {100: 5.0, 3: -100}, "temperature": 0.9, "frequency_penalty": 0.5},
    ],
)
def test_guesses_change_nothing(options: dict[str, Any]) -> None:
    params = SamplingParams(**{"temperature": 0, "seed": 3, "max_tokens": 40} | options)
    outputs = []
    for draft in ("none", None):
        with LLM.open("demo", draft=draft, draft_nodes=None if draft else 12) as llm:
            outputs.append(llm.generate(["def add(a, b):\n"], params)[0])
    assert outputs[0].token_ids == outputs[1].token_ids
    assert outputs[1].stats.guesses.nodes > 0


def test_a_banned_token_is_never_drawn() -> None:
    params = SamplingParams(temperature=0, max_tokens=12)
    with LLM.open("demo", draft="none") as llm:
        [plain] = llm.generate(["def add(a, b):\n"], params)
        banned = SamplingParams(temperature=0, max_tokens=12, logit_bias=dict.fromkeys(plain.token_ids[:3], -100))
        [other] = llm.generate(["def add(a, b):\n"], banned)
    assert not set(plain.token_ids[:3]) & set(other.token_ids)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"frequency_penalty": 2.1}, "frequency_penalty=2.1"),
        ({"presence_penalty": float("nan")}, "presence_penalty=nan"),
        ({"logit_bias": {1: 101}}, "logit_bias"),
        ({"logit_bias": {-1: 1}}, "a token of logit_bias"),
        ({"logit_bias": {"a": 1}}, "a token of logit_bias"),
        ({"logit_bias": 5}, "is no mapping"),
        ({"logit_bias": dict.fromkeys(range(1025), 0)}, "1025 tokens"),
    ],
)
def test_what_is_out_of_range(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        SamplingParams(**options)
