"""How config.json describes a mixture of experts: what several families have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.architectures.config import ExpertsConfig

if TYPE_CHECKING:
    from penstock.strict_json import Fields

MOST_EXPERTS = 4096
ROUTER_KEYS = frozenset({"output_router_logits", "router_aux_loss_coef", "router_jitter_noise"})
"""What counts in training only."""


def read_experts(
    fields: Fields,
    count: tuple[str, int],
    per_token: int,
    inner: tuple[str, int],
    *,
    renormalize: bool,
) -> ExpertsConfig:
    """Experts of which rows are given to a few by a softmax; of `count` and `inner`, the key and what counts where it
    is absent. Either of the names that files have for the number of experts will do. Raises FormatError."""
    key, default = count
    key = next((name for name in (key, "num_experts", "num_local_experts") if name in fields.mapping), key)
    experts = ExpertsConfig(
        count=fields.size(key, default),
        per_token=fields.size("num_experts_per_tok", per_token),
        intermediate_size=fields.size(*inner),
        renormalize=renormalize,
    )
    if experts.count > MOST_EXPERTS:
        fields.fail(key, f"a number up to {MOST_EXPERTS:,}")
    if experts.per_token > experts.count:
        fields.fail("num_experts_per_tok", f"a number up to {key}, {experts.count}")
    return experts


def dense_layers(fields: Fields, layers: int) -> tuple[int, ...]:
    """The layers of a Qwen that have a plain MLP: those listed, and all but each `decoder_sparse_step`th."""
    listed, step = fields.get("mlp_only_layers"), fields.size("decoder_sparse_step", 1)
    if listed is not None and not (isinstance(listed, list) and all(type(layer) is int for layer in listed)):
        fields.fail("mlp_only_layers", "a list of whole numbers")
    return tuple(layer for layer in range(layers) if layer in (listed or ()) or (layer + 1) % step)
