"""A decoder's shape and constants, whatever its family: what a config.json comes to."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope"]
WhichRope = Literal["main", "local", "none"]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding (arXiv 2104.09864) with base `theta`.

    `linear` divides all frequencies by `factor`; `llama3` only the low ones, with a ramp between the wavelengths
    original_max_position_embeddings / high_freq_factor and / low_freq_factor; `yarn` (arXiv 2309.00071) likewise, with
    a ramp between the dimensions `ramp`; `longrope` (arXiv 2402.13753) each by its own of `factors`. A kind leaves
    unused fields as below.
    """

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_position_embeddings: int = 0
    rotary_dim: int = 0
    """Dimensions of a head that turn; 0: all."""
    attention_factor: float = 1.0
    """What cosines and sines are multiplied by."""
    ramp: tuple[float, float] = (0.0, 0.0)
    factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    """Those for more than original_max_position_embeddings, while it is not known yet how many there will be."""

    def for_context(self, context: int) -> RopeConfig:
        """The one choice of factors for all positions of a model that is opened for so many: sequences of the same
        tokens have the same keys, however long they get."""
        if not self.long_factors:
            return self
        chosen = self.long_factors if context > self.original_max_position_embeddings else self.factors
        return replace(self, factors=chosen, long_factors=())


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What tells layers of one model from each other."""

    window: int = 0
    """Positions that a query sees, the last one its own; 0: all."""
    rope: WhichRope = "main"


@dataclass(frozen=True, slots=True)
class Norms:
    """The norms of a layer, by the names of their tensors; None where there is none."""

    pre_attention: str | None
    post_attention: str | None
    pre_mlp: str | None
    post_mlp: str | None


PRE_NORMS = Norms("input_layernorm", None, "post_attention_layernorm", None)
POST_NORMS = Norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
SANDWICH_NORMS = Norms(
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
)


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """Layers whose MLP is a mixture of experts (arXiv 2101.03961): a router gives each row to a few of them, and what
    they give is summed with the router's weights, in the order of their numbers (docs/design.md, "Experts")."""

    count: int
    per_token: int
    """Experts that a row goes to."""
    intermediate_size: int
    """Of each expert."""
    sigmoid: bool = False
    """Whether scores are sigmoids of the router's logits, in place of a softmax over all experts."""
    renormalize: bool = False
    """Whether the weights of a row's experts are divided by their sum."""
    scaling: float = 1.0
    """Of the weights."""
    groups: int = 1
    kept_groups: int = 1
    """Of as many groups of experts, only so many are chosen from."""
    choice_bias: bool = False
    """Whether a vector is added to scores where experts are chosen, and not where they are weighed."""
    shared_size: int = 0
    """Of an MLP beside them, which all rows go through; 0: none."""
    shared_gate: bool = False
    """Whether its output is multiplied by the sigmoid of a product of its own."""
    dense_layers: tuple[int, ...] = ()
    """Layers that have a plain MLP in their place."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a decoder needs to run, with transformers' names; sizes are positive, eos_token_ids may be empty.

    A layer is (docs/design.md, "A layer"): norm, products for queries, keys and values, norm of queries and keys, rope,
    attention, product, norm, sum; norm, gated MLP, norm, sum. The defaults are those of a Llama.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    max_position_embeddings: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    norms: Norms = PRE_NORMS
    norm_offset: float = 0.0
    """What the weights of all norms are short of."""
    qk_norm: Literal["none", "head", "all"] = "none"
    """Queries and keys: normalised head by head, or all heads as one vector."""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    """Of what attention and MLP add to the hidden rows."""
    attention_multiplier: float = 0.0
    """Of scores; 0: 1 / sqrt(head_dim)."""
    attention_softcap: float = 0.0
    logits_divisor: float = 1.0
    logits_softcap: float = 0.0
    """A cap c makes c * tanh(x / c) of x; 0: none."""
    layer_kinds: tuple[LayerKind, ...] = ()
    """One for each layer; none: all are alike, and see everything."""
    local_rope: RopeConfig | None = None
    fused_qkv: bool = False
    """Queries, keys and values come of one matrix, in this order."""
    fused_gate_up: bool = False
    experts: ExpertsConfig | None = None

    @property
    def score_scale(self) -> float:
        return self.attention_multiplier or 1 / math.sqrt(self.head_dim)

    @property
    def ropes(self) -> dict[WhichRope, RopeConfig]:
        """Those that its layers have."""
        used = {kind.rope for kind in self.layer_kinds} or {"main"}
        both: dict[WhichRope, RopeConfig] = {"main": self.rope}
        if self.local_rope is not None:
            both["local"] = self.local_rope
        return {name: rope for name, rope in both.items() if name in used}

    @property
    def usual_context(self) -> int:
        """Positions of a sequence, where nobody asks for others: those that the model was trained for, but where more
        than the original ones change the keys of all, only these."""
        return self.rope.original_max_position_embeddings if self.rope.long_factors else self.max_position_embeddings

    def experts_of(self, layer: int) -> ExpertsConfig | None:
        """Those of a layer; None where it has a plain MLP."""
        return None if self.experts is None or layer in self.experts.dense_layers else self.experts

    def layer_kind(self, layer: int) -> LayerKind:
        return self.layer_kinds[layer] if self.layer_kinds else LayerKind()

    def for_context(self, context: int) -> ModelConfig:
        """As it is where sequences have up to so many positions."""
        return replace(self, rope=self.rope.for_context(context))
