"""Tests of many parameters or examples, most of which run with --thorough only."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest
from hypothesis import settings


def quick(chosen: int | Container[Any], values: Iterable[Any]) -> list[Any]:
    """Parameters of a test: those that are chosen, or so many from the first, always run; the others are thorough."""
    found = []
    for number, value in enumerate(values):
        is_quick = number < chosen if isinstance(chosen, int) else value in chosen
        parts = value if isinstance(value, tuple) else (value,)
        found.append(value if is_quick else pytest.param(*parts, marks=pytest.mark.thorough))
    return found


def examples(count: int) -> int:
    """How many Hypothesis tries, of so many with --thorough."""
    return max(1, count * settings.default.max_examples // 100)
