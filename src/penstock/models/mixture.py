"""A mixture of experts (arXiv 2101.03961): a router gives each row to a few of a layer's MLPs.

Each expert that any row needs is applied to all of its rows at once, in the order of their numbers, and what it gives
is added to them with the router's weights; so a row's bits depend on nothing but the row (docs/design.md, "Experts").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from penstock.architectures.names import (
    ROUTER,
    SHARED,
    SHARED_GATE,
    choice_bias_of,
    expert,
    in_layer,
    mlp_parts,
)

if TYPE_CHECKING:
    from penstock.architectures.config import ExpertsConfig
    from penstock.compute.kernels import F32, I32
    from penstock.models.adapted import AdaptedRows
    from penstock.models.products import Products


def mixture(products: Products, index: int, experts: ExpertsConfig, h: F32, adapted: AdaptedRows) -> F32:
    """What the experts of a layer make of normalised rows h[n, hidden_size], summed with the router's weights in
    the order of their numbers; then what all rows share."""
    ids, factors = _route(products, index, experts, h, adapted)
    used = [int(number) for number in np.unique(ids)]
    parts = {number: [in_layer(index, part) for part in mlp_parts(expert(number))] for number in used}
    products.weights.expect([name for number in used for name in parts[number]])
    shared = _shared(products, index, experts, h, adapted)  # computed while experts are read
    y = np.zeros_like(h)
    for number in used:
        rows, places = np.nonzero(ids == number)
        gate, up, down = parts[number]
        own = adapted.of(rows)
        out = products.linear(down, products.gated(gate, up, h[rows], own), own)
        products.kernels.add_rows(out, factors[rows, places], y, at=rows.astype(np.int32))
    if shared is not None:
        products.kernels.add_rows(*shared, y)
    return y


def _route(products: Products, index: int, experts: ExpertsConfig, h: F32, adapted: AdaptedRows) -> tuple[I32, F32]:
    """Which experts each row goes to, and with what weights, [n, per_token]."""
    return products.kernels.route(
        products.linear(in_layer(index, ROUTER), h, adapted),
        experts.per_token,
        bias=products.vectors[choice_bias_of(index)] if experts.choice_bias else None,
        sigmoid=experts.sigmoid,
        renormalize=experts.renormalize,
        scaling=experts.scaling,
        groups=experts.groups,
        kept_groups=experts.kept_groups,
    )


def _shared(
    products: Products, index: int, experts: ExpertsConfig, h: F32, adapted: AdaptedRows
) -> tuple[F32, F32] | None:
    """What an MLP gives that all rows go through, [n, hidden_size], and its weight for each row."""
    if not experts.shared_size:
        return None
    factors = np.ones(len(h), np.float32)
    if experts.shared_gate:  # its sigmoid is that of a router with one expert
        logits = products.linear(in_layer(index, SHARED_GATE), h, adapted)
        factors = products.kernels.route(logits, 1, sigmoid=True)[1].reshape(-1)
    gate, up, down = (in_layer(index, part) for part in mlp_parts(SHARED))
    return products.linear(down, products.gated(gate, up, h, adapted), adapted), factors
