from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.thorough import examples
from penstock import SamplingParams, _core
from penstock.checkpoints.generation_config import GenerationDefaults
from penstock.compute.kernels import Kernels, gumbel
from penstock.errors import NumericsError, UsageError
from penstock.sampling import Sampler, SamplingRule

KERNELS = Kernels(1)
LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=60)
RULES = st.builds(
    SamplingRule,
    temperature=st.floats(0, 2),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 70),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.5, 2),
)


def draw(
    logits: Sequence[float], rule: SamplingRule, seed: int = 0, position: int = 0, seen: Sequence[int] = ()
) -> int:
    return Sampler(rule, seed, KERNELS)(np.array(logits, np.float32), position, seen)


def literal_draw(logits: Sequence[float], rule: SamplingRule, seed: int, position: int, seen: Sequence[int]) -> int:
    """The definition, token by token."""
    scores = [float(np.float32(x)) for x in logits]
    for token in set(seen):
        score, penalty = scores[token], rule.repetition_penalty
        scores[token] = score * penalty if score < 0 else score / penalty
    if rule.temperature == 0:
        return scores.index(max(scores))
    scores = [(score - max(scores)) / rule.temperature for score in scores]  # which may make two of them equal
    ranked = sorted(range(len(scores)), key=lambda token: (-scores[token], token))[: rule.top_k or None]
    total = sum(math.exp(scores[token]) for token in ranked)
    kept, covered = [], 0.0
    for token in ranked:
        if kept and covered >= rule.top_p * total:
            break
        kept.append(token)
        covered += math.exp(scores[token])
    kept = [token for token in kept if math.exp(scores[token]) >= rule.min_p]
    return max(kept, key=lambda token: (scores[token] + gumbel(seed, 0, position, [token])[0], -token))


@settings(max_examples=examples(200))
@given(LOGITS, RULES, st.integers(0, 2**64 - 1), st.integers(0, 2**31), st.data())
def test_a_draw_is_what_the_definition_says(
    logits: list[float], rule: SamplingRule, seed: int, position: int, data: Any
) -> None:
    seen = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=5))
    assert draw(logits, rule, seed, position, seen) == literal_draw(logits, rule, seed, position, seen)


@given(LOGITS)
def test_greedy_takes_the_largest_and_of_equal_ones_the_lowest_id(logits: list[float]) -> None:
    assert draw(logits, SamplingRule(temperature=0)) == logits.index(max(logits))


def test_equal_scores_rank_by_id() -> None:
    logits = [1.0, 2.0, 2.0, 2.0, 1.0]
    drawn = {draw(logits, SamplingRule(top_k=2), position=position) for position in range(200)}
    assert drawn == {1, 2}
    assert draw(logits, SamplingRule(temperature=0)) == 1


def chi_square(logits: list[float], rule: SamplingRule, expected: Sequence[float], draws: int) -> float:
    """Pearson's statistic of draws at successive positions; tokens that are not expected must not come."""
    sampler = Sampler(rule, 1234, KERNELS)
    array = np.array(logits, np.float32)
    counts = np.bincount([sampler(array, position, ()) for position in range(draws)], minlength=len(logits))
    expected_counts = draws * np.array(expected)
    possible = expected_counts > 0
    assert counts[~possible].sum() == 0
    return float(((counts - expected_counts)[possible] ** 2 / expected_counts[possible]).sum())


LIMIT = 27.86  # of chi-square with 4 degrees of freedom: exceeded by chance once in 75,000


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (SamplingRule(), np.exp([0.0, 1.0, -1.0, 0.5, 2.0])),
        (SamplingRule(temperature=0.5), np.exp([0.0, 2.0, -2.0, 1.0, 4.0])),
        (SamplingRule(temperature=2), np.exp([0.0, 0.5, -0.5, 0.25, 1.0])),
        (SamplingRule(top_k=3), [0, math.e, 0, math.exp(0.5), math.exp(2)]),
        (SamplingRule(top_p=0.6), [0, math.e, 0, 0, math.exp(2)]),
        (SamplingRule(min_p=0.3), [0, math.e, 0, 0, math.exp(2)]),
    ],
    ids=["plain", "cold", "hot", "top-k", "top-p", "min-p"],
)
def test_draws_follow_the_softmax_of_what_is_kept(rule: SamplingRule, expected: Sequence[float]) -> None:
    shares = np.array(expected) / np.sum(expected)
    assert chi_square([0.0, 1.0, -1.0, 0.5, 2.0], rule, shares, 10_000) < LIMIT


