"""Attention's speed on this machine, beside the matrix product's in the same run.

Shape of Llama-3.1-8B unless told otherwise: 32 query heads, 8 kv heads, head dimension 128. Decode is one row; its
floor is the time to read the cache once. Prefill is `rows` rows at the end of `keys` keys, each seeing those before it.
Calls go from layer to layer of a cache of several, as in a model, so that the processor's caches do not help.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import numpy as np

from penstock import _core

LAYERS = 4


def seconds(call: Callable[[], None], least: float = 0.4) -> float:
    """The best of several repetitions that together take `least` seconds."""
    call()
    times: list[float] = []
    while sum(times) < least or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


class Attention:
    """A cache of `keys` random keys and values, and calls on it."""

    def __init__(self, options: argparse.Namespace, keys: int) -> None:
        self.pool = _core.ThreadPool(options.threads, options.scratch << 20)
        self.heads, self.kv_heads, self.dim, self.keys = options.heads, options.kv_heads, options.dim, keys
        item = 2 if options.kv_dtype == "bf16" else 4
        plane = self.kv_heads * options.block_slots * self.dim * item
        self.blocks = [np.empty(2 * LAYERS * plane, np.uint8) for _ in range(-(-keys // options.block_slots))]
        self.cache_bytes = 2 * keys * self.kv_heads * self.dim * item
        addresses = np.array([block.ctypes.data for block in self.blocks], np.uint64)
        shape = (self.kv_heads, self.dim, options.kv_dtype)
        planes = range(0, 2 * LAYERS * plane, 2 * plane)
        layers = [_core.KvLayer(addresses, options.block_slots, at, at + plane, *shape) for at in planes]
        rng = np.random.default_rng(0)
        k, v = rng.standard_normal((2, keys, self.kv_heads, self.dim), np.float32)
        for layer in layers:
            _core.store_kv(self.pool, k, v, np.arange(keys, dtype=np.int32), layer)
        self.layers = itertools.cycle(layers)
        self.q = rng.standard_normal((keys, self.heads, self.dim), np.float32)

    def seconds(self, rows: int) -> float:
        """One call for the last `rows` positions."""
        q = self.q[:rows]
        out = np.empty_like(q)
        prefix = np.arange(self.keys - rows + 1, self.keys + 1, dtype=np.int32)
        offsets, tails = np.zeros(rows + 1, np.int32), np.empty(0, np.int32)
        scale = self.dim**-0.5
        return seconds(lambda: _core.attention(self.pool, q, prefix, offsets, tails, scale, next(self.layers), out))

    def flops(self, rows: int) -> int:
        """Multiplications and additions of the scores and the values that rows see."""
        visible = rows * (2 * self.keys - rows + 1) // 2
        return int(4 * visible * self.heads * self.dim)


def matmul_rate(threads: int, rows: int) -> float:
    """FLOP/s of x[rows, 4096] @ w[4096, 4096].T in BF16."""
    n = 4096
    x, out = np.ones((rows, n), np.float32), np.empty((rows, n), np.float32)
    w = np.random.default_rng(0).standard_normal(n * n, np.float32).view(np.uint16)[1::2].copy().view(np.uint8)
    pool = _core.ThreadPool(threads, 4 << 20)
    return 2 * rows * n * n / seconds(lambda: _core.matmul(pool, x, w, "BF16", out))


def copy_rate() -> float:
    """Bytes a second that one thread reads of an array too large for any cache."""
    x = np.ones(1 << 26, np.float32)
    return x.nbytes / seconds(lambda: x.max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", choices=_core.isas(), default=_core.isas()[0])
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--kv-dtype", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--block-slots", type=int, default=32)
    parser.add_argument("--scratch", type=int, default=4, help="MiB for a thread")
    parser.add_argument("--keys", type=int, nargs="*", default=[512, 4096, 32768])
    parser.add_argument("--rows", type=int, nargs="*", default=[8, 64, 512, 4096])
    options = parser.parse_args()
    _core.set_isa(options.isa)
    print(f"{options.isa}, {options.threads} threads; one thread reads {copy_rate() / 1e9:.1f} GB/s")
    for keys in options.keys:
        attention = Attention(options, keys)
        elapsed = attention.seconds(1)
        print(
            f"decode   {keys:6} keys          {elapsed * 1e6:9.0f} us"
            f" {elapsed * 1e9 / keys / options.heads:6.2f} ns/key/head"
            f" {attention.flops(1) / elapsed / 1e9:6.1f} GFLOP/s {attention.cache_bytes / elapsed / 1e9:6.1f} GB/s"
        )
    for rows in options.rows:
        attention = Attention(options, max(rows, 4096))
        rate = attention.flops(rows) / attention.seconds(rows)
        product = matmul_rate(options.threads, rows)
        print(
            f"prefill  {attention.keys:6} keys {rows:4} rows {rate / 1e9:6.1f} GFLOP/s,"
            f" {rate / product:5.2f} of the matrix product's {product / 1e9:6.1f}"
        )


if __name__ == "__main__":
    main()
