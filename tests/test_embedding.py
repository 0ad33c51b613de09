from __future__ import annotations

import numpy as np
import pytest

from penstock import LLM
from penstock.errors import ContextError, UsageError
from penstock.models.rows import Rows, SequenceRows

TEXTS = ["def add(a, b):", "import os\n", "class A:\n    def b(self):\n        return 1\n"]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM.open("demo", draft="none")


def test_vectors_are_pooled_hidden_rows(llm: LLM) -> None:
    for text in TEXTS:
        tokens = llm.encode(text)
        cache = llm.memory.new_cache(len(tokens))
        layers = range(llm.config.num_hidden_layers)
        hidden = llm.model.final_norm(llm.chain.hidden(Rows([SequenceRows.plain(cache, tokens)]), layers))
        cache.truncate(0)
        for pooling, vector in (("mean", hidden.mean(axis=0)), ("last", hidden[-1])):
            [found] = llm.embed([text], pooling=pooling)  # type: ignore[arg-type]
            np.testing.assert_allclose(found, vector / np.linalg.norm(vector), rtol=1e-5, atol=1e-6)
            assert found.dtype == np.float32


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_company_and_chunks_change_nothing(llm: LLM, pooling: str) -> None:
    alone = [llm.embed([text], pooling=pooling)[0] for text in TEXTS]  # type: ignore[arg-type]
    together = llm.embed(TEXTS, pooling=pooling)  # type: ignore[arg-type]
    llm.engine.scheduler.max_rows, before = 5, llm.engine.scheduler.max_rows
    try:
        chunked = llm.embed(TEXTS, pooling=pooling)  # type: ignore[arg-type]
    finally:
        llm.engine.scheduler.max_rows = before
    for each, one, other in zip(alone, together, chunked, strict=True):
        np.testing.assert_array_equal(each, one)
        np.testing.assert_allclose(each, other, rtol=1e-6, atol=1e-7)


def test_nothing_is_left_behind(llm: LLM) -> None:
    taken = llm.memory.caches.taken()
    llm.embed(TEXTS)
    assert llm.memory.caches.taken() == taken


def test_texts_that_are_alike_are_near(llm: LLM) -> None:
    near, far = (
        llm.embed(["def add(a, b):\n    return a + b", "def sub(a, b):\n    return a - b"]),
        llm.embed(["# é à ü"]),
    )
    assert near[0] @ near[1] > near[0] @ far[0]


def test_what_cannot_be_embedded(llm: LLM) -> None:
    with pytest.raises(UsageError, match="takes a list"):
        llm.embed("text")
    with pytest.raises(UsageError, match="pooling='max' is unknown"):
        llm.embed(["a"], pooling="max")  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        llm.embed([[]])
    with pytest.raises(ContextError, match="longer than the context"):
        llm.embed([[1] * (llm.context + 1)])
