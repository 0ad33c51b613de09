"""Tokens that come out of speculation are distributed as the target says: a chi-square test over many seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from helpers.assembled import new_cache, open_engine
from helpers.checkpoints import tiny_config, write_checkpoint
from helpers.guessing import Scripted, finish, speculate
from helpers.thorough import quick
from penstock import SamplingParams
from penstock.compute.kernels import F32
from penstock.engine import engine as engine_module
from penstock.engine.engine import Engine
from penstock.models.rows import Rows, SequenceRows
from penstock.speculate.tree import Tree

F64 = npt.NDArray[np.float64]

VOCAB, LENGTH, SEEDS, TOGETHER = 10, 4, 2000, 100
PROMPT = [3, 1, 2]
LEAST_P = 1e-4


def pairwise() -> Scripted:
    """Guesses by a table of neighbours that knows little of the target, with the noise of the draw itself."""
    table = np.random.default_rng(0).standard_normal((VOCAB, VOCAB)).astype(np.float32)

    def say(tree: Tree, node: int) -> list[tuple[int, float]]:
        position = len(tree.context) + tree.depth(node)
        ranked, scores = tree.sampler.rank(np.arange(VOCAB), table[tree.tokens[node]], position, (), 3)
        chances = np.exp(scores) / np.exp(scores).sum()
        return list(zip(ranked.tolist(), chances.tolist(), strict=True))

    return Scripted(say)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, tiny_config(vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=1))
    with open_engine(folder, resident=1, piece_bytes=1 << 20) as engine:
        speculate(engine, [pairwise()], fixed=6)
        yield engine


@pytest.fixture(scope="module")
def distributions(target: Engine) -> list[F64]:
    """Of the tokens at the first positions together: [VOCAB], [VOCAB, VOCAB], ..., each adding up to 1."""
    tokens, parents, fronts = [PROMPT[-1]], [-1], [[0]]
    for _ in range(LENGTH - 1):
        fronts.append([])
        for node in fronts[-2]:
            for token in range(VOCAB):
                fronts[-1].append(len(tokens))
                tokens.append(token)
                parents.append(node)
    cache = new_cache(target)
    target.chain.run(Rows([SequenceRows.plain(cache, PROMPT[:-1])]))
    cache.truncate(len(PROMPT) - 1)
    logits, _ = target.chain.run(Rows([SequenceRows.tree(cache, tokens, parents)]))
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares = weights / weights.sum(axis=1, keepdims=True)
    joint, found = np.ones(1), []
    for front in fronts:
        joint = (joint[:, None] * shares[front]).ravel()
        found.append(joint.reshape((VOCAB,) * (len(found) + 1)))
    return found


def emitted(target: Engine, seeds: int = SEEDS) -> npt.NDArray[np.int64]:
    """[seeds, LENGTH] tokens."""
    rows: list[list[int]] = []
    for first in range(0, seeds, TOGETHER):
        params = [SamplingParams(temperature=1, seed=seed, ignore_eos=True) for seed in range(first, first + TOGETHER)]
        # One token more than is looked at, so that guesses at all of these may be right.
        generations = [target.add(PROMPT, each, LENGTH + 1) for each in params]
        finish(target, generations)
        rows += [generation.token_ids[:LENGTH] for generation in generations]
        assert any(generation.guesses.accepted for generation in generations)
        [drafter] = target.speculator.drafters
        assert isinstance(drafter, Scripted)
        drafter.clear()
    return np.array(rows)


def survival(statistic: float, freedom: int) -> float:
    """The chance that a chi-square variable of so many degrees of freedom is larger: Q(freedom / 2, statistic / 2)."""
    x, a = statistic / 2, 0.5 if freedom % 2 else 1.0
    q = math.erfc(math.sqrt(x)) if freedom % 2 else math.exp(-x)
    while a < freedom / 2:
        q += math.exp(a * math.log(x) - x - math.lgamma(a + 1)) if x else 0.0
        a += 1
    return q


def p_value(counts: npt.NDArray[np.int64], expected: F64) -> float:
    """Cells of which fewer than 5 are expected count as one."""
    few = expected < 5
    counts = np.append(counts[~few], counts[few].sum())
    expected = np.append(expected[~few], expected[few].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    return survival(float(((counts - expected) ** 2 / expected).sum()), len(expected) - 1)


def p_values(tokens: npt.NDArray[np.int64], distributions: Sequence[F64]) -> dict[str, float]:
    """Of the tokens at each position, and of neighbours together."""
    found = {}
    for position in range(LENGTH):
        joint = distributions[position]
        share = joint.sum(axis=tuple(range(position)))
        counts = np.bincount(tokens[:, position], minlength=VOCAB)
        found[f"position {position + 1}"] = p_value(counts, len(tokens) * share)
        if position:
            pairs = joint.sum(axis=tuple(range(position - 1))).ravel()
            counts = np.bincount(tokens[:, position - 1] * VOCAB + tokens[:, position], minlength=VOCAB**2)
            found[f"positions {position} and {position + 1}"] = p_value(counts, len(tokens) * pairs)
    return found


@pytest.mark.parametrize(
    ("statistic", "freedom", "p"), [(3.841459, 1, 0.05), (5.991465, 2, 0.05), (18.30704, 10, 0.05), (35.56, 10, 1e-4)]
)
def test_the_tables_of_chi_square(statistic: float, freedom: int, p: float) -> None:
    assert survival(statistic, freedom) == pytest.approx(p, rel=2e-3)


def test_the_distributions(distributions: list[F64]) -> None:
    for length, joint in enumerate(distributions, 1):
        assert joint.shape == (VOCAB,) * length
        assert joint.sum() == pytest.approx(1)


@pytest.mark.parametrize("seeds", quick([SEEDS // 4], [SEEDS // 4, SEEDS]))
def test_tokens_are_distributed_as_the_target_says(target: Engine, distributions: list[F64], seeds: int) -> None:
    found = p_values(emitted(target, seeds), distributions)
    assert len(found) == 2 * LENGTH - 1
    assert min(found.values()) > LEAST_P, found


def careless(tree: Tree, draw: Callable[[int], Sequence[int] | None]) -> list[int]:
    """A walk that takes the first guess for right, whatever is drawn."""
    nodes = [0]
    while True:
        drawn = draw(nodes[-1])
        child = next(iter(tree.children(nodes[-1])), None)
        if not drawn or child is None:
            return nodes
        tree.key.token_ids[-1] = tree.tokens[child]  # type: ignore[attr-defined]
        nodes.append(child)


def lenient(tree: Tree, draw: Callable[[int], Sequence[int] | None]) -> list[int]:
    """A walk that takes a guess for right where the target finds it likelier than most."""
    sequence: Any = tree.key
    real, rows, nodes = sequence.draw, list[F32](), [0]
    sequence.draw = lambda row: (rows.append(row[0]), real(row))[1]
    while True:
        drawn, row = draw(nodes[-1]), rows[-1]
        shares = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        child = next((c for c in tree.children(nodes[-1]) if shares[tree.tokens[c]] > 1 / VOCAB), None)
        child = tree.child(nodes[-1], drawn[0]) if drawn and child is None else child
        if not drawn or child is None:
            sequence.draw = real
            return nodes
        sequence.token_ids[-1] = tree.tokens[child]
        nodes.append(child)


@pytest.mark.parametrize("broken", quick([careless], [careless, lenient]))
def test_a_broken_walk_is_found(
    target: Engine, distributions: list[F64], broken: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test has the power to."""
    monkeypatch.setattr(engine_module, "walk", broken)
    assert min(p_values(emitted(target, SEEDS // 4), distributions).values()) < LEAST_P
