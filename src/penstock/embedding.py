"""Texts as vectors: the hidden rows behind the last layer and its norm, pooled.

A model that was trained to go on with texts was not trained for this; its vectors are what it has, no more. The mean of
all tokens' rows and the last token's row are what is commonly taken of such models (arXiv 2201.10005 takes the last).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from penstock.engine.scheduler import MAX_ROWS
from penstock.errors import ContextError, UsageError
from penstock.models.rows import Rows, SequenceRows
from penstock.models.tokens import check_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.compute.kernels import F32, F64
    from penstock.engine.engine import Engine
    from penstock.models.decoder import Decoder
    from penstock.models.kv_cache import KvCache

Pooling = Literal["mean", "last"]


def check_embedded(tokens: Sequence[int], pooling: str, vocab_size: int, context: int) -> None:
    """Raise UsageError for no tokens, tokens that the model does not have or an unknown pooling; ContextError where
    there are too many."""
    if pooling not in get_args(Pooling):
        raise UsageError(f"pooling={pooling!r} is unknown.", f"Choose one of: {', '.join(get_args(Pooling))}.")
    check_tokens(tokens, vocab_size)
    if len(tokens) > context:
        raise ContextError(f"A text of {len(tokens)} tokens is longer than the context of {context}.", "Shorten it.")


def embed(
    engine: Engine, decoder: Decoder, texts: Sequence[Sequence[int]], pooling: Pooling, adapter: str | None
) -> F32:
    """Vectors of length 1 of texts that `check_embedded` takes, float32 [n, hidden_size], in passes of their own, which
    they share. Raises MemoryCeilingError, ReadError."""
    out = np.empty((len(texts), decoder.config.hidden_size), np.float32)
    left = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    while left:
        group, rows = [left.pop()], 0
        rows = len(texts[group[0]])
        while left and rows + len(texts[left[-1]]) <= MAX_ROWS:
            rows += len(texts[left[-1]])
            group.append(left.pop())
        own = [list(texts[index]) for index in group]
        out[group] = engine.enduring(partial(_embed_together, engine, decoder, own, pooling, adapter))
    return out


def _embed_together(
    engine: Engine, decoder: Decoder, texts: list[list[int]], pooling: Pooling, adapter: str | None
) -> F64:
    caches = [engine.memory.new_cache(len(tokens), adapter) for tokens in texts]
    pooled = np.zeros((len(texts), decoder.config.hidden_size))
    try:
        while any(cache.length < len(tokens) for cache, tokens in zip(caches, texts, strict=True)):
            _pass(engine, decoder, caches, texts, pooled, pooling)
    finally:
        for cache in caches:
            cache.truncate(0)
        engine.chain.settle()
    norms: F64 = np.sqrt((pooled * pooled).sum(axis=1, keepdims=True))
    vectors: F64 = pooled / np.maximum(norms, 1e-300)
    return vectors


def _pass(
    engine: Engine, decoder: Decoder, caches: list[KvCache], texts: list[list[int]], pooled: F64, pooling: Pooling
) -> None:
    """One pass over as many of the tokens as there is room for."""
    memory = engine.memory
    slots = {cache: len(tokens) for cache, tokens in zip(caches, texts, strict=True)}
    wanted = sum(count - cache.length for cache, count in slots.items())
    room = min(engine.scheduler.max_rows, memory.most_rows(slots, 0, wanted=min(wanted, MAX_ROWS)))
    chunks: list[tuple[int, list[int]]] = []
    for index, (cache, tokens) in enumerate(zip(caches, texts, strict=True)):
        if (new := tokens[cache.length : cache.length + room]) and room:
            chunks.append((index, new))
            room -= len(new)
    rows = Rows([SequenceRows.plain(caches[index], new, ()) for index, new in chunks])
    engine.chain.make_room(
        memory.need({caches[index]: caches[index].length + len(new) for index, new in chunks}, len(rows), 0)
    )
    hidden = decoder.final_norm(engine.chain.hidden(rows, range(decoder.config.num_hidden_layers)))
    for (index, new), span in zip(chunks, rows.spans, strict=True):
        caches[index].truncate(caches[index].length + len(new))
        if pooling == "mean":
            pooled[index] += hidden[span].sum(axis=0, dtype=np.float64)
        elif caches[index].length == len(texts[index]):
            pooled[index] = hidden[span.stop - 1]