def test_draws_with_a_penalty_follow_the_softmax_of_the_penalised_logits() -> None:
    sampler, logits = Sampler(SamplingRule(repetition_penalty=2), 5, KERNELS), np.array([1, -1, 0.5], np.float32)
    counts = np.bincount([sampler(logits, position, [0, 1, 0]) for position in range(10_000)], minlength=3)
    expected = np.exp([0.5, -2, 0.5]) / np.sum(np.exp([0.5, -2, 0.5])) * 10_000
    assert ((counts - expected) ** 2 / expected).sum() < LIMIT


def test_a_draw_depends_on_its_own_key_alone() -> None:
    logits = np.zeros(1000, np.float32)

    def drawn(seed: int, choice: int, position: int) -> int:
        return Sampler(SamplingRule(), seed, KERNELS, choice)(logits, position, ())

    keys = [(seed, choice, position) for seed in (0, 1, 2**40) for choice in (0, 1) for position in (0, 1, 70_000)]
    tokens = [drawn(*key) for key in keys]
    assert tokens == [drawn(*key) for key in reversed(keys)][::-1]
    assert len(set(tokens)) > len(keys) - 3


def test_a_token_left_out_leaves_the_other_draws_alone() -> None:
    """Noise belongs to tokens, so filters move a draw only where they take its token away."""
    logits = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    allowed = set(np.argsort(-logits)[:10].tolist())
    moved = 0
    for position in range(100):
        token, filtered = (draw(list(logits), SamplingRule(top_k=k), position=position) for k in (0, 10))
        assert filtered in allowed
        assert token == filtered or token not in allowed
        moved += token != filtered
    assert 0 < moved < 100


def test_every_instruction_set_keeps_and_draws_the_same(isa: str) -> None:
    rng = np.random.default_rng(3)
    rule = SamplingRule(temperature=0.7, top_p=0.9, top_k=500, min_p=0.01, repetition_penalty=1.3)
    for position in range(20):
        logits = rng.standard_normal(3000).astype(np.float32) * 4
        token = Sampler(rule, 9, KERNELS)(logits, position, [1, 2, 3])
        before = _core.isa()
        _core.set_isa(_core.isas()[0])
        assert token == Sampler(rule, 9, KERNELS)(logits, position, [1, 2, 3])
        _core.set_isa(before)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(wrong: float) -> None:
    for rule in (SamplingRule(), SamplingRule(temperature=0)):
        with pytest.raises(NumericsError) as caught:
            draw([0.0, wrong, 1.0], rule, position=7)
        assert "logits for position 7 are not finite" in caught.value.problem
        assert "damaged" in caught.value.remedy
    with pytest.raises(NumericsError, match="position 0"):
        draw([-math.inf, -math.inf], SamplingRule())


def test_tokens_ruled_out_by_minus_infinity_are_never_drawn() -> None:
    logits = [0.0, -math.inf, 0.0, -math.inf]
    assert {draw(logits, SamplingRule(), position=position) for position in range(50)} == {0, 2}


@given(LOGITS, RULES)
def test_the_logits_are_left_as_they_were(logits: list[float], rule: SamplingRule) -> None:
    array = np.array(logits, np.float32)
    before = array.copy()
    Sampler(rule, 0, KERNELS)(array, 0, [0])
    assert (array == before).all()


