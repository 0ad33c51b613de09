"""An engine put together by hand, where a test turns every screw that LLM.open sets itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.architectures.base import Architecture
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.checkpoints.generation_config import GenerationDefaults
from penstock.compute.kernels import F32, Kernels
from penstock.disk.reader import Ring
from penstock.engine.engine import MAX_ROWS, Engine
from penstock.memory.memory import Memory
from penstock.models.decoder import Decoder
from penstock.models.kv_cache import KvCache, KvShape
from penstock.models.rows import Rows, SequenceRows
from penstock.models.stage import Stage
from penstock.planning.plan import LEAST_CHUNK_ROWS, Budget, Demand, Plan
from penstock.sampling import SamplingParams
from penstock.weights.weights import Weights

if TYPE_CHECKING:
    from penstock.models.stage import OnLayer

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
) -> Iterator[Engine]:
    """`resident`: the share of the weights that may stay in memory. Pieces are small, so that tiny models have many."""
    checkpoint = open_checkpoint(path)
    kernels = Kernels(threads)
    weights = Weights(checkpoint.tensors, checkpoint.architecture.pass_order, kernels, ring=Ring(4, piece_bytes))
    weights.limit_resident(int(resident * weights.pass_bytes))
    config = checkpoint.config
    model = Decoder(config, weights, kernels, weights.vectors())
    stage = Stage(model, weights, range(config.num_hidden_layers), on_layer)
    shape = KvShape.of(config, kv)
    try:
        yield Engine(stage, kernels, shape, context, GenerationDefaults(eos_token_ids=tuple(eos)), max_rows)
    finally:
        weights.close()


@contextmanager
def limited(plain: Engine, blocks: int, kept_blocks: int | None = None) -> Iterator[Engine]:
    """An engine over the same stage, with memory for so many blocks of keys and values beside the weights, and for
    `kept_blocks` of those of sequences that have ended (None: as many)."""
    stage, shape, ceiling = plain.stage, plain._kv_shape, 1 << 34
    config = stage.model.config
    with_kv = Demand(LEAST_CHUNK_ROWS, 8, blocks * shape.block_bytes)
    process = ceiling - _needs(Budget(Architecture(config), 0, ceiling, 0, 0).plan(with_kv))
    memory = Memory(Budget(Architecture(config), stage.weights.pass_bytes, ceiling, process, 0), stage.weights, shape)
    memory.caches.kept.most_bytes = (blocks if kept_blocks is None else kept_blocks) * shape.block_bytes
    yield Engine(stage, plain._kernels, shape, plain.context, plain._defaults, memory=memory)


def _needs(plan: Plan) -> int:
    return plan.ring + plan.allowance + plan.kv + plan.activations


def new_cache(engine: Engine) -> KvCache:
    return KvCache(engine._kv_shape)


def commit(engine: Engine, cache: KvCache, tokens: Sequence[int], chunk: int | None = None) -> F32:
    """Logits [n, vocab_size] of tokens that follow the committed ones, computed in chunks and committed."""
    step, parts = chunk or len(tokens), []
    for begin in range(0, len(tokens), step):
        part = tokens[begin : begin + step]
        logits, _ = engine.stage.run(Rows([SequenceRows.plain(cache, part, range(len(part)))]))
        cache.truncate(cache.length + len(part))
        parts.append(logits)
    return np.concatenate(parts)


class Recorder:
    """A sampler that keeps the logits it draws from."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.logits: list[F32] = []

    def __call__(self, logits: F32, position: int, seen: Sequence[int]) -> int:
        self.logits.append(logits.copy())
        return int(self.sampler(logits, position, seen))


def generate(
    engine: Engine, prompts: Sequence[Sequence[int]], n_tokens: int, params: SamplingParams = GREEDY
) -> list[tuple[list[int], F32]]:
    """Tokens, and the logits [n, vocab_size] that they were drawn from, of prompts that share their passes."""
    generations = [engine.add(prompt, params) for prompt in prompts]
    recorders = []
    for generation in generations:
        recorders.append(Recorder(generation.sampler))
        generation.sampler = recorders[-1]  # type: ignore[assignment]
        generation.max_tokens = n_tokens
    while any(generation.finish_reason is None for generation in generations):
        engine.step()
    return [(g.token_ids, np.array(r.logits)) for g, r in zip(generations, recorders, strict=True)]
