"""What tests of sessions share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from penstock import LLM


@pytest.fixture(scope="module")
def no_fsync() -> Iterator[None]:
    """Nobody pulls the plug here, so nothing has to wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM.open("demo", draft="none") as llm:
        yield llm
