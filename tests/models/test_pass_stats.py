"""What parts of a pass took, added up."""

from __future__ import annotations

from dataclasses import fields

from penstock.models.pass_stats import PartStats, PassStats

NUMBERS = [field.name for field in fields(PartStats) if field.name not in ("name", "node")]


def test_all_numbers_of_a_part_add_up() -> None:
    one = PartStats("layer 1", **{name: index for index, name in enumerate(NUMBERS, 1)}, node="two")
    both = one.plus(one)
    assert (both.name, both.node) == ("layer 1", "two")
    assert [getattr(both, name) for name in NUMBERS] == [2 * index for index in range(1, 1 + len(NUMBERS))]


def test_totals_have_what_every_part_took() -> None:
    one = PartStats("head", 1, 2.0, 3.0, 4.0, 5, 6, 7.0, "two")
    totals = PassStats(1, (one, one), 9.0, 9.0).totals()
    assert (totals.bytes_read, totals.network_seconds, totals.experts_read) == (2, 14.0, 12)
    assert totals.logits
