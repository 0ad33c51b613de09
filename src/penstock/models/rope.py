"""Rotary position embedding: the inverse frequencies, step by step in float32 as `transformers` forms them.

Powers are taken in decimal arithmetic and rounded once, so that they are the same on every machine.
Sources: arXiv 2104.09864 (RoPE); arXiv 2306.15595 (linear); the Llama 3.1 model card and `transformers` (llama3);
arXiv 2309.00071 (yarn); arXiv 2402.13753 (longrope).
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
    """Radians a position, float32 [rotary_dim / 2]."""
    turning = rope.rotary_dim or head_dim
    powers = _powers(rope.theta, np.arange(0, turning, 2, dtype=np.float32) / np.float32(turning))
    if rope.kind == "longrope":
        factored: F32 = ONE / (np.array(rope.factors, np.float32) * powers)
        return factored
    if rope.kind == "yarn":
        return _yarn(powers, rope)
    inv_freq: F32 = ONE / powers
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


def _yarn(powers: F32, rope: RopeConfig) -> F32:
    """Frequencies that turn seldom divided by `factor`, those that turn often left alone, those between blended."""
    low, high = (np.float32(bound) for bound in rope.ramp)
    ramp = np.clip((np.arange(len(powers), dtype=np.float32) - low) / (high - low), np.float32(0), ONE)
    kept = ONE - ramp
    blended: F32 = (ONE / (np.float32(rope.factor) * powers)) * (ONE - kept) + (ONE / powers) * kept
    return blended
