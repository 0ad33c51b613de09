"""A decoder, part by part: embedding, layers of attention and gated MLP, final norm, head.

Every part maps float32 rows to float32 rows. Weights come by pieces; a piece is applied to all rows of the pass before
the next one is asked for, so a pass costs one walk over the weights however many rows it has.
"""

from __future__ import annotations

from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from penstock.architectures.base import Architecture
from penstock.architectures.names import (
    DOWN,
    EMBEDDING,
    FINAL_NORM,
    GATE,
    GATE_UP,
    K_NORM,
    OUT,
    Q_NORM,
    QKV,
    UP,
    K,
    Q,
    V,
    in_layer,
    is_norm,
)
from penstock.errors import UsageError
from penstock.models.adapted import AdaptedRows
from penstock.models.logits import Logits, Ranking
from penstock.models.mixture import mixture
from penstock.models.products import Products
from penstock.models.rope import inverse_frequencies
from penstock.models.rows import Rows, SequenceRows
from penstock.models.scores import Scoring
from penstock.models.tokens import check_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from penstock.adapters.adapter import LowRank
    from penstock.architectures.config import ModelConfig, WhichRope
    from penstock.compute.kernels import F32, Kernels
    from penstock.models.kv_cache import KvCache
    from penstock.models.kv_planes import U64, KvPlanes
    from penstock.models.products import Matrices
    from penstock.weights.pieces import PieceData


@dataclass(frozen=True, slots=True)
class Places:
    """Where the rows of a pass are, the same for every layer."""

    angles: Mapping[WhichRope, tuple[F32, F32]]
    """Cosines and sines of the rows' positions, each float32 [n, rotary_dim / 2], for each rope of the model."""
    addresses: Sequence[U64]
    """Of the blocks of each sequence."""
    adapted: AdaptedRows
    """Those that go through adapters."""


