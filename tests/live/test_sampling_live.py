"""The filters keep the tokens that those of `transformers` keep, and penalise alike."""

from __future__ import annotations

import math

import numpy as np
import pytest

from penstock.compute.kernels import F32, F64, Kernels
from penstock.sampling import Sampler, SamplingRule

torch = pytest.importorskip("torch")
processors = pytest.importorskip("transformers.sequence.logits_process")


KERNELS = Kernels(1)
SEEN = [3, 3, 17, 90]
RULES = [
    SamplingRule(top_k=1),
    SamplingRule(top_k=7),
    SamplingRule(top_k=5000),
    SamplingRule(top_p=0.05),
    SamplingRule(top_p=0.5),
    SamplingRule(top_p=0.97),
    SamplingRule(min_p=0.02),
    SamplingRule(min_p=0.5),
    SamplingRule(temperature=0.3, top_p=0.9),
    SamplingRule(temperature=1.7, min_p=0.1),
    SamplingRule(temperature=0.6, top_k=40, top_p=0.9),
    SamplingRule(temperature=1.3, top_k=60, top_p=0.8, min_p=0.05),
    SamplingRule(repetition_penalty=1.3),
    SamplingRule(repetition_penalty=0.8, temperature=0.9, top_k=30, top_p=0.95),
]


def theirs(logits: F32, rule: SamplingRule) -> F64:
    """Scores after the processors that `generate` would run, in its order; -inf for what is dropped."""
    steps = [processors.RepetitionPenaltyLogitsProcessor(rule.repetition_penalty)]
    steps.append(processors.TemperatureLogitsWarper(rule.temperature))
    steps += [processors.TopKLogitsWarper(rule.top_k)] if rule.top_k else []
    steps += [processors.TopPLogitsWarper(rule.top_p)] if rule.top_p < 1 else []
    steps += [processors.MinPLogitsWarper(rule.min_p)] if rule.min_p else []
    scores = torch.tensor(logits)[None].double()
    for step in steps:
        scores = step(torch.tensor([SEEN]), scores)
    array: F64 = scores[0].numpy()
    return array


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("spread", [0.5, 3.0])
@pytest.mark.parametrize("vocab_size", [100, 3000])
def test_kept_tokens_and_their_scores(rule: SamplingRule, spread: float, vocab_size: int) -> None:
    logits = np.random.default_rng(vocab_size).standard_normal(vocab_size).astype(np.float32) * np.float32(spread)
    expected = theirs(logits, rule)
    sampler = Sampler(rule, 0, KERNELS)
    scores = sampler._penalised(logits.astype(np.float64), SEEN)
    scores = (scores - scores.max()) / rule.temperature
    kept = sampler._kept(scores)
    assert kept.tolist() == np.flatnonzero(np.isfinite(expected)).tolist()
    assert scores[kept] - scores.max() == pytest.approx(expected[kept] - expected.max(), abs=1e-12)


@pytest.mark.parametrize("rule", [SamplingRule(), RULES[10], RULES[13]], ids=str)
def test_draws_follow_the_distribution_of_transformers(rule: SamplingRule) -> None:
    """Pearson's statistic over the tokens that are kept, within five standard deviations of its mean."""
    logits, draws = np.random.default_rng(1).standard_normal(100).astype(np.float32) * np.float32(2), 20_000
    expected = draws * torch.softmax(torch.tensor(theirs(logits, rule)), 0).numpy()
    sampler = Sampler(rule, 11, KERNELS)
    counts = np.bincount([sampler(logits, position, SEEN) for position in range(draws)], minlength=100)
    kept = expected > 0
    assert counts[~kept].sum() == 0
    often = expected >= 5  # where the statistic's approximation holds; the rest counts as one
    pairs = [*zip(counts[often], expected[often], strict=True), (counts[~often].sum(), expected[~often].sum())]
    statistic = sum((count - mean) ** 2 / mean for count, mean in pairs if mean > 0)
    freedom = sum(mean > 0 for _, mean in pairs) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)
