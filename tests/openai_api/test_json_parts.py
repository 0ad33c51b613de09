from __future__ import annotations

import json
import tracemalloc
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.thorough import examples
from penstock.logprobs import TokenLogprobs
from penstock.openai_api.json_parts import PART_CHARACTERS, Series, expanded, json_parts
from penstock.openai_api.logprobs import chat_logprobs, text_logprobs

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6)
SERIES = st.lists(VALUES).map(lambda items: Series(lambda: iter(items)))
NESTED = st.recursive(VALUES | SERIES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6)


@settings(max_examples=examples(50))
@given(NESTED)
def test_the_text_is_that_of_the_whole(value: Any) -> None:
    text = json.dumps(expanded(value), ensure_ascii=False, separators=(",", ":"))
    assert "".join(json_parts(value)) == text


def test_long_lists_come_in_parts() -> None:
    """Of the most that a request may ask for: eight answers with twenty likely tokens at each position."""
    tokens = [TokenLogprobs.of(i, -0.1 * i, ((j, -0.3 * j) for j in range(20))) for i in range(100)]
    answers = {"choices": [{"index": i, "logprobs": chat_logprobs(None, tokens)} for i in range(8)]}
    tracemalloc.start()
    length = 0
    for part in json_parts(answers):
        length += len(part)
        assert len(part) < PART_CHARACTERS + 4096
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert length > 10 * PART_CHARACTERS
    assert peak < 10 * PART_CHARACTERS


def test_both_forms_can_be_written_twice() -> None:
    tokens = [TokenLogprobs.of(1, -0.5, [(1, -0.5), (2, -1.5)])]
    for told in (chat_logprobs(None, tokens), text_logprobs(None, tokens)):
        assert expanded(told) == expanded(told) == json.loads("".join(json_parts(told)))
