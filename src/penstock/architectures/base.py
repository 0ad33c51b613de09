"""What follows from a config: tensors with their shapes, the order of a pass, and what a pass takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from penstock.architectures import names
from penstock.architectures.names import EMBEDDING, FINAL_NORM, HEAD, bias_of, in_layer

if TYPE_CHECKING:
    from penstock.architectures.config import ExpertsConfig, ModelConfig

Shape = tuple[int, ...]

GATHERED = 256
"""Rows that go through an adapter and are not beside each other are copied together, so many at a time."""
SCORED_AT_ONCE = 256
"""Rows of which logits of a piece of the head are there at a time, where no more is wanted than how likely a token is;
a packed piece is decoded for each such group, which takes a few hundredths of what so many rows take."""
SCORE_BYTES, SCORING_BYTES = 768, 4 << 20
"""What is kept of such a row, its likeliest tokens among it; and what working on them takes."""
RANKED_BYTES = 768
"""What the likeliest tokens of a row take while they are sorted, those before a piece of the head and those after."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder in names and numbers."""

    config: ModelConfig

    @property
    def head(self) -> str:
        """The matrix that turns hidden rows into logits."""
        return EMBEDDING if self.config.tie_word_embeddings else HEAD

    def layer_matrices(self, layer: int) -> list[str]:
        """All matrices of a layer, in the order in which a pass needs them."""
        return [in_layer(layer, part) for part in self._layer_shapes(layer)]

    def experts(self, layer: int) -> list[tuple[str, str, str]]:
        """Gate, up and down of each expert of a layer; none where it has a plain MLP."""
        experts = self.config.experts_of(layer)
        if experts is None:
            return []
        parts = (names.mlp_parts(names.expert(number)) for number in range(experts.count))
        return [(in_layer(layer, gate), in_layer(layer, up), in_layer(layer, down)) for gate, up, down in parts]

    def expert_share(self, rows: float) -> float:
        """Which part of a layer's experts so many rows need together, if each needed any as often, and none because
        others do: somewhat more than they do in fact. 1 where there are none."""
        experts = self.config.experts
        return 1.0 if experts is None else 1 - (1 - experts.per_token / experts.count) ** rows

    def matrices_of(self, layers: Iterable[int], *, head: bool) -> list[str]:
        """Those that a pass through some layers may need whole, in its order; of experts, all."""
        matrices = [name for layer in layers for name in self.layer_matrices(layer)]
        return [*matrices, self.head] if head else matrices

    @property
    def pass_order(self) -> list[str]:
        """All matrices that a pass needs whole, in its order."""
        return self.matrices_of(range(self.config.num_hidden_layers), head=True)

    def tensors_of(self, layers: Iterable[int], *, embedding: bool, head: bool) -> list[str]:
        """All tensors that some layers have, and embedding, final norm and head, in the order of a pass."""
        tensors = [EMBEDDING] if embedding else []
        tensors += [name for layer in layers for name, _ in self._iter_layer(layer)]
        return list(dict.fromkeys([*tensors, FINAL_NORM, self.head] if head else tensors))

    @property
    def sums_apart(self) -> bool:
        """Whether what attention and MLP give is there as a whole before it is added to the hidden rows."""
        norms = self.config.norms
        return self.config.residual_multiplier != 1 or bool(norms.post_attention or norms.post_mlp)

    @property
    def pass_matrices(self) -> dict[str, Shape]:
        """The shapes of those matrices."""
        shapes = self.tensors
        return {name: shapes[name] for name in self.pass_order}

    @property
    def tensors(self) -> dict[str, Shape]:
        """Every tensor of the model with its shape, in the order in which a pass uses them."""
        return dict(self.iter_tensors())

    @property
    def copies(self) -> dict[str, Shape]:
        """Tensors that some files hold although others have the same values."""
        return {HEAD: self.tensors[EMBEDDING]} if self.config.tie_word_embeddings else {}

    def iter_parts(self) -> Iterator[str]:
        """The files that a checkpoint has which is split by layers."""
        yield names.EMBEDDING_PART
        yield from map(names.layer_part, range(self.config.num_hidden_layers))
        yield names.FINAL_NORM_PART
        if not self.config.tie_word_embeddings:
            yield names.HEAD_PART

    @property
    def pass_weights(self) -> int:
        """How many weights the matrices have that a pass needs whole: all but an embedding that is no head too."""
        return sum(map(prod, self.pass_matrices.values()))

    @property
    def weights_per_row(self) -> int:
        """Of them, how many a row is multiplied with: all but the experts that it does not go to."""
        layers = sum(map(self._weights_per_row, range(self.config.num_hidden_layers)))
        return layers + prod(self.tensors[self.head])

    @property
    def vector_bytes(self) -> int:
        """float32 bytes of norms and biases."""
        return sum(4 * shape[0] for shape in self.tensors.values() if len(shape) == 1)

    def flops(self, rows: int, positions: int) -> int:
        """Floating-point operations of a pass of `rows` rows, the last of a sequence of `positions`, one logit row."""
        config = self.config
        layers = [self._weights_per_row(layer) for layer in range(config.num_hidden_layers)]
        windows = Counter(config.layer_kind(layer).window for layer in range(config.num_hidden_layers))
        seen = sum(layers * _keys_seen(rows, positions, window) for window, layers in windows.items())
        products = 2 * rows * sum(layers)
        return products + 4 * seen * config.num_attention_heads * config.head_dim + self.head_flops(1)

    def share_past_windows(self, positions: int) -> float:
        """Of the keys and values of so many positions, those that lie before their layers' windows."""
        layers = self.config.num_hidden_layers
        windows = (self.config.layer_kind(layer).window for layer in range(layers))
        return sum(max(0, positions - window) for window in windows if window) / (layers * positions)

    def head_flops(self, rows: int) -> int:
        """Of them, those of the logits of `rows` rows."""
        return 2 * rows * self.config.hidden_size * self.config.vocab_size

    def activation_bytes(
        self, rows: int, logit_rows: int | None, piece_bytes: int, weight_bytes: float = 2.0, ranked_rows: int = 0
    ) -> int:
        """Peak float32 bytes of one pass besides weights and KV: hidden rows, the widest part, logits, and what
        sampling takes for one row after another. Of the MLP's second half, one piece's rows are there at a time, of
        which a weight takes `weight_bytes` or more in the larger part of its piece. `logit_rows` is None where logits
        are computed elsewhere. Of `ranked_rows` only the likeliest tokens are kept: of each, logits of one piece of the
        head are there at a time, maybe twice, beside what is kept of it; they are ranked where sampling takes place
        later."""
        config = self.config
        heads = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
        piece_rows = max(1, int(piece_bytes / (weight_bytes * config.hidden_size)))
        widest = max(heads, self._mlp_floats(piece_rows), config.hidden_size)
        if self.sums_apart:
            widest += config.hidden_size
        hidden = rows * (2 * config.hidden_size + widest + len(config.ropes) * config.head_dim)
        logits = 0 if logit_rows is None else (logit_rows + 5) * config.vocab_size
        head_rows = min(config.vocab_size, max(1, int(piece_bytes / (weight_bytes * config.hidden_size))))
        ranked = 0 if logit_rows is None else ranked_rows * (2 * 4 * head_rows + RANKED_BYTES)
        return 4 * (hidden + logits) + ranked

    def _mlp_floats(self, piece_rows: int) -> int:
        """What a row takes amid an MLP at most, beside its hidden and its normalised row."""
        config, hidden, experts = self.config, self.config.hidden_size, self.config.experts
        if config.fused_gate_up:
            return 2 * config.intermediate_size
        dense, mixed = (size + min(size, piece_rows) for size in (config.intermediate_size, self._widest_expert))
        if experts is None:
            return dense
        # What the router says, the sum, what all rows share; of the expert that all may go to, what comes and goes.
        around = experts.count + 2 * experts.per_token + (2 + bool(experts.shared_size)) * hidden
        return max(dense if experts.dense_layers else 0, around + hidden + mixed)

    @property
    def _widest_expert(self) -> int:
        experts = self.config.experts
        return max(experts.intermediate_size, experts.shared_size) if experts is not None else 0

    def scoring_bytes(self, rows: int, piece_bytes: int, weight_bytes: float = 2.0) -> int:
        """Peak bytes besides, where no more is told of so many rows than how likely a token is: normalised rows, what
        is kept of each, and logits of one piece of the head for SCORED_AT_ONCE of them."""
        width = min(self.config.vocab_size, max(1, int(piece_bytes / (weight_bytes * self.config.hidden_size))))
        at_once = min(rows, SCORED_AT_ONCE) * (4 * width + 4 * self.config.hidden_size)
        return at_once + rows * (8 * self.config.hidden_size + SCORE_BYTES) + SCORING_BYTES

    def adapter_bytes(self, rows: int, rank: int, piece_bytes: int, weight_bytes: float = 2.0) -> int:
        """Peak float32 bytes besides, where rows go through adapters of such a rank: what the first product gives, and
        what the second one and the matrix's own give for a piece."""
        shapes = {
            shape for layer in range(self.config.num_hidden_layers) for shape in self._layer_shapes(layer).values()
        }
        widest = max(min(outputs, max(1, int(piece_bytes / (weight_bytes * inputs)))) for outputs, inputs in shapes)
        longest = max(inputs for _, inputs in shapes)
        return 4 * (rows * (rank + 2 * widest + 1) + min(rows, GATHERED) * longest)

    def iter_tensors(self) -> Iterator[tuple[str, Shape]]:
        """As `tensors`, one by one: a config may name more layers than there is memory for."""
        hidden, vocab = self.config.hidden_size, self.config.vocab_size
        yield EMBEDDING, (vocab, hidden)
        for layer in range(self.config.num_hidden_layers):
            yield from self._iter_layer(layer)
        yield FINAL_NORM, (hidden,)
        if not self.config.tie_word_embeddings:
            yield HEAD, (vocab, hidden)

    def _iter_layer(self, layer: int) -> Iterator[tuple[str, Shape]]:
        for part, shape in self._layer_parts(layer):
            yield in_layer(layer, part), shape
            if len(shape) == 2 and self._has_bias(part):
                yield bias_of(in_layer(layer, part)), shape[:1]
        experts = self.config.experts_of(layer)
        if experts is not None and experts.choice_bias:
            yield names.choice_bias_of(layer), (experts.count,)

    def _layer_parts(self, layer: int) -> Iterator[tuple[str, Shape]]:
        """Matrices and norms of a layer, in the order of a pass."""
        config, hidden = self.config, (self.config.hidden_size,)
        norms, shapes = config.norms, self._layer_shapes(layer)
        around = {
            names.Q: (norms.pre_attention, None),
            names.QKV: (norms.pre_attention, None),
            names.OUT: (None, norms.post_attention),
            names.GATE: (norms.pre_mlp, None),
            names.GATE_UP: (norms.pre_mlp, None),
            names.ROUTER: (norms.pre_mlp, None),
            names.DOWN: (None, norms.post_mlp),
        }
        for part, shape in shapes.items():
            before, after = around.get(part, (None, None))
            if part == names.OUT:
                yield from self._qk_norms()
            if before is not None:
                yield before, hidden
            yield part, shape
            if after is not None:
                yield after, hidden

    def _qk_norms(self) -> Iterator[tuple[str, Shape]]:
        config = self.config
        if config.qk_norm != "none":
            whole = config.qk_norm == "all"
            yield names.Q_NORM, (config.head_dim * (config.num_attention_heads if whole else 1),)
            yield names.K_NORM, (config.head_dim * (config.num_key_value_heads if whole else 1),)

    def _has_bias(self, part: str) -> bool:
        if part.startswith("mlp."):
            return self.config.mlp_bias and part in (names.GATE, names.UP, names.GATE_UP, names.DOWN)
        return self.config.o_bias if part == names.OUT else self.config.qkv_bias

    def _layer_shapes(self, layer: int) -> dict[str, Shape]:
        """Of a layer's matrices, in the order of a pass."""
        config = self.config
        hidden = config.hidden_size
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        attention = {names.Q: (queries, hidden), names.K: (keys, hidden), names.V: (keys, hidden)}
        if config.fused_qkv:
            attention = {names.QKV: (queries + 2 * keys, hidden)}
        experts = config.experts_of(layer)
        mlp = self._mlp_shapes() if experts is None else dict(self._iter_mixture(experts))
        return {**attention, names.OUT: (hidden, queries), **mlp}

    def _mlp_shapes(self) -> dict[str, Shape]:
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        if self.config.fused_gate_up:
            return {names.GATE_UP: (2 * inner, hidden), names.DOWN: (hidden, inner)}
        return {names.GATE: (inner, hidden), names.UP: (inner, hidden), names.DOWN: (hidden, inner)}

    def _iter_mixture(self, experts: ExpertsConfig) -> Iterator[tuple[str, Shape]]:
        """The router, what all rows share, and the experts in the order of their numbers."""
        hidden = self.config.hidden_size
        yield names.ROUTER, (experts.count, hidden)
        sizes = [(names.SHARED, experts.shared_size)] if experts.shared_size else []
        if experts.shared_gate:
            yield names.SHARED_GATE, (1, hidden)
        sizes += [(names.expert(number), experts.intermediate_size) for number in range(experts.count)]
        for prefix, inner in sizes:
            gate, up, down = names.mlp_parts(prefix)
            yield from ((gate, (inner, hidden)), (up, (inner, hidden)), (down, (hidden, inner)))

    def _weights_per_row(self, layer: int) -> int:
        """Weights of a layer that each row is multiplied with."""
        weights = sum(map(prod, self._layer_shapes(layer).values()))
        experts = self.config.experts_of(layer)
        if experts is None:
            return weights
        idle = experts.count - experts.per_token
        return weights - idle * 3 * experts.intermediate_size * self.config.hidden_size


def _keys_seen(rows: int, positions: int, window: int) -> int:
    """Keys that the last `rows` of so many positions attend to, summed."""
    first = positions - rows
    if not window or positions <= window:
        return rows * first + rows * (rows + 1) // 2
    growing = max(0, window - first)  # rows that see less than a window
    return growing * first + growing * (growing + 1) // 2 + (rows - growing) * window
