"""Rotary position embedding: the inverse frequencies, step by step in float32 as `transformers` forms them.

Powers are taken in decimal arithmetic and rounded once, so that they are the same on every machine.
Sources: arXiv 2104.09864 (RoPE); arXiv 2306.15595 (linear); the Llama 3.1 model card and `transformers` (llama3).
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from penstock.architectures.config import RopeConfig
    from penstock.compute.kernels import F32

ONE = np.float32(1)


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> F32:
    """Radians a position, float32 [head_dim / 2], for the three RoPE types."""
    inv_freq: F32 = ONE / _powers(rope.theta, np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    if rope.kind == "linear":
        inv_freq = inv_freq / np.float32(rope.factor)
    if rope.kind == "llama3":
        inv_freq = _llama3(inv_freq, rope)
    return inv_freq


def _powers(base: float, exponents: F32) -> F32:
    """base ** exponents, correctly rounded."""
    with localcontext() as context:
        context.prec = 50
        return np.array([float(Decimal(base) ** Decimal(float(e))) for e in exponents], np.float32)


def _llama3(inv_freq: F32, rope: RopeConfig) -> F32:
    """Long wavelengths stretched by `factor`, short ones left alone, those between blended."""
    factor, low, high, context = (
        np.float32(value)
        for value in (rope.factor, rope.low_freq_factor, rope.high_freq_factor, rope.original_max_position_embeddings)
    )
    wavelength = (ONE / inv_freq) * np.float32(2 * math.pi)
    smooth = ((ONE / wavelength) * context - low) / (high - low)
    blended = (ONE - smooth) * inv_freq / factor + smooth * inv_freq
    stretched = np.where(wavelength > context / low, inv_freq / factor, inv_freq)
    between = (wavelength >= context / high) & (wavelength <= context / low)
    return np.where(between, blended, stretched)
