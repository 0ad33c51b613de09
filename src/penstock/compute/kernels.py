"""The compute core, bound to a pool of threads.

Goals: one place where the instruction set is chosen and threads are started; NumPy arrays in and out.
Non-goals: arithmetic (that is C++), memory (callers allocate every array).
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from penstock import _core
from penstock.compute.codec import MalformedRow
from penstock.compute.indexed import IndexedRows
from penstock.compute.levels import BLOCK, GROUP, CoarseChunks, CoarseRows, NibbleRows, likely_levels
from penstock.errors import UsageError
from penstock.system.pages import page_array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.compute.codec import PackedRows

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]

KvLayer = _core.KvLayer

SCRATCH_BYTES = 4 << 20
"""Scratch of one thread, bytes: lanes and widened weights of a matrix product, scores of attention."""


MOST_THREADS = 1024


class SlowKernelsWarning(UserWarning):
    """A CPU or a choice of instruction set without fused multiply-add."""


def choose_isa() -> str:
    """Activate the instruction set named by PENSTOCK_ISA, or the best that this CPU has, and return its name.

    Raises UsageError for a name that is unknown or that this CPU does not support.
    """
    available = _core.isas()
    wanted = os.environ.get("PENSTOCK_ISA") or available[0]
    if wanted not in available:
        raise UsageError(
            f"PENSTOCK_ISA={wanted}: not an instruction set that this CPU and build support.",
            f"Unset it, or use one of: {', '.join(available)}.",
        )
    _core.set_isa(wanted)
    if _core.emulates_fma():
        message = f"The {wanted} kernels emulate fused multiply-add: results are exact, and many times slower."
        warnings.warn(message, SlowKernelsWarning, stacklevel=3)
    return wanted


def default_threads() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Kernels:
    """Every float operation that can touch a logit (DESIGN of the numerics: docs/design.md).

    All results are bit-identical for every instruction set, thread count and number of rows in a call.
    """

    def __init__(self, threads: int | None = None, scratch_bytes: int = SCRATCH_BYTES) -> None:
        if threads is not None and (not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS):
            raise UsageError(
                f"{threads} threads: a whole number from 1 to {MOST_THREADS} is needed.",
                "Leave --threads out to use every CPU.",
            )
        self.threads = threads or default_threads()
        self.scratch_bytes = scratch_bytes
        self.isa = choose_isa()
        self._pool = _core.ThreadPool(self.threads, scratch_bytes)

    def matmul(
        self, x: F32, weight: U8, dtype: str, out: F32, *, bias: F32 | None = None, accumulate: bool = False
    ) -> None:
        """out[rows, n] = x[rows, k] @ weight[n, k].T + bias[n], added to what `out` holds if `accumulate`.

        `weight` is the checkpoint's bytes of `dtype` ("BF16", "F16", "F32"), at any alignment.
        """
        _core.matmul(self._pool, x, weight, dtype, out, bias, accumulate)

    def matmul_packed(
        self, x: F32, packed: PackedRows, out: F32, *, bias: F32 | None = None, accumulate: bool = False
    ) -> None:
        """As matmul, with packed BF16 weights [n, k]: the same bits.

        Raises MalformedRow for packed bytes that break the format; `out` then holds garbage.
        """
        row = _core.matmul_packed(self._pool, x, packed, out, bias, accumulate)
        if row is not None:
            raise MalformedRow(row)

    def index(self, weights: U8, rows: int, cols: int) -> IndexedRows:
        """BF16 weights [rows, cols], as bytes, in the form that is quickest to multiply with; in pages of its own."""
        exceptions = np.empty(rows, np.int64)
        data = page_array(_core.indexed_bytes(self._pool, weights, cols, exceptions))
        _core.index_rows(self._pool, weights, cols, exceptions, data)
        return IndexedRows(rows, cols, data)

    def matmul_indexed(
        self, x: F32, indexed: IndexedRows, out: F32, *, bias: F32 | None = None, accumulate: bool = False
    ) -> None:
        """As matmul, with indexed BF16 weights [n, k]: the same bits."""
        _require_shape("indexed", indexed.rows, indexed.cols, x, out)
        _core.matmul_indexed(self._pool, x, indexed.data, out, bias, accumulate)

    def matmul_coarse(
        self, x: F32, coarse: CoarseRows, out: F32, *, bias: F32 | None = None, accumulate: bool = False
    ) -> None:
        """As matmul, but a draft: x as int8, weights [n, k] by their coarse tier alone."""
        _core.matmul_coarse(self._pool, x, coarse, out, _quantized(x), bias, accumulate)

    def widen_coarse(self, coarse: CoarseRows, out: F32) -> None:
        """What weights [n, k] are by their coarse tier alone, into out[n, k]."""
        _core.widen_coarse(self._pool, coarse, out)

    def coarse_levels(self, chunks: CoarseChunks) -> tuple[U8, F32]:
        """What the classes of coarse chunks likely stand for: magnitudes uint8 [rows, 4], scales float32 [rows]."""
        counts, units = np.empty((chunks.rows, 4), np.int32), np.empty(chunks.rows, np.uint8)
        _core.count_classes(self._pool, chunks, counts, units)
        return likely_levels(counts, units)

    def quantize_nibbles(self, weights: U8, rows: int, cols: int) -> NibbleRows:
        """The 4-bit weights nearest to BF16 ones [rows, cols], given as bytes; in pages of their own.

        Levels suit a normal distribution; the scale of each block is fitted by least squares.
        """
        data = page_array(rows * -(-cols // GROUP) * (GROUP // 2))
        scales = np.empty(rows * -(-cols // BLOCK), np.float32)
        _core.quantize_nibbles(self._pool, weights, rows, cols, data, scales)
        return NibbleRows(rows, cols, data, scales)

    def matmul_nibbles(
        self, x: F32, nibbles: NibbleRows, out: F32, *, bias: F32 | None = None, accumulate: bool = False
    ) -> None:
        """As matmul, but a draft: x as int8, weights [n, k] as 4-bit ones."""
        _require_shape("4-bit", nibbles.rows, nibbles.cols, x, out)
        _core.matmul_nibbles(self._pool, x, nibbles.data, nibbles.scales, out, _quantized(x), bias, accumulate)

    def add_levels(self, factors: F32, levels: I8, out: F32) -> None:
        """out[rows, n] += factors[rows, k] @ levels[k, n], one row of levels after the other; k is at most 256."""
        _core.add_levels(self._pool, factors, levels, out)

    def rms_norm(self, x: F32, weight: F32, eps: float, out: F32) -> None:
        """Root-mean-square normalisation over the last axis of x[rows, n] (arXiv 1910.07467)."""
        _core.rms_norm(self._pool, x, weight, eps, out)

    def gated(self, gate: F32, up: F32, activation: str, out: F32) -> None:
        """out = activation(gate) * up, elementwise on [rows, n], of "silu" or "gelu_tanh"; may alias (SwiGLU, GEGLU,
        arXiv 2002.05202)."""
        _core.gated(self._pool, gate, up, activation, out)

    def scale(self, x: F32, *, times: float = 1.0, divisor: float = 1.0, cap: float = 0.0) -> None:
        """x[rows, n] * times / divisor in place, each rounded; then cap * tanh(x / cap), unless cap is 0."""
        _core.scale(self._pool, x, times, divisor, cap)

    def add_rows(self, x: F32, factors: F32, out: F32, at: I32 | None = None) -> None:
        """out[at[r]] += factors[r] * x[r] for the rows of x[rows, n]; without `at`, row by row."""
        _core.add_rows(self._pool, x, factors, out, at)

    def route(
        self,
        logits: F32,
        chosen: int,
        *,
        bias: F32 | None = None,
        sigmoid: bool = False,
        renormalize: bool = False,
        scaling: float = 1.0,
        groups: int = 1,
        kept_groups: int = 1,
    ) -> tuple[I32, F32]:
        """Which `chosen` experts each row of logits[rows, experts] goes to, ascending, and with what weights: int32 and
        float32 [rows, chosen] (arXiv 2101.03961).

        Scores are a softmax over all experts, or sigmoids; the best of score + `bias` are chosen, ties go to the lower
        number, of the `kept_groups` of `groups` groups whose two best have the largest sum (arXiv 2412.19437). Weights
        are the scores, divided by their sum if `renormalize`, times `scaling`.
        """
        ids, weights = np.empty((len(logits), chosen), np.int32), np.empty((len(logits), chosen), np.float32)
        _core.route(self._pool, logits, bias, sigmoid, renormalize, scaling, groups, kept_groups, ids, weights)
        return ids, weights

    def rope(self, x: F32, cos: F32, sin: F32) -> None:
        """Rotate the first 2 n dimensions of x[rows, heads, d] in place by the angles of cos, sin [rows, n] (arXiv
        2104.09864)."""
        _core.rope(self._pool, x, cos, sin)

    def rope_table(self, positions: I64, inv_freq: F32) -> tuple[F32, F32]:
        """Cosines and sines, each float32 [rows, d / 2], of float32(position) * inv_freq."""
        cos, sin = (np.empty((len(positions), len(inv_freq)), np.float32) for _ in range(2))
        _core.rope_table(positions, inv_freq, cos, sin)
        return cos, sin

    def widen(self, source: U8, dtype: str, out: F32) -> None:
        """Exact float32 values of `source`, the bytes of a vector of `dtype`, into out[n]."""
        _core.widen(self._pool, source, dtype, out)

    def store_kv(self, k: F32, v: F32, slots: I32, layer: KvLayer) -> None:
        """Round k, v [rows, kv_heads, d] to the cache's type and write row r to slots[r]."""
        _core.store_kv(self._pool, k, v, slots, layer)

    def attention(
        self,
        q: F32,
        prefix: I32,
        tail_offsets: I32,
        tail_slots: I32,
        scale: float,
        layer: KvLayer,
        out: F32,
        *,
        window: int = 0,
        softcap: float = 0.0,
    ) -> None:
        """Grouped-query attention of q[rows, heads, d] over each row's path (rows.py) in one sequence's cache, or over
        the last `window` positions of it; scores capped as softcap * tanh(score / softcap). 0: neither."""
        _core.attention(self._pool, q, prefix, tail_offsets, tail_slots, scale, layer, out, window, softcap)

    def exp(self, x: F32) -> F32:
        """exp of x[n], by the same sequence of operations as attention's."""
        out = np.empty_like(x)
        _core.exp(self._pool, x, out)
        return out


def _quantized(x: F32) -> U8:
    """Memory for the activations of one product as int8."""
    return np.empty(_core.quantized_bytes(*x.shape), np.uint8)


def _require_shape(kind: str, rows: int, cols: int, x: F32, out: F32) -> None:
    if (rows, cols) != (out.shape[1], x.shape[1]):
        raise ValueError(f"{kind} weights are {rows} x {cols}, not {out.shape[1]} x {x.shape[1]}")


def gumbel(seed: int, choice: int, position: int, tokens: Sequence[int] | npt.NDArray[Any]) -> F64:
    """Standard Gumbel noise, float64 [n], one draw for each key (seed, choice, position, token).

    Philox4x32-10 (Salmon et al., SC 2011) makes it a pure function of the key.
    """
    ids = np.ascontiguousarray(tokens, np.int64)
    out = np.empty(len(ids), np.float64)
    _core.gumbel(seed, choice, position, ids, out)
    return out
