"""An engine put together by hand, where a test turns every screw that LLM.open sets itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock import _core
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.checkpoints.generation_config import GenerationDefaults
from penstock.compute.kernels import F32, Kernels
from penstock.disk.reader import Ring
from penstock.engine.engine import Engine
from penstock.engine.scheduler import MAX_ROWS
from penstock.events import Events
from penstock.memory.budget import LEAST_CHUNK_ROWS, Budget, Demand, Plan
from penstock.memory.memory import Memory
from penstock.memory.room import StageBudget, StageRoom
from penstock.models.chain import Chain
from penstock.models.kv_cache import Blocks, KvCache
from penstock.models.rows import Rows, SequenceRows
from penstock.models.stage import Share, Stage, Step
from penstock.sampling import SamplingParams
from penstock.speculate.costs import Costs
from penstock.speculate.speculator import Speculator
from penstock.stages.opening import decoder_of, open_weights

if TYPE_CHECKING:
    from penstock.models.stage import OnLayer

AMPLE = 1 << 44
"""A ceiling that everything fits under."""
GREEDY = SamplingParams(temperature=0, seed=0)


@contextmanager
def open_engine(
    path: Path,
    *,
    threads: int = 1,
    kv: str = "bf16",
    context: int = 512,
    max_rows: int = MAX_ROWS,
    resident: float = 0,
    piece_bytes: int = 1024,
    eos: Sequence[int] = (),
    on_layer: OnLayer | None = None,
    shares: Sequence[Share] = (),
    isas: Sequence[str] = (),
) -> Iterator[Engine]:
    """`resident`: the share of the weights that may stay in memory. Pieces are small, so that tiny models have many.
    `shares`: the stages that share the model out, one by default; `isas`: the instruction set of each."""
    checkpoint, blocks = open_checkpoint(path), Blocks()
    kernels = Kernels(threads)
    shares = shares or [Share(tuple(range(checkpoint.config.num_hidden_layers)))]
    with ExitStack() as stack:
        stages = []
        for index, share in enumerate(shares):
            weights = open_weights(checkpoint, share, kernels, 0, Events(), guesses=False, ring=Ring(4, piece_bytes))
            stack.callback(weights.close)
            decoder = decoder_of(checkpoint, share, weights, kernels, blocks, kv)
            budget = Budget(checkpoint.architecture, weights.pass_bytes, AMPLE, 0, 0)
            limit = int(resident * weights.pass_bytes)
            weights.limit_resident(limit)  # for passes that no room is made for, too
            room = StageRoom(StageBudget(budget, decoder.planes.shape), weights, max_resident=limit)
            kind = partial(IsaStage, isas[index]) if isas else Stage
            stages.append(kind(decoder, weights, share, room, on_layer))
        yield engine_over(stages, kernels, context, GenerationDefaults(eos_token_ids=tuple(eos)), blocks, max_rows)


class IsaStage(Stage):
    """A stage that computes with an instruction set of its own."""

    def __init__(self, isa: str, *args: Any) -> None:
        super().__init__(*args)
        self._isa = isa

    def run(self, step: Step, x: F32 | None = None) -> Any:
        before = _core.isa()
        _core.set_isa(self._isa)
        try:
            return super().run(step, x)
        finally:
            _core.set_isa(before)


def engine_over(
    stages: Sequence[Stage],
    kernels: Kernels,
    context: int,
    defaults: GenerationDefaults,
    blocks: Blocks,
    max_rows: int = MAX_ROWS,
) -> Engine:
    """An engine over stages of this process, which guesses nothing."""
    config = stages[0].decoder.config
    chain = Chain(stages, config.num_hidden_layers, config.vocab_size, blocks, stages[0].weights.events)
    memory = Memory([stage.room for stage in stages], blocks)  # type: ignore[misc]
    speculator = Speculator([], Costs(stages[0].decoder.architecture.pass_weights))
    return Engine(chain, memory, speculator, kernels, context, defaults, max_rows)


@contextmanager
def limited(plain: Engine, blocks: int, kept_blocks: int | None = None) -> Iterator[Engine]:
    """An engine over the same stage, with memory for so many blocks of keys and values beside the weights, and for
    `kept_blocks` of those of sequences that have ended (None: as many)."""
    stage, ceiling = stage_of(plain), 1 << 34
    shape = stage.kv_shape
    with_kv = Demand(LEAST_CHUNK_ROWS, 8, blocks * shape.block_bytes)
    process = ceiling - _needs(Budget(stage.decoder.architecture, 0, ceiling, 0, 0).plan(with_kv))
    budget = Budget(stage.decoder.architecture, stage.weights.pass_bytes, ceiling, process, 0)
    room = StageRoom(StageBudget(budget, shape), stage.weights)
    alone = Stage(stage.decoder, stage.weights, stage.share, room)
    engine = engine_over([alone], Kernels(1), plain.context, GenerationDefaults(), plain.chain.blocks)
    engine.memory.caches.kept.most_blocks = blocks if kept_blocks is None else kept_blocks
    yield engine


def _needs(plan: Plan) -> int:
    return plan.ring + plan.allowance + plan.kv + plan.activations


def stage_of(engine: Engine) -> Stage:
    """The only stage of an engine."""
    (stage,) = engine.chain.stages
    assert isinstance(stage, Stage)
    return stage


def new_cache(engine: Engine) -> KvCache:
    return KvCache(engine.chain.blocks)


def commit(engine: Engine, cache: KvCache, tokens: Sequence[int], chunk: int | None = None) -> F32:
    """Logits [n, vocab_size] of tokens that follow the committed ones, computed in chunks and committed."""
    step, parts = chunk or len(tokens), []
    for begin in range(0, len(tokens), step):
        part = tokens[begin : begin + step]
        logits, _ = engine.chain.run(Rows([SequenceRows.plain(cache, part, range(len(part)))]))
        cache.truncate(cache.length + len(part))
        parts.append(logits)
    return np.concatenate(parts)


class Recorder:
    """A sampler that keeps the logits it draws from."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.logits: list[F32] = []
        self.takes_likeliest = False

    def __call__(self, logits: F32, position: int, seen: Sequence[int], allowed: Any = None) -> int:
        self.logits.append(logits.copy())
        return int(self.sampler(logits, position, seen, allowed))


def generate(
    engine: Engine, prompts: Sequence[Sequence[int]], n_tokens: int, params: SamplingParams = GREEDY
) -> list[tuple[list[int], F32]]:
    """Tokens, and the logits [n, vocab_size] that they were drawn from, of prompts that share their passes."""
    sequences = [engine.add(prompt, params) for prompt in prompts]
    recorders = []
    for sequence in sequences:
        recorders.append(Recorder(sequence.sampler))
        sequence.sampler = recorders[-1]  # type: ignore[assignment]
        sequence.max_tokens = n_tokens
    while any(s.finish_reason is None for s in sequences):
        engine.step()
    return [(g.token_ids, np.array(r.logits)) for g, r in zip(sequences, recorders, strict=True)]