@pytest.mark.parametrize(
    ("field", "wrong", "remedy"),
    [
        ("temperature", -0.1, "Give a number at least 0 and at most 2."),
        ("temperature", 2.1, "Give a number at least 0 and at most 2."),
        ("temperature", math.nan, "Give a number at least 0 and at most 2."),
        ("temperature", "1", "Give a number at least 0 and at most 2."),
        ("top_p", 0, "Give a number above 0 and at most 1."),
        ("top_p", 1.01, "Give a number above 0 and at most 1."),
        ("top_k", -1, "Give a whole number at least 0."),
        ("top_k", 1.5, "Give a whole number at least 0."),
        ("top_k", True, "Give a whole number at least 0."),
        ("min_p", -0.1, "Give a number at least 0 and at most 1."),
        ("min_p", 1.1, "Give a number at least 0 and at most 1."),
        ("repetition_penalty", 0, "Give a number above 0."),
        ("seed", -1, "Give a whole number at least 0 and at most 18446744073709551615."),
        ("seed", 2**64, "Give a whole number at least 0 and at most 18446744073709551615."),
        ("max_tokens", 0, "Give a whole number at least 1."),
        ("max_tokens", 2.0, "Give a whole number at least 1."),
    ],
)
def test_parameters_out_of_range(field: str, wrong: Any, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        SamplingParams(**{field: wrong})
    assert caught.value.problem == f"{field}={wrong!r} is out of range."
    assert caught.value.remedy == remedy


def test_an_infinite_penalty_is_out_of_range() -> None:
    """It would make NaN of a logit that is 0."""
    with pytest.raises(UsageError, match="repetition_penalty=inf is out of range"):
        SamplingParams(repetition_penalty=math.inf)


@pytest.mark.parametrize("wrong", ["", [""], ["a", ""], [1], 5, [None]])
def test_stop_strings_are_text(wrong: Any) -> None:
    with pytest.raises(UsageError) as caught:
        SamplingParams(stop=wrong)
    assert caught.value.problem == f"stop={wrong!r}: stop strings are non-empty text."
    assert caught.value.remedy == "Give a string or a list of them."


def test_one_stop_string_or_several() -> None:
    assert SamplingParams(stop="end").stops == ("end",)
    assert SamplingParams(stop=["a", "b"]).stops == ("a", "b")
    assert SamplingParams().stops == ()


def test_limits_of_the_ranges_are_within_them() -> None:
    SamplingParams(temperature=2, top_p=1, min_p=1, top_k=0, seed=2**64 - 1, max_tokens=1, repetition_penalty=1e-3)
    SamplingParams(temperature=0, top_p=1e-9, min_p=0, top_k=10**6, seed=0)


GREEDY_MODEL = GenerationDefaults(temperature=0.6, top_p=0.9)
SAMPLED_MODEL = GenerationDefaults(do_sample=True, temperature=0.6, top_p=0.9, top_k=40, repetition_penalty=1.1)


@pytest.mark.parametrize(
    ("params", "defaults", "rule"),
    [
        (SamplingParams(), GenerationDefaults(), SamplingRule(temperature=0)),
        (SamplingParams(), GREEDY_MODEL, SamplingRule(temperature=0, top_p=0.9)),
        (SamplingParams(temperature=0.3), GREEDY_MODEL, SamplingRule(temperature=0.3, top_p=0.9)),
        (SamplingParams(), SAMPLED_MODEL, SamplingRule(0.6, 0.9, 40, 0.0, 1.1)),
        (SamplingParams(temperature=0), SAMPLED_MODEL, SamplingRule(0.0, 0.9, 40, 0.0, 1.1)),
        (SamplingParams(top_k=0, top_p=1, min_p=0.1), SAMPLED_MODEL, SamplingRule(0.6, 1, 0, 0.1, 1.1)),
        (SamplingParams(), GenerationDefaults(do_sample=True), SamplingRule()),
    ],
)
def test_open_fields_are_the_checkpoints(
    params: SamplingParams, defaults: GenerationDefaults, rule: SamplingRule
) -> None:
    assert params.rule(defaults) == rule


class TestRank:
    """Guessing a draw with the noise of the draw itself."""

    SOME_RULES: tuple[dict[str, float], ...] = (
        {"temperature": 0.0},
        {"temperature": 0.0, "repetition_penalty": 1.5},
        {},
        {"temperature": 0.7},
        {"temperature": 1e-30},
        {"temperature": 2.0, "repetition_penalty": 1.3},
        {"top_k": 5},
        {"top_k": 1},
        {"top_p": 0.6},
        {"top_p": 1e-9},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"top_k": 20, "top_p": 0.8, "min_p": 0.01, "temperature": 0.8, "repetition_penalty": 0.7},
    )

    @pytest.mark.parametrize("rule", SOME_RULES, ids=str)
    def test_the_first_is_the_draw_where_all_logits_are_exact(self, rule: dict[str, float]) -> None:
        rng = np.random.default_rng(0)
        for seed in range(60):
            logits = 3 * rng.standard_normal(40).astype(np.float32)
            sampler = Sampler(SamplingRule(**rule), seed, KERNELS)  # type: ignore[arg-type]
            seen = rng.integers(0, 40, 12).tolist()
            tokens, scores = sampler.rank(np.arange(40), logits, 7, seen, 8)
            assert tokens[0] == sampler(logits, 7, seen)
            assert len(tokens) == len(scores) <= 8
            assert len(set(tokens.tolist())) == len(tokens)
            assert scores[0] == 0
            assert (np.diff(scores) <= 0).all()

    @given(LOGITS, RULES, st.integers(0, 2**64 - 1), st.integers(0, 10**6), st.data())
    def test_the_first_is_the_draw(
        self, logits: list[float], rule: SamplingRule, seed: int, position: int, data: Any
    ) -> None:
        seen = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=5))
        sampler, row = Sampler(rule, seed, KERNELS), np.array(logits, np.float32)
        tokens, scores = sampler.rank(np.arange(len(row)), row, position, seen, 3)
        assert tokens[0] == sampler(row, position, seen)
        assert not np.isnan(scores).any()

    @pytest.mark.parametrize("rule", SOME_RULES, ids=str)
    def test_without_filters_they_rank_as_without_a_rule(self, rule: dict[str, float]) -> None:
        logits = np.random.default_rng(1).standard_normal(40).astype(np.float32)
        free = {name: value for name, value in rule.items() if name not in ("top_k", "top_p", "min_p")}
        ranked, plain = (
            Sampler(SamplingRule(**changes), 3, KERNELS).rank(np.arange(40), logits, 7, [1, 2], 40, filters=filters)  # type: ignore[arg-type]
            for changes, filters in ((rule, False), (free, True))
        )
        assert ranked[0].tolist() == plain[0].tolist()
        assert ranked[1].tolist() == plain[1].tolist()
        assert len(ranked[0]) == 40

    @pytest.mark.parametrize("rule", SOME_RULES, ids=str)
    def test_the_order_is_that_of_draws(self, rule: dict[str, float]) -> None:
        """The second is what would be drawn if the first could not be, as far as a rule keeps it."""
        rng = np.random.default_rng(2)
        filtered = {"top_k", "top_p", "min_p"} & rule.keys()
        for seed in range(0 if filtered else 30):
            logits = rng.standard_normal(40).astype(np.float32)
            sampler = Sampler(SamplingRule(**rule), seed, KERNELS)  # type: ignore[arg-type]
            tokens, _ = sampler.rank(np.arange(40), logits, 0, [3], 2)
            logits[tokens[0]] = -1e30
            assert sampler(logits, 0, [3]) == tokens[1]

    def test_a_few_tokens_that_the_draw_is_among(self) -> None:
        """Their noise is that of their ids, whatever others are asked about."""
        rng = np.random.default_rng(3)
        for seed in range(50):
            logits = rng.standard_normal(200).astype(np.float32)
            sampler = Sampler(SamplingRule(temperature=0.8, repetition_penalty=1.2), seed, KERNELS)
            drawn = sampler(logits, 5, [7, 8])
            some = np.union1d(rng.integers(0, 200, 10), [drawn])
            assert sampler.rank(some, logits[some], 5, [7, 8], 3)[0][0] == drawn

    def test_scores_say_by_how_much(self) -> None:
        """At temperature 0 in logits, else in logits / T and noise."""
        logits = np.array([1, 4, 2, -1], np.float32)
        tokens, scores = Sampler(SamplingRule(temperature=0), 0, KERNELS).rank(np.arange(4), logits, 0, (), 3)
        assert tokens.tolist() == [1, 2, 0]
        assert scores.tolist() == [0, -2, -3]
        tokens, scores = Sampler(SamplingRule(temperature=0.5), 9, KERNELS).rank(np.arange(4), logits, 6, (), 4)
        sums = logits / 0.5 + gumbel(9, 0, 6, np.arange(4))
        assert tokens.tolist() == np.argsort(-sums).tolist()
        assert scores.tolist() == pytest.approx((sums[tokens] - sums.max()).tolist())

    def test_logits_stay_as_they_were(self) -> None:
        logits = np.array([1, 4, 2, -1], np.float32)
        Sampler(SamplingRule(repetition_penalty=2.0), 0, KERNELS).rank(np.arange(4), logits, 0, [0, 1], 3)
        assert logits.tolist() == [1, 4, 2, -1]
