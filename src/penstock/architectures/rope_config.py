"""RoPE settings of a config.json.

They come in two layouts: `rope_theta` beside `rope_scaling`, and, newer, both within `rope_parameters`, which may be
one for each type of layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext

from penstock.architectures.config import RopeConfig
from penstock.architectures.values import check_only_value
from penstock.errors import UnsupportedError
from penstock.strict_json import Fields, shown

LAYER_TYPES = FULL, SLIDING = "full_attention", "sliding_attention"


def rope_fields(fields: Fields, layer_type: str = FULL) -> Fields:
    """The settings for layers of a type. Where there are both layouts, rope_scaling wins, as in transformers;
    rope_parameters then counts as unknown."""
    rope = fields.part("rope_scaling")
    if not rope.mapping:
        rope = fields.part("rope_parameters")
    return rope.part(layer_type) if layer_type in rope.mapping else rope


@dataclass(frozen=True, slots=True)
class RopeDefaults:
    """What a family's rope is like."""

    theta: float = 10000.0
    """The base, where none is given."""
    partial: bool = False
    """Whether it may turn a part of a head's dimensions."""
    share: float = 1.0
    """Which part of a head's dimensions turns, where that is not given."""
    longrope: bool = False
    """Whether it has no other scaling, whatever that is called."""


def read_rope(fields: Fields, family: RopeDefaults, *, head_dim: int, max_positions: int) -> RopeConfig:
    """The rope of all layers, or of those with full attention. Raises FormatError and UnsupportedError."""
    rope = rope_fields(fields)
    base = rope.positive("rope_theta", fields.positive("rope_theta", family.theta))
    if not family.partial:
        check_only_value(rope, "partial_rotary_factor", (1, None))
        check_only_value(fields, "partial_rotary_factor", (1, None))
    plain = RopeConfig(base, rotary_dim=_rotary_dim(fields, rope, head_dim, family.share))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return plain
    if kind == "linear":
        return replace(plain, kind="linear", factor=rope.positive("factor"))
    if kind == "llama3":
        return _llama3(rope, plain, max_positions)
    turning = plain.rotary_dim or head_dim
    if kind in ("longrope", "su") or (family.longrope and kind == "yarn"):
        return _longrope(fields, rope, plain, turning, max_positions)
    if kind == "yarn":
        return _yarn(rope, plain, turning, max_positions)
    remedy = "Penstock runs models with the rope types 'default', 'linear', 'llama3', 'yarn' and 'longrope'."
    raise UnsupportedError(f"{rope.source}: {rope.prefix}rope_type is {shown(kind)}", remedy)


def read_local_rope(fields: Fields, theta: float) -> RopeConfig:
    """The rope of layers with windows, in families whose ropes differ in their base; it is never scaled."""
    own = fields.part("rope_parameters").mapping.get(SLIDING)
    if isinstance(own, dict):
        local = rope_fields(fields, SLIDING)
        check_only_value(local, "rope_type", ("default",))
        return RopeConfig(local.positive("rope_theta", theta))
    return RopeConfig(fields.positive("rope_local_base_freq", theta))


def _rotary_dim(fields: Fields, rope: Fields, head_dim: int, usual: float) -> int:
    """By `partial_rotary_factor`, or the usual share; 0 where every dimension turns."""
    fields.get("partial_rotary_factor")
    own = rope if rope.get("partial_rotary_factor") is not None else fields
    given = own.get("partial_rotary_factor") is not None
    share = own.positive("partial_rotary_factor") if given else usual
    rotary = int(head_dim * min(share, 2))
    if not 2 <= rotary <= head_dim or rotary % 2:
        own.fail("partial_rotary_factor", f"a share, up to 1, that is an even number of a head's {head_dim} dimensions")
    return rotary if rotary < head_dim else 0


def _llama3(rope: Fields, plain: RopeConfig, max_positions: int) -> RopeConfig:
    low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
    if high <= low:
        rope.fail("high_freq_factor", f"above low_freq_factor, {low}")
    original = rope.size("original_max_position_embeddings", max_positions)
    return replace(
        plain,
        kind="llama3",
        factor=rope.positive("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=original,
    )


def _yarn(rope: Fields, plain: RopeConfig, turning: int, max_positions: int) -> RopeConfig:
    """`turning`: dimensions of a head that turn."""
    factor = rope.positive("factor")
    original = rope.size("original_max_position_embeddings", max_positions)
    fast, slow = _positive_or(rope, "beta_fast", 32.0), _positive_or(rope, "beta_slow", 1.0)
    low, high = (_turning_dimension(turns, plain.theta, turning, original) for turns in (fast, slow))
    if rope.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0.0), min(high, turning - 1.0)
    return replace(
        plain,
        kind="yarn",
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=_yarn_attention_factor(rope, factor),
        ramp=(float(low), high + 0.001 if low == high else float(high)),
    )


def _turning_dimension(turns: float, theta: float, dim: int, positions: int) -> float:
    """Where a frequency turns so often in so many positions; logarithms to 50 digits are the same everywhere."""
    if theta == 1:
        return 0.0
    with localcontext() as context:
        context.prec = 50
        ratio = Decimal(positions) / (Decimal(turns) * 2 * Decimal(math.pi))
        return float(Decimal(dim) * ratio.ln() / (2 * Decimal(theta).ln()))


def _yarn_attention_factor(rope: Fields, factor: float) -> float:
    given = rope.get("attention_factor")
    mscale, mscale_all = rope.get("mscale"), rope.get("mscale_all_dim")
    if given is not None:
        return rope.positive("attention_factor")
    if mscale and mscale_all:
        return _magnitude(factor, rope.positive("mscale")) / _magnitude(factor, rope.positive("mscale_all_dim"))
    return _magnitude(factor, 1.0)


def _magnitude(factor: float, scale: float) -> float:
    if factor <= 1:
        return 1.0
    with localcontext() as context:
        context.prec = 50
        return float(Decimal("0.1") * Decimal(scale) * Decimal(factor).ln() + 1)


def _longrope(fields: Fields, rope: Fields, plain: RopeConfig, turning: int, max_positions: int) -> RopeConfig:
    """Where it was trained for so many positions first is said beside the other settings, or above them."""
    own = fields if rope.get("original_max_position_embeddings") is None else rope
    original = own.size("original_max_position_embeddings", max_positions)
    fields.get("original_max_position_embeddings")
    short, long = (rope.positives(f"{length}_factor", turning // 2) for length in ("short", "long"))
    return replace(
        plain,
        kind="longrope",
        original_max_position_embeddings=original,
        attention_factor=_longrope_attention_factor(rope, max_positions, original),
        factors=short,
        long_factors=long if max_positions > original else (),
    )


def _longrope_attention_factor(rope: Fields, max_positions: int, original: int) -> float:
    if rope.get("attention_factor") is not None:
        return rope.positive("attention_factor")
    stretch = _positive_or(rope, "factor", max_positions / original)
    if stretch <= 1 or original == 1:
        return 1.0
    with localcontext() as context:
        context.prec = 50
        return float((1 + Decimal(stretch).ln() / Decimal(original).ln()).sqrt())


def _positive_or(rope: Fields, key: str, default: float) -> float:
    return default if rope.get(key) is None else rope.positive(key)
