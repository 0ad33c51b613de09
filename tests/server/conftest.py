"""What several of these tests serve."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from penstock import LLM


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    """The demo model, without guesses, unless a file has one of its own."""
    with LLM.open("demo", memory="1GiB", draft="none") as llm:
        yield llm
