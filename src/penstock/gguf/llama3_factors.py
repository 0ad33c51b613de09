"""Llama 3's scaling of rope, told from the tensor that GGUF has in place of its four numbers.

The converter of llama.cpp writes by what each frequency is divided, in float32. Dividing by that does not give the bits
that the config's own formula gives, so the numbers themselves are looked for: those of the published models, of which
one has to explain the tensor. Source: conversion/llama.py of llama.cpp (`generate_extra_tensors`).
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from penstock.compute.kernels import F32

_FACTORS = (8.0, 32.0, 16.0, 4.0, 2.0, 64.0)
_LOW, _HIGH = 1.0, 4.0
_ORIGINAL = (8192, 4096, 2048, 16384, 32768, 1024, 512, 256, 128, 64)
_TOLERANCE = 1e-4
"""Relative; the converter's float32 is within 1e-6, and other numbers are off by 0.01 and more."""
_REMEDY = "Use the original checkpoint of the model, whose config.json has the numbers."


def llama3_scaling(factors: F32, theta: float, head_dim: int, source: str) -> dict[str, Any] | None:
    """The `rope_scaling` that explains `factors`, float32 [head_dim / 2]; None where nothing is scaled.

    Raises FormatError where there are not as many, UnsupportedError where no known numbers explain them.
    """
    if factors.shape != (head_dim // 2,):
        problem = f"{source}: rope_freqs.weight has shape {factors.shape}, not ({head_dim // 2},)"
        raise FormatError(problem, "Convert the model again with a recent llama.cpp.")
    if np.all(factors == 1):
        return None
    largest = float(factors.max())
    for original, factor in product(_ORIGINAL, dict.fromkeys([largest, *_FACTORS])):
        expected = _expected(theta, head_dim, factor, original)
        if np.allclose(factors, expected, rtol=_TOLERANCE, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": _LOW,
                "high_freq_factor": _HIGH,
                "original_max_position_embeddings": original,
            }
    raise UnsupportedError(f"{source}: rope_freqs.weight scales frequencies as no known Llama 3 does", _REMEDY)


def _expected(theta: float, head_dim: int, factor: float, original: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (original / wavelengths - _LOW) / (_HIGH - _LOW)
    blended = 1 / ((1 - np.clip(smooth, 0, 1)) / factor + np.clip(smooth, 0, 1))
    return np.where(wavelengths > original / _LOW, factor, blended)