class Decoder:
    """A decoder whose weights may be anywhere."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Matrices,
        kernels: Kernels,
        vectors: Mapping[str, F32],
        planes: KvPlanes,
        adapters: Mapping[str, Mapping[str, LowRank]] | None = None,
    ) -> None:
        """`vectors`: the tensors of one dimension (norms, biases), each float32 [n]; `planes`: keys and values of the
        layers that it is asked for; `adapters`: what those that rows name add to which matrix."""
        self.config = config
        self.architecture = Architecture(config)
        self.weights = weights
        self.kernels = kernels
        self.planes = planes
        self._ropes = {
            name: (inverse_frequencies(rope, config.head_dim), rope.attention_factor)
            for name, rope in config.ropes.items()
        }
        self._vectors = vectors
        self._adapters = adapters or {}
        if config.norm_offset:
            offset = np.float32(config.norm_offset)
            self._vectors = {name: vector + offset if is_norm(name) else vector for name, vector in vectors.items()}
        self._products = Products(weights, kernels, self._vectors, config.activation)

    def over(self, weights: Matrices) -> Decoder:
        """The same model with its matrices from elsewhere."""
        other = copy(self)
        other.weights, other._products = weights, replace(self._products, weights=weights)
        return other

    def forward(self, tokens: Sequence[int], position: int, cache: KvCache) -> F32:
        """Logits float32 [len(tokens), vocab_size] of tokens at `position` and after; their keys and values are kept.

        `cache` holds positions 0..position-1; committed positions from there on are dropped. A step as the textbook has
        it: what it takes is not planned, so a ceiling does not hold for it, nor does a context. Raises UsageError for
        tokens that the model does not have and for a position that the cache does not reach.
        """
        check_tokens(tokens, self.config.vocab_size)
        if not 0 <= position <= cache.length:
            raise UsageError(
                f"position {position} does not follow the {cache.length} positions in the cache.",
                f"Give a position from 0 to {cache.length}.",
            )
        cache.truncate(position)
        rows = Rows([SequenceRows.plain(cache, tokens, range(len(tokens)))])
        x = self.hidden(rows)
        cache.truncate(position + len(tokens))
        return self.head(self.final_norm(x))

    def hidden(self, rows: Rows) -> F32:
        """Hidden rows [n, hidden_size] after all layers, of a model that is all in one place."""
        self.planes.settle()
        x = self.embed(rows)
        self.walk(x, rows, range(self.config.num_hidden_layers))
        return x

    def walk(
        self,
        x: F32,
        rows: Rows,
        layers: Iterable[int],
        around: Callable[[int], AbstractContextManager[None]] = lambda index: nullcontext(),
    ) -> None:
        """Let hidden rows x[n, hidden_size] through some layers, in place; each within what `around` gives for it."""
        places = self.places(rows)
        for index in layers:
            with around(index):
                self.layer(index, x, rows, places)

    def embed(self, rows: Rows) -> F32:
        """Hidden rows [n, hidden_size] of the rows' tokens."""
        x = self.weights.rows(EMBEDDING, rows.tokens)
        if self.config.embedding_multiplier != 1:
            self.kernels.scale(x, times=self.config.embedding_multiplier)
        return x

    def places(self, rows: Rows) -> Places:
        """What all layers need to know of where the rows are."""
        angles = {name: self._angles(name, rows) for name in self._ropes}
        addresses = [self.planes.addresses(s.blocks) for s in rows.sequences]
        return Places(angles, addresses, AdaptedRows(rows, self._adapters, self.kernels))

    def _angles(self, rope: WhichRope, rows: Rows) -> tuple[F32, F32]:
        frequencies, factor = self._ropes[rope]
        cosines, sines = self.kernels.rope_table(rows.positions, frequencies)
        if factor != 1:
            self.kernels.scale(cosines, times=factor)
            self.kernels.scale(sines, times=factor)
        return cosines, sines

    def layer(self, index: int, x: F32, rows: Rows, places: Places) -> None:
        """Add attention and MLP of one layer to x[n, hidden_size], in place."""
        self._attention(index, x, rows, places)
        self._mlp(index, x, places.adapted)

    def final_norm(self, x: F32) -> F32:
        """Normalised rows [n, hidden_size]."""
        return self._norm(FINAL_NORM, x, np.empty_like(x))

    def head(self, x: F32) -> F32:
        """Logits [n, vocab_size] of normalised rows."""
        logits = self._products.linear(self.architecture.head, x)
        self.scale_logits(logits)
        return logits

    def logits(self, x: F32, rows: Rows) -> Logits:
        """Of normalised rows [n, hidden_size] of those that want any: all of some, of others what `rows` says."""
        told, scored = rows.likeliest, rows.scored
        if not told.any() and not scored.any():
            return Logits(self.head(x), Ranking(0).likeliest(), told)
        name, kept = self.architecture.head, told[~scored]
        whole = np.empty((int((~kept).sum()), self.weights.tensors[name].shape[0]), np.float32)
        ranking, scoring = Ranking(int(kept.sum()), self.config.vocab_size), Scoring(rows.targets, rows.top)
        x, x_scored = (x[~scored], x[scored]) if scored.any() else (x, x[:0])
        with self._products.pieces(name) as pieces:
            for piece in pieces:
                if len(x):
                    part = self._piece_logits(piece, x)
                    whole[:, piece.rows] = part[~kept]
                    if len(kept) > len(whole):
                        ranking.take(piece.rows.start, part if kept.all() else part[kept])
                for group in scoring.groups():
                    scoring.take(piece.rows.start, self._piece_logits(piece, x_scored[group]), group)
        return Logits(whole, ranking.likeliest(), told, scoring.scores(), scored)

    def _piece_logits(self, piece: PieceData, x: F32) -> F32:
        """Those of a piece of the head [n, rows of the piece]."""
        part = np.empty((len(x), piece.rows.stop - piece.rows.start), np.float32)
        self._products.apply(piece, self.architecture.head, x, part, ())
        self.scale_logits(part)
        return part

    def scale_logits(self, logits: F32) -> None:
        """From the head's products [n, m] to logits, in place."""
        config = self.config
        if config.logits_divisor != 1 or config.logits_softcap:
            self.kernels.scale(logits, divisor=config.logits_divisor, cap=config.logits_softcap)

    def _attention(self, index: int, x: F32, rows: Rows, places: Places) -> None:
        config, kind = self.config, self.config.layer_kind(index)
        h = self._normed(index, config.norms.pre_attention, x)
        q, k, v = self._queries_keys_values(index, h, places.adapted)
        if kind.rope != "none":
            self.kernels.rope(q, *places.angles[kind.rope])
            self.kernels.rope(k, *places.angles[kind.rope])
        out = np.empty(q.shape, np.float32)
        for s, span, addresses in zip(rows.sequences, rows.spans, places.addresses, strict=True):
            layer = self.planes.layer(index, addresses)
            self.kernels.store_kv(k[span], v[span], s.slots, layer)
            self.kernels.attention(
                q[span],
                s.prefix,
                s.tail_offsets,
                s.tail_slots,
                config.score_scale,
                layer,
                out[span],
                window=kind.window,
                softcap=config.attention_softcap,
            )
        self._add(index, OUT, config.norms.post_attention, out.reshape(len(x), -1), x, places.adapted)

    def _queries_keys_values(self, index: int, h: F32, adapted: AdaptedRows) -> tuple[F32, F32, F32]:
        """Each float32 [n, heads, head_dim], before rope."""
        config = self.config
        if config.fused_qkv:
            heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
            both = self._products.linear(in_layer(index, QKV), h, adapted)
            both = both.reshape(len(h), heads + 2 * kv_heads, config.head_dim)
            q, k, v = both[:, :heads], both[:, heads : heads + kv_heads], both[:, heads + kv_heads :]
        else:
            q, k, v = (
                self._products.linear(in_layer(index, part), h, adapted).reshape(len(h), -1, config.head_dim)
                for part in (Q, K, V)
            )
        if config.qk_norm != "none":
            for part, x in ((Q_NORM, q), (K_NORM, k)):
                vectors = x.reshape(-1, config.head_dim) if config.qk_norm == "head" else x.reshape(len(h), -1)
                self._norm(in_layer(index, part), vectors, vectors)
        return q, k, v

    def _mlp(self, index: int, x: F32, adapted: AdaptedRows) -> None:
        norms, experts = self.config.norms, self.config.experts_of(index)
        h = self._normed(index, norms.pre_mlp, x)
        if experts is not None:
            self._add_whole(index, norms.post_mlp, mixture(self._products, index, experts, h, adapted), x)
            return
        self._add(index, DOWN, norms.post_mlp, self._gated(index, h, adapted), x, adapted)

    def _add(self, index: int, matrix: str, norm: str | None, h: F32, x: F32, adapted: AdaptedRows) -> None:
        """Add h @ matrix.T, normalised and multiplied as the family has it, to x[n, hidden_size]; the product is
        there as a whole before anything is done with it."""
        name = in_layer(index, matrix)
        if not self.architecture.sums_apart:
            self._products.linear(name, h, adapted, add_to=x)
            return
        self._add_whole(index, norm, self._products.linear(name, h, adapted), x)

    def _add_whole(self, index: int, norm: str | None, y: F32, x: F32) -> None:
        """Add y to x[n, hidden_size], normalised in place and multiplied as the family has it."""
        if norm is not None:
            self._norm(in_layer(index, norm), y, y)
        self.kernels.add_rows(y, np.full(len(y), self.config.residual_multiplier, np.float32), x)

    def _gated(self, index: int, x: F32, adapted: AdaptedRows) -> F32:
        """activation(gate(x)) * up(x), [n, intermediate_size], of a layer with a plain MLP."""
        config = self.config
        if config.fused_gate_up:
            both = self._products.linear(in_layer(index, GATE_UP), x, adapted)
            gate = both[:, : config.intermediate_size]
            self.kernels.gated(gate, both[:, config.intermediate_size :], config.activation, gate)
            return gate
        return self._products.gated(in_layer(index, GATE), in_layer(index, UP), x, adapted)

    def _normed(self, index: int, norm: str | None, x: F32) -> F32:
        return x if norm is None else self._norm(in_layer(index, norm), x, np.empty_like(x))

    def _norm(self, name: str, x: F32, out: F32) -> F32:
        self.kernels.rms_norm(x, self._vectors[name], self.config.rms_norm_eps, out)
        return out
