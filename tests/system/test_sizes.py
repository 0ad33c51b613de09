from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import UsageError
from penstock.system.sizes import UNITS, parse_bytes, parse_rate

SPELLINGS = [spelling for unit in UNITS for spelling in {unit, unit.upper(), unit.title()}]


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("3G", 3 << 30),
        ("3g", 3 << 30),
        ("3Gi", 3 << 30),
        ("3 GiB", 3 << 30),
        ("3gb", 3 * 10**9),
        ("3 GB", 3 * 10**9),
        ("512m", 512 << 20),
        ("1.5k", 1536),
        ("0.5TiB", 1 << 39),
        ("2tb", 2 * 10**12),
        (" 7 b ", 7),
        ("4096", 4096),
        (4096, 4096),
        ("0.3GB", 300_000_000),
    ],
)
def test_as_people_write_them(text: str | int, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@given(st.decimals(0, 10**9, places=3), st.sampled_from(SPELLINGS), st.sampled_from(["", " ", "  "]))
def test_every_number_in_every_unit_is_exact(number: object, spelling: str, gap: str) -> None:
    text = f"{number:f}"
    assert parse_bytes(f"{text}{gap}{spelling}") == int(Fraction(text) * UNITS[spelling.lower()])


@given(st.integers(0, 2**60))
def test_a_plain_number_is_itself(number: int) -> None:
    assert parse_bytes(number) == parse_bytes(str(number)) == number


@given(st.text() | st.from_regex(r"[0-9.,+-]{1,4} ?[a-zA-Z]{0,4}", fullmatch=True))
def test_anything_else_is_an_error_in_two_lines(text: str) -> None:
    if re.fullmatch(r"\s*[0-9]+(\.[0-9]+)?\s*([kmgt](ib?|b)?|b?)\s*", text, re.ASCII | re.IGNORECASE):
        assert parse_bytes(text) >= 0
        return
    with pytest.raises(UsageError, match=r" is not a size.*\nWrite it like 512MiB, ") as caught:
        parse_bytes(text)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1G", "+1G", "1,5G", "1e9", "3 G B", "1..5G", "1 .5G", "0x10", "inf", "٣G", "3G\x00"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_bytes(text)


@pytest.mark.parametrize(("text", "unit"), [("3gigs", "gigs"), ("3GBit", "GBit"), ("5 pib", "pib"), ("3ib", "ib")])
def test_an_unknown_unit_is_named(text: str, unit: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)
    assert caught.value.problem == f"{text!r} is not a size: there is no unit {unit!r}."


class TestRates:
    @pytest.mark.parametrize(
        ("text", "rate"),
        [
            ("1Gbit", 125_000_000),
            ("1 Gbit/s", 125_000_000),
            ("100mbit", 12_500_000),
            ("2.5Gbit", 312_500_000),
            ("9600 bit", 1200),
            ("524MB", 524_000_000),
            (" 2 GB/s ", 2_000_000_000),
            ("1GiB", 1 << 30),
        ],
    )
    def test_as_people_write_them(self, text: str, rate: int) -> None:
        assert parse_rate(text) == rate

    @pytest.mark.parametrize("text", ["", "fast", "1Gbps", "-1Gbit", "1Gbit/h", "bit", "1/s/s", "1 Ebit"])
    def test_anything_else(self, text: str) -> None:
        with pytest.raises(UsageError) as caught:
            parse_rate(text)
        assert caught.value.problem == f"{text!r} is no speed."
        assert caught.value.remedy == "Write it like 524MB or 2GB a second, 1Gbit or 100Mbit."
