from __future__ import annotations

import histogram
import numpy as np
import pytest
from histogram import CENTER, ENTROPIES, EXPONENTS, SHARES, Law, Line, draw, entropy, exponent_shares, law, shares


class TestLaw:
    def test_the_shares_are_the_published_ones(self) -> None:
        assert shares(law("all").pooled()) == pytest.approx(SHARES, abs=1e-9)

    def test_the_corrections_are_small_where_the_weights_are(self) -> None:
        chosen = law("all")
        moved = np.abs(np.log(chosen.factors)) @ chosen.pooled()
        assert moved < 0.02

    @pytest.mark.parametrize("kind", ENTROPIES)
    def test_the_entropies_are_the_published_ones(self, kind: str) -> None:
        assert entropy(law(kind).pooled()) == pytest.approx(ENTROPIES[kind], abs=0.005)

    def test_a_gaussian(self) -> None:
        p = Law(0, 0).pooled()
        assert p.sum() == pytest.approx(1)
        assert p[list(EXPONENTS).index(0)] == pytest.approx(0.27181, abs=1e-5)  # 1 <= |x| < 2
        assert entropy(p) == pytest.approx(2.545, abs=1e-3)


class TestDraw:
    def test_one_by_one_follows_the_pooled_law(self) -> None:
        words = draw(law("all"), (64, 4096), independent=True)
        expected = np.zeros(256)
        expected[CENTER + EXPONENTS] = law("all").pooled()
        deviations = np.sqrt(expected * (1 - expected) / words.size)
        assert (np.abs(exponent_shares(words) - expected) <= 5 * deviations + 1 / words.size).all()

    def test_rows_differ_in_scale(self) -> None:
        words = draw(Law(0, 0.5), (64, 4096))
        means = ((words >> 7) & 0xFF).mean(1)
        assert means.std() == pytest.approx(0.5, rel=0.3)
        assert ((draw(Law(0, 0.5), (64, 4096), independent=True) >> 7) & 0xFF).mean(1).std() < 0.1

    def test_sign_and_mantissa_are_uniform(self) -> None:
        words = draw(law("all"), (64, 4096))
        counts = np.bincount(words.reshape(-1) & 0x7F, minlength=128)
        assert len(counts) == 128
        assert np.abs(counts / words.size * 128 - 1).max() < 0.15
        assert (words >> 15).mean() == pytest.approx(0.5, abs=0.01)

    def test_the_seed_decides(self) -> None:
        one, same, other = (draw(law("all"), (2, 64), seed=seed) for seed in (1, 1, 2))
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)


class TestReport:
    def test_a_pass_is_weighted_by_kinds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(histogram, "WEIGHTS", {"MLP": 3, "lm_head": 1})
        lines = [Line(kind, False, 1, 2.5, {}, bits) for kind, bits in (("all", 12.0), ("MLP", 10.0))]
        assert histogram.over_a_pass([*lines, Line("MLP", True, 1, 2.5, {}, 99)], False) == 10.5

    def test_the_8b_has_so_many_weights_in_a_pass(self) -> None:
        mlp, attention, head = 3 * 4096 * 14336, (4096 + 1024) * 4096 * 2, 128256 * 4096
        assert sum(histogram.WEIGHTS.values()) == 32 * (mlp + attention) + head

    def test_packed_bytes_count_every_chunk(self) -> None:
        words = draw(law("all"), (300, 512))  # chunks of 1,024 rows
        alone = histogram.packed_bytes(words)
        assert 10.5 < alone * 8 / words.size < 11.2
        several = histogram.packed_bytes(words, "embed_tokens.weight")  # chunks of 32 rows
        assert alone < several < alone * 1.05
