"""Speed of packed weights: encoding, decoding, and the matrix product beside that with plain weights, in one run.

    python bench/codec.py [--rows 1,16] [--k 4096] [--threads 2] [--isa avx2] [--json]

Weights are normal, each row with a scale 2^x of its own, x uniform, and so many that no cache holds them. Plain and
packed products alternate, so that a disturbance hits both; their ratio is the median over rounds, below 1 where packed
weights are faster. Encoding and decoding take one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from penstock import _core
from penstock.compute import codec

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Product:
    """One line of the table: medians; nanoseconds of one thread for each weight."""

    isa: str
    rows: int
    plain_ns: float
    packed_ns: float
    ratio: float


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def normal_weights(n: int, k: int) -> np.ndarray:
    """BF16 patterns uint16 [n, k]."""
    rng = np.random.default_rng(0)
    weights = np.empty((n, k), np.uint16)
    for row in weights:
        values = rng.standard_normal(k, np.float32) * np.float32(2 ** rng.uniform(-6, 6))
        row[:] = values.view(np.uint32) >> 16
    return weights


class Matrix:
    """Weights, plain and packed."""

    def __init__(self, n: int, k: int) -> None:
        self.n, self.k = n, k
        self.plain = normal_weights(n, k).reshape(-1).view(np.uint8)
        step = codec.rows_per_chunk(k)
        self.encode_seconds = 0.0
        coarse, fine = [], []
        for begin in range(0, n, step):
            chunk = self._encode(begin, min(step, n - begin))
            coarse.append(chunk[0])
            fine.append(chunk[1])
        offsets = np.cumsum([0, *(len(f) for f in fine)])
        self.packed = codec.PackedRows(n, k, step, np.concatenate(coarse), np.concatenate(fine), offsets)

    def _encode(self, begin: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        coarse = np.zeros(codec.coarse_bytes(rows, self.k), np.uint8)
        fine = np.zeros(codec.most_fine_bytes(rows, self.k), np.uint8)
        plain = self.plain[2 * begin * self.k : 2 * (begin + rows) * self.k]
        start = time.perf_counter()
        size = codec.encode(plain, rows, self.k, coarse, fine)
        self.encode_seconds += time.perf_counter() - start
        return coarse, fine[:size].copy()

    @property
    def bits(self) -> float:
        return 8 * (self.packed.coarse.size + self.packed.fine.size) / (self.n * self.k)

    def decode_seconds(self) -> float:
        """Of the whole matrix, a chunk at a time, into memory that the cache holds."""
        step = self.packed.rows_per_chunk
        out = np.empty(2 * step * self.k, np.uint8)
        seconds = 0.0
        for begin in range(0, self.n - step, step):
            start = time.perf_counter()
            codec.decode(self.packed, begin, begin + step, out)
            seconds += time.perf_counter() - start
        return seconds * self.n / (self.n // step * step)


def products(matrix: Matrix, pool: _core.ThreadPool, rows: int, rounds: int) -> Product:
    x = np.random.default_rng(1).standard_normal((rows, matrix.k), np.float32)
    out = np.empty((rows, matrix.n), np.float32)
    packed = matrix.packed
    plain_seconds, packed_seconds = [], []
    for _ in range(rounds + 1):
        plain_seconds.append(seconds_of(lambda: _core.matmul(pool, x, matrix.plain, "BF16", out)))
        packed_seconds.append(seconds_of(lambda: _core.matmul_packed(pool, x, packed, out)))
    pairs = list(zip(plain_seconds, packed_seconds, strict=True))[1:]  # the first round warms up
    to_ns = 1e9 * pool.threads / (matrix.n * matrix.k)
    return Product(
        isa=_core.isa(),
        rows=rows,
        plain_ns=statistics.median(plain for plain, _ in pairs) * to_ns,
        packed_ns=statistics.median(packed for _, packed in pairs) * to_ns,
        ratio=statistics.median(packed / plain for plain, packed in pairs),
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", default="1,4,16,64,200", help="rows of activations")
    parser.add_argument("--k", type=int, default=4096, help="columns of the weights")
    parser.add_argument("--weights", type=float, default=64e6, help="how many, about")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="for each number of rows (default: fewer where there are many)")
    parser.add_argument("--isa", help="one instruction set (default: all, save the emulating scalar one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return parser.parse_args()


def main() -> None:
    options = parse()
    matrix = Matrix(max(1, round(options.weights / options.k)), options.k)
    pool = _core.ThreadPool(options.threads, 4 << 20)
    encode = matrix.plain.nbytes / matrix.encode_seconds / 1e9
    decode, results = {}, []
    for isa in [options.isa] if options.isa else [isa for isa in _core.isas() if isa != "scalar"]:
        _core.set_isa(isa)
        decode[isa] = min(matrix.decode_seconds() for _ in range(3)) * 1e9 / (matrix.n * matrix.k)
        for rows in map(int, options.rows.split(",")):
            rounds = options.rounds or min(21, max(3, 100 // rows))
            results.append(products(matrix, pool, rows, rounds))
    if options.json:
        setting = {"k": matrix.k, "n": matrix.n, "threads": options.threads, "bits_a_weight": matrix.bits}
        speed = {"encode_gigabytes_per_second": encode, "decode_ns": decode}
        print(json.dumps({**setting, **speed, "products": [asdict(result) for result in results]}, indent=1))
        return
    print(f"k={matrix.k}, n={matrix.n}: {matrix.bits:.3f} bits a weight, encoded at {encode:.2f} GB/s of BF16")
    print(", ".join(f"{isa} decodes a weight in {ns:.3f} ns" for isa, ns in decode.items()))
    print(f"{options.threads} threads; ns a weight and thread\n        isa  rows   plain  packed  ratio")
    for r in results:
        print(f"{r.isa:>11} {r.rows:5d} {r.plain_ns:7.3f} {r.packed_ns:7.3f} {r.ratio:6.2f}")


if __name__ == "__main__":
    main()
