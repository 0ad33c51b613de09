"""Ctrl-C at every line of what keeps keys and values: they are those of the tokens afterwards, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.assembled import commit, new_cache, open_engine
from helpers.cases import CASES, random_tokens
from helpers.interrupts import CtrlC, ctrl_c, each_once
from helpers.numerics_oracles import same_bits
from helpers.thorough import quick
from penstock.compute.kernels import F32
from penstock.engine.engine import Engine
from penstock.models import chain, kv_cache, kv_planes, stage
from penstock.models.kv_cache import BLOCK_SLOTS
from penstock.models.rows import Rows, SequenceRows
from penstock.models.stage import Share

FILES = {module.__file__ for module in (chain, kv_cache, kv_planes, stage)}
VOCAB = 96
PROMPT = random_tokens(BLOCK_SLOTS + 20, VOCAB)
TREE, PARENTS, KEPT = [3, 4, 5, 6, 7, 8], [-1, 0, 0, 2, 2, 4], [0, 2, 4, 5]
BACK = 20
"""Where one of two that share their first block goes back to."""


@pytest.fixture(scope="module", params=[1, 2], ids=["one stage", "two stages"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path: Path = CASES["gqa-4"].write(tmp_path_factory.mktemp("model"))
    with open_engine(path, resident=1, shares=[] if request.param == 1 else cut(path)) as engine:
        yield engine


def cut(path: Path) -> list[Share]:
    """Its layers, dealt out in turn."""
    with open_engine(path) as engine:
        layers = range(len(engine.chain.stages[0].share.layers))
    return [Share(tuple(layers[::2]), True, False), Share(tuple(layers[1::2]), False, True)]


class Caches:
    """Two that begin alike, and the tokens of each."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.caches = [new_cache(engine), new_cache(engine)]
        commit(engine, self.caches[0], PROMPT)
        self.caches[1].adopt(self.caches[0], 1)
        self.tokens = [[*PROMPT, *(TREE[node] for node in KEPT)], [*PROMPT[:BACK], 9, 10, 11]]

    def use(self) -> None:
        """Keep some nodes of a tree, go back into a block that both have, and free another's blocks."""
        run, (first, second) = self.engine.chain.run, self.caches
        gone = new_cache(self.engine)
        commit(self.engine, gone, PROMPT[:3])
        del gone
        run(Rows([SequenceRows.tree(first, TREE, PARENTS)]))
        first.keep([first.length + node for node in KEPT])
        second.truncate(BACK)
        run(Rows([SequenceRows.plain(second, self.tokens[1][BACK:])]))
        second.truncate(len(self.tokens[1]))

    def logits(self) -> list[F32]:
        """After the last tokens of both, once what is missing was computed."""
        first, second = self.caches
        first.truncate(first.length)
        second.truncate(BACK if second.length == BLOCK_SLOTS else second.length)
        for cache, tokens in zip(self.caches, self.tokens, strict=True):
            if cache.length < len(tokens):
                commit(self.engine, cache, tokens[cache.length :])
        return [commit(self.engine, cache, [1, 2]) for cache in self.caches]

    def free(self) -> None:
        """Nobody has anything any more."""
        self.caches.clear()
        self.engine.chain.settle()


def held_bytes(engine: Engine) -> int:
    return sum(stage.decoder.planes.nbytes for stage in engine.chain.stages)  # type: ignore[attr-defined]


@pytest.mark.parametrize("every", quick([8], [8, 1]))
def test_at_every_line(engine: Engine, every: int) -> None:
    """Or every so many lines."""

    def interrupted(at: int | None) -> tuple[CtrlC, list[F32]]:
        caches = Caches(engine)
        with ctrl_c(FILES, at) as tracer:
            caches.use()
        found = caches.logits()
        caches.free()
        assert held_bytes(engine) == 0
        return tracer, found

    tracer, expected = interrupted(None)
    for last in (False, True):
        numbers = each_once(tracer.lines, last)
        assert len(numbers) > 80
        for at in numbers[::every]:
            came, found = interrupted(at)
            assert came.came
            for logits, others in zip(found, expected, strict=True):
                assert same_bits(logits, others), tracer.lines[at - 1]
