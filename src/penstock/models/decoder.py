"""A decoder, part by part: embedding, layers of attention and gated MLP, final norm, head.

Every part maps float32 rows to float32 rows. Weights come by pieces; a piece is applied to all rows of the pass before
the next one is asked for, so a pass costs one walk over the weights however many rows it has.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from typing import TYPE_CHECKING, Protocol

import numpy as np

from penstock.architectures.base import Architecture
from penstock.architectures.names import ATTENTION_NORM, EMBEDDING, FINAL_NORM, MLP_NORM, bias_of, in_layer
from penstock.errors import UsageError
from penstock.models.rope import inverse_frequencies
from penstock.models.rows import Rows, SequenceRows

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from penstock.architectures.config import ModelConfig
    from penstock.checkpoints.checkpoint import Tensor
    from penstock.compute.kernels import F32, I64, Kernels
    from penstock.events import Events
    from penstock.models.kv_cache import KvCache
    from penstock.weights.pieces import PieceData


class Matrices(Protocol):
    """Where a model's matrices come from: its weights, or some stand-in for them."""

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...
    @property
    def events(self) -> Events: ...
    def pieces(self, name: str) -> Generator[PieceData]: ...
    def rows(self, name: str, indices: I64) -> F32: ...


class Decoder:
    """A decoder whose weights may be anywhere."""

    def __init__(self, config: ModelConfig, weights: Matrices, kernels: Kernels, vectors: Mapping[str, F32]) -> None:
        """`vectors`: the tensors of one dimension (norms, biases), each float32 [n]."""
        self.config = config
        self.architecture = Architecture(config)
        self.weights = weights
        self.kernels = kernels
        self._inv_freq = inverse_frequencies(config.rope, config.head_dim)
        self._vectors = vectors

    def over(self, weights: Matrices) -> Decoder:
        """The same model with its matrices from elsewhere."""
        return Decoder(self.config, weights, self.kernels, self._vectors)

    def forward(self, tokens: Sequence[int], position: int, cache: KvCache) -> F32:
        """Logits float32 [len(tokens), vocab_size] of tokens at `position` and after; their keys and values are kept.

        `cache` holds positions 0..position-1; committed positions from there on are dropped. A step as the textbook has
        it: what it takes is not planned, so a ceiling does not hold for it, nor does a context. Raises UsageError for
        tokens that the model does not have and for a position that the cache does not reach.
        """
        self.check_tokens(tokens)
        if not 0 <= position <= cache.length:
            raise UsageError(
                f"position {position} does not follow the {cache.length} positions in the cache.",
                f"Give a position from 0 to {cache.length}.",
            )
        cache.truncate(position)
        rows = Rows([SequenceRows.plain(cache, tokens, range(len(tokens)))])
        rows.reserve()
        x = self.embed(rows)
        angles = self.angles(rows)
        for index in range(self.config.num_hidden_layers):
            self.layer(index, x, rows, angles)
        cache.truncate(position + len(tokens))
        return self.head(self.final_norm(x))

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Raise UsageError unless there are tokens and the model has all of them."""
        if not len(tokens):
            raise UsageError("The prompt has no tokens.", "Give some text, or at least one token id.")
        if not all(isinstance(token, (int, np.integer)) for token in tokens):
            raise UsageError("A prompt of token ids has something else in it.", "Give integers, or text as one string.")
        vocab_size = self.config.vocab_size
        wrong = next((token for token in tokens if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise UsageError(
                f"Token id {wrong} is not in the model's vocabulary.", f"Ids go from 0 to {vocab_size - 1}."
            )

    def embed(self, rows: Rows) -> F32:
        """Hidden rows [n, hidden_size] of the rows' tokens."""
        return self.weights.rows(EMBEDDING, rows.tokens)

    def angles(self, rows: Rows) -> tuple[F32, F32]:
        """Cosines and sines [n, head_dim / 2] of the rows' positions, the same for every layer."""
        return self.kernels.rope_table(rows.positions, self._inv_freq)

    def layer(self, index: int, x: F32, rows: Rows, angles: tuple[F32, F32]) -> None:
        """Add attention and MLP of one layer to x[n, hidden_size], in place."""
        self._attention(index, x, rows, angles)
        self._mlp(index, x)

    def final_norm(self, x: F32) -> F32:
        """Normalised rows [n, hidden_size]."""
        return self._norm(FINAL_NORM, x)

    def head(self, x: F32) -> F32:
        """Logits [n, vocab_size] of normalised rows."""
        return self._linear(self.architecture.head, x)

    def _attention(self, index: int, x: F32, rows: Rows, angles: tuple[F32, F32]) -> None:
        head_dim = self.config.head_dim
        h = self._norm(in_layer(index, ATTENTION_NORM), x)
        matrices = (in_layer(index, f"self_attn.{part}_proj") for part in "qkv")
        q, k, v = (self._linear(name, h).reshape(len(x), -1, head_dim) for name in matrices)
        self.kernels.rope(q, *angles)
        self.kernels.rope(k, *angles)
        out = np.empty_like(q)
        for s, span in zip(rows.sequences, rows.spans, strict=True):
            layer = s.cache.layer(index)
            self.kernels.store_kv(k[span], v[span], s.slots, layer)
            self.kernels.attention(
                q[span], s.prefix, s.tail_offsets, s.tail_slots, 1 / math.sqrt(head_dim), layer, out[span]
            )
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
