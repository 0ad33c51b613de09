"""A decoder, part by part: embedding, layers of attention and gated MLP, final norm, head.

Every part maps float32 rows to float32 rows. Weights come by pieces; a piece is applied to all rows of the pass before
the next one is asked for, so a pass costs one walk over the weights however many rows it has.
"""

from __future__ import annotations

import math
import time
from contextlib import closing, nullcontext
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from penstock.architectures.base import Architecture
from penstock.architectures.names import ATTENTION_NORM, EMBEDDING, FINAL_NORM, MLP_NORM, bias_of, in_layer
from penstock.errors import UsageError
from penstock.models.rope import inverse_frequencies
from penstock.models.rows import Rows, SequenceRows
from penstock.models.tokens import check_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from penstock.architectures.config import ModelConfig
    from penstock.checkpoints.checkpoint import Tensor
    from penstock.compute.kernels import F32, I64, Kernels
    from penstock.events import Events
    from penstock.models.kv_cache import KvCache
    from penstock.models.kv_planes import U64, KvPlanes
    from penstock.weights.pieces import PieceData


class Matrices(Protocol):
    """Where a model's matrices come from: its weights, or some stand-in for them."""

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...
    @property
    def events(self) -> Events: ...
    def pieces(self, name: str) -> Generator[PieceData]: ...
    def rows(self, name: str, indices: I64) -> F32: ...


@dataclass(frozen=True, slots=True)
class Places:
    """Where the rows of a pass are, the same for every layer."""

    cosines: F32
    sines: F32
    """Of the angles of the rows' positions, float32 [n, head_dim / 2]."""
    addresses: Sequence[U64]
    """Of the blocks of each sequence."""


class Decoder:
    """A decoder whose weights may be anywhere."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Matrices,
        kernels: Kernels,
        vectors: Mapping[str, F32],
        planes: KvPlanes,
    ) -> None:
        """`vectors`: the tensors of one dimension (norms, biases), each float32 [n]; `planes`: keys and values of the
        layers that it is asked for."""
        self.config = config
        self.architecture = Architecture(config)
        self.weights = weights
        self.kernels = kernels
        self.planes = planes
        self._inv_freq = inverse_frequencies(config.rope, config.head_dim)
        self._vectors = vectors

    def over(self, weights: Matrices) -> Decoder:
        """The same model with its matrices from elsewhere."""
        other = copy(self)
        other.weights = weights
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
        return self.weights.rows(EMBEDDING, rows.tokens)

    def places(self, rows: Rows) -> Places:
        """What all layers need to know of where the rows are."""
        angles = self.kernels.rope_table(rows.positions, self._inv_freq)
        return Places(*angles, [self.planes.addresses(s.blocks) for s in rows.sequences])

    def layer(self, index: int, x: F32, rows: Rows, places: Places) -> None:
        """Add attention and MLP of one layer to x[n, hidden_size], in place."""
        self._attention(index, x, rows, places)
        self._mlp(index, x)

    def final_norm(self, x: F32) -> F32:
        """Normalised rows [n, hidden_size]."""
        return self._norm(FINAL_NORM, x)

    def head(self, x: F32) -> F32:
        """Logits [n, vocab_size] of normalised rows."""
        return self._linear(self.architecture.head, x)

    def _attention(self, index: int, x: F32, rows: Rows, places: Places) -> None:
        head_dim = self.config.head_dim
        h = self._norm(in_layer(index, ATTENTION_NORM), x)
        matrices = (in_layer(index, f"self_attn.{part}_proj") for part in "qkv")
        q, k, v = (self._linear(name, h).reshape(len(x), -1, head_dim) for name in matrices)
        self.kernels.rope(q, places.cosines, places.sines)
        self.kernels.rope(k, places.cosines, places.sines)
        out, scale = np.empty_like(q), 1 / math.sqrt(head_dim)
        for s, span, addresses in zip(rows.sequences, rows.spans, places.addresses, strict=True):
            layer = self.planes.layer(index, addresses)
            self.kernels.store_kv(k[span], v[span], s.slots, layer)
            self.kernels.attention(q[span], s.prefix, s.tail_offsets, s.tail_slots, scale, layer, out[span])
        self._linear(in_layer(index, "self_attn.o_proj"), out.reshape(len(x), -1), add_to=x)

    def _mlp(self, index: int, x: F32) -> None:
        h = self._norm(in_layer(index, MLP_NORM), x)
        self._linear(in_layer(index, "mlp.down_proj"), self._gated(index, h), add_to=x)

    def _gated(self, index: int, x: F32) -> F32:
        """silu(gate(x)) * up(x), [n, intermediate_size]; of up(x) only one piece is held at a time.

        Each matrix by itself: the two need not be cut alike.
        """
        out, up = self._linear(in_layer(index, "mlp.gate_proj"), x), in_layer(index, "mlp.up_proj")
        room = np.empty((len(x), 0), np.float32)
        with self._pieces(up) as pieces:
            for piece in pieces:
                gated, width = out[:, piece.rows], piece.rows.stop - piece.rows.start
                if width > room.shape[1]:  # the first piece is the longest
                    room = np.empty((len(x), width), np.float32)
                upward = room[:, :width]
                self._apply(piece, up, x, upward)
                self.kernels.silu_mul(gated, upward, gated)
        return out

    def _linear(self, name: str, x: F32, add_to: F32 | None = None) -> F32:
        """x @ weight.T + bias, [n, rows of the weight], into a new array or added to `add_to`."""
        n_out = self.weights.tensors[name].shape[0]
        out = np.empty((len(x), n_out), np.float32) if add_to is None else add_to
        with self._pieces(name) as pieces:
            for piece in pieces:
                self._apply(piece, name, x, out[:, piece.rows], accumulate=add_to is not None)
        return out

    def _pieces(self, name: str) -> closing[Generator[PieceData]]:
        """The pieces of a matrix; whatever happens among them, their buffers go back at once."""
        return closing(self.weights.pieces(name))

    def _apply(self, piece: PieceData, name: str, x: F32, out: F32, accumulate: bool = False) -> None:
        bias = self._vectors.get(bias_of(name))
        bias = bias if bias is None else bias[piece.rows]
        begin = time.perf_counter()
        piece.matmul(self.kernels, x, out, bias, accumulate)
        self.weights.events.tell("compute", name, begin, time.perf_counter(), piece.nbytes)

    def _norm(self, name: str, x: F32) -> F32:
        out = np.empty_like(x)
        self.kernels.rms_norm(x, self._vectors[name], self.config.rms_norm_eps, out)
        return out
