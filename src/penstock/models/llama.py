"""The Llama family, part by part: embedding, layers of attention and gated MLP, final norm, head.

Every part maps float32 rows to float32 rows. Weights come by pieces; a piece is applied to all rows of the pass before
the next one is asked for, so a pass costs one walk over the weights however many rows it has.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from typing import TYPE_CHECKING, Protocol

import numpy as np

from penstock.errors import UsageError
from penstock.models.rope import inverse_frequencies
from penstock.models.rows import Rows, SequenceRows
from penstock.weights.weights import residency_order

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from penstock.checkpoints.checkpoint import Tensor
    from penstock.checkpoints.config import ModelConfig
    from penstock.compute.kernels import F32, I64, Kernels
    from penstock.events import Events
    from penstock.models.kv_cache import KvCache
    from penstock.weights.pieces import PieceData

EMBEDDING = "model.embed_tokens.weight"
LAYER_PARTS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def head_name(config: ModelConfig) -> str:
    """The matrix that turns hidden rows into logits."""
    return EMBEDDING if config.tie_word_embeddings else "lm_head.weight"


def pass_order(config: ModelConfig) -> list[str]:
    """The matrices in the order in which a pass needs them."""
    layers = [name for layer in range(config.num_hidden_layers) for name in layer_matrices(layer)]
    return [*layers, head_name(config)]


def layer_matrices(layer: int) -> list[str]:
    """All matrices of a layer, in order."""
    return [f"model.layers.{layer}.{part}.weight" for part in LAYER_PARTS]


def draft_order(config: ModelConfig) -> list[str]:
    """The matrices by how much a guess at the next token suffers without them, the most first.

    Without its head a model says nothing; of the layers, those in the middle are missed least (arXiv 2403.03853), and
    least of all where they are far from one another.
    """
    last = config.num_hidden_layers - 1
    inner = list(range(2, last))
    outer = [layer for layer in (0, 1, last) if 0 <= layer <= last]
    spread = [inner[i] for i in residency_order(len(inner))]
    layers = dict.fromkeys([*outer, *spread])
    return [head_name(config), *(name for layer in layers for name in layer_matrices(layer))]


class Matrices(Protocol):
    """Where a model's matrices come from: its weights, or some stand-in for them."""

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...
    @property
    def events(self) -> Events: ...
    def pieces(self, name: str) -> Generator[PieceData]: ...
    def rows(self, name: str, indices: I64) -> F32: ...


class Llama:
    """A decoder whose weights may be anywhere."""

    def __init__(self, config: ModelConfig, weights: Matrices, kernels: Kernels, vectors: Mapping[str, F32]) -> None:
        """`vectors`: the tensors of one dimension (norms, biases), each float32 [n]."""
        self.config = config
        self.weights = weights
        self.kernels = kernels
        self._inv_freq = inverse_frequencies(config.rope, config.head_dim)
        self._vectors = vectors

    def over(self, weights: Matrices) -> Llama:
        """The same model with its matrices from elsewhere."""
        return Llama(self.config, weights, self.kernels, self._vectors)

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
        return self._norm("model.norm.weight", x)

    def head(self, x: F32) -> F32:
        """Logits [n, vocab_size] of normalised rows."""
        return self._linear(head_name(self.config), x)

    def _attention(self, index: int, x: F32, rows: Rows, angles: tuple[F32, F32]) -> None:
        name, head_dim = f"model.layers.{index}.self_attn", self.config.head_dim
        h = self._norm(f"model.layers.{index}.input_layernorm.weight", x)
        q, k, v = (self._linear(f"{name}.{part}_proj.weight", h).reshape(len(x), -1, head_dim) for part in "qkv")
        self.kernels.rope(q, *angles)
        self.kernels.rope(k, *angles)
        out = np.empty_like(q)
        for s, span in zip(rows.sequences, rows.spans, strict=True):
            layer = s.cache.layer(index)
            self.kernels.store_kv(k[span], v[span], s.slots, layer)
            self.kernels.attention(
                q[span], s.prefix, s.tail_offsets, s.tail_slots, 1 / math.sqrt(head_dim), layer, out[span]
            )
        self._linear(f"{name}.o_proj.weight", out.reshape(len(x), -1), add_to=x)

    def _mlp(self, index: int, x: F32) -> None:
        name = f"model.layers.{index}.mlp"
        h = self._norm(f"model.layers.{index}.post_attention_layernorm.weight", x)
        self._linear(f"{name}.down_proj.weight", self._gated(name, h), add_to=x)

    def _gated(self, name: str, x: F32) -> F32:
        """silu(gate(x)) * up(x), [n, intermediate_size]; of up(x) only one piece is held at a time.

        Each matrix by itself: the two need not be cut alike.
        """
        out = self._linear(f"{name}.gate_proj.weight", x)
        room = np.empty((len(x), 0), np.float32)
        with self._pieces(f"{name}.up_proj.weight") as pieces:
            for piece in pieces:
                gated, width = out[:, piece.rows], piece.rows.stop - piece.rows.start
                if width > room.shape[1]:  # the first piece is the longest
                    room = np.empty((len(x), width), np.float32)
                upward = room[:, :width]
                self._apply(piece, f"{name}.up_proj.weight", x, upward)
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
        bias = self._vectors.get(f"{name.removesuffix('.weight')}.bias")
        bias = bias if bias is None else bias[piece.rows]
        begin = time.perf_counter()
        piece.matmul(self.kernels, x, out, bias, accumulate)
        self.weights.events.tell("compute", name, begin, time.perf_counter(), piece.nbytes)

    def _norm(self, name: str, x: F32) -> F32:
        out = np.empty_like(x)
        self.kernels.rms_norm(x, self._vectors[name], self.config.rms_norm_eps, out)
        return out
