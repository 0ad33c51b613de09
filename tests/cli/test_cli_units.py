from __future__ import annotations

import pytest

from penstock.cli.units import format_seconds, format_size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 ms"),
        (0.00123, "1.23 ms"),
        (0.0999, "99.90 ms"),
        (0.125, "0.125 s"),
        (1.256, "1.26 s"),
        (22.46, "22.5 s"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0.0 MB"), (250e6, "250.0 MB"), (10**9, "1.00 GB"), (15.009e9, "15.01 GB")]
)
def test_sizes(nbytes: float, text: str) -> None:
    assert format_size(nbytes) == text
