"""Speed of the products that draft, by the coarse tier and by 4-bit weights, beside a plain read of the same bytes.

    python bench/drafting.py [--rows 1,4,8,16,64,256] [--k 4096] [--n 14336] [--isa NAME]

Each round times one product and one read, with weights that no cache holds; ratios are medians over rounds. Seconds are
for 1e9 weights.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matmul import Reader, seconds_of

from penstock import _core
from penstock.compute import codec
from penstock.compute.kernels import F32, U8, Kernels
from penstock.compute.levels import CoarseChunks, CoarseRows

MEMORY_BYTES = 1 << 28
ROWS_PER_CHUNK = 128


@dataclass(frozen=True)
class Contender:
    """A product with `copies` of the same weights in turn, and a reader of their bytes."""

    name: str
    product: Callable[[F32, int, F32], None]
    reader: Reader
    copies: int


def random_coarse(k: int, n: int, rng: np.random.Generator) -> U8:
    """Chunks of rows whose classes are as frequent as those of real weights, a few of each."""
    weights = (rng.standard_normal((ROWS_PER_CHUNK, k), np.float32) * 1.3).view(np.uint32) >> 16
    size = codec.coarse_bytes(ROWS_PER_CHUNK, k)
    coarse, fine = np.zeros(size, np.uint8), np.zeros(codec.most_fine_bytes(ROWS_PER_CHUNK, k), np.uint8)
    codec.encode(weights.astype("<u2").reshape(-1).view(np.uint8), ROWS_PER_CHUNK, k, coarse, fine)
    return np.tile(coarse, -(-n // ROWS_PER_CHUNK))


def coarse_contender(kernels: Kernels, k: int, n: int, rng: np.random.Generator, threads: int) -> Contender:
    chunks = random_coarse(k, n, rng)
    levels = kernels.coarse_levels(CoarseChunks(n, k, ROWS_PER_CHUNK, [chunks]))
    copies = [chunks.copy() for _ in range(max(1, MEMORY_BYTES // chunks.size))]
    weights = [CoarseRows(CoarseChunks(n, k, ROWS_PER_CHUNK, [copy]), *levels) for copy in copies]
    return Contender(
        "coarse", lambda x, i, out: kernels.matmul_coarse(x, weights[i], out), Reader(copies, threads), len(copies)
    )


def nibble_contender(kernels: Kernels, k: int, n: int, rng: np.random.Generator, threads: int) -> Contender:
    weights = rng.standard_normal((n, k), np.float32).view(np.uint32) >> 16
    source = weights.astype("<u2").reshape(-1).view(np.uint8)
    first = kernels.quantize_nibbles(source, n, k)
    copies = [type(first)(n, k, first.data.copy(), first.scales) for _ in range(MEMORY_BYTES // first.data.size)]
    reader = Reader([copy.data for copy in copies], threads)
    return Contender("4 bits", lambda x, i, out: kernels.matmul_nibbles(x, copies[i], out), reader, len(copies))


def measure(contender: Contender, k: int, n: int, rows: int, rounds: int) -> str:
    rng = np.random.default_rng(1)
    x, out = rng.standard_normal((rows, k), np.float32), np.empty((rows, n), np.float32)
    own, read = [], []
    for turn in range(rounds + 1):
        own.append(seconds_of(lambda turn=turn: contender.product(x, turn % contender.copies, out)))
        read.append(seconds_of(contender.reader))
    own, read = own[1:], read[1:]  # the first round warms up
    each = statistics.median(own) / (k * n) * 1e9
    ratio = statistics.median(r / o for r, o in zip(read, own, strict=True))
    speed = contender.reader.bytes / statistics.median(read) / 1e9
    return f"{contender.name:>8} {rows:6d} {each:12.4f} {rows / each:12.1f} {speed:10.1f} {ratio:10.2f}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", default="1,4,8,16,64,256")
    parser.add_argument("--k", type=int, default=4096)
    parser.add_argument("--n", type=int, default=14336)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--isa", help="instruction set to force")
    return parser.parse_args()


def main() -> None:
    options = parse()
    kernels = Kernels(options.threads)
    if options.isa:
        _core.set_isa(options.isa)
    n = -(-options.n // ROWS_PER_CHUNK) * ROWS_PER_CHUNK
    rng = np.random.default_rng(0)
    print(f"{_core.isa()}, {options.threads} threads, k={options.k}, n={n}")
    print(" weights   rows   s a billion   G products/s  read GB/s  x of read")
    for make in (coarse_contender, nibble_contender):
        contender = make(kernels, options.k, n, rng, options.threads)
        for rows in map(int, options.rows.split(",")):
            print(measure(contender, options.k, n, rows, options.rounds), flush=True)


if __name__ == "__main__":
    main()
