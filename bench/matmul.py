"""Speed of the matrix product, beside PyTorch's float32 product and a plain read of the same bytes, in one run.

    python bench/matmul.py [--torch-python VENV/bin/python] [--rows 1,8,64] [--json]

Rounds alternate between the contenders, so that a disturbance hits all of them; the ratios are medians over rounds.
PyTorch runs in a process of its own, which may belong to another environment; without one its columns stay empty.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
PAUSE_SECONDS = 0.02  # lets the other side's threads fall asleep


@dataclass(frozen=True)
class Result:
    """One line of the table. Rates are medians; ratios, of rates, are above 1 where Penstock is faster."""

    rows: int
    seconds: float
    gflops: float
    weight_gigabytes_per_second: float
    read_gigabytes_per_second: float
    ratio_to_read: float
    torch_gflops: float | None
    ratio_to_torch: float | None


def seconds_of(call: Callable[[], object]) -> float:
    time.sleep(PAUSE_SECONDS)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Penstock:
    """The product, with weights of `dtype` that no cache holds from one call to the next."""

    def __init__(self, k: int, n: int, threads: int, dtype: str, isa: str | None) -> None:
        from penstock import _core

        if isa:
            _core.set_isa(isa)
        self.core, self.k, self.n, self.dtype = _core, k, n, dtype
        self.pool = _core.ThreadPool(threads, 1 << 20)
        self.rng = np.random.default_rng(0)
        size = n * k * ITEM_BYTES[dtype]
        # Sign and exponent vary as in real weights; no infinities.
        patterns = self.rng.integers(0x3800, 0x3C00, size // 2, dtype=np.uint16)
        patterns |= self.rng.integers(0, 2, size // 2, dtype=np.uint16) << 15
        self.weights = [patterns.view(np.uint8).copy() for _ in range(max(1, 2**28 // size))]
        self.turn = 0

    def prepare(self, rows: int) -> Callable[[], None]:
        x = self.rng.standard_normal((rows, self.k), np.float32)
        out = np.empty((rows, self.n), np.float32)

        def call() -> None:
            self.turn += 1
            self.core.matmul(self.pool, x, self.weights[self.turn % len(self.weights)], self.dtype, out)

        return call


class Reader:
    """The largest byte of all weights, found by as many threads: nothing but a read."""

    def __init__(self, weights: list[np.ndarray[Any, Any]], threads: int) -> None:
        self.executor = ThreadPoolExecutor(threads)
        self.parts = [np.array_split(w, threads) for w in weights]
        self.bytes = weights[0].size
        self.turn = 0

    def __call__(self) -> None:
        self.turn += 1
        list(self.executor.map(np.maximum.reduce, self.parts[self.turn % len(self.parts)]))


class TorchPeer:
    """Another process that times torch.mm in float32 when asked."""

    def __init__(self, python: str, k: int, n: int, threads: int) -> None:
        command = [python, str(Path(__file__).resolve()), "--peer", f"{k},{n},{threads}"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self._line()

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def seconds(self, rows: int) -> float:
        assert self.process.stdin
        print(rows, file=self.process.stdin, flush=True)
        return float(self._line())


def serve_torch(k: int, n: int, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    weight = torch.randn(n, k)
    print(torch.__version__, flush=True)
    for line in sys.stdin:
        x, out = torch.randn(int(line), k), torch.empty(int(line), n)
        start = time.perf_counter()
        torch.mm(x, weight.t(), out=out)
        print(time.perf_counter() - start, flush=True)


def measure(penstock: Penstock, reader: Reader, torch: TorchPeer | None, rows: int, rounds: int) -> Result:
    call = penstock.prepare(rows)
    own, read, peer = [], [], []
    for _ in range(rounds + 1):
        own.append(seconds_of(call))
        read.append(seconds_of(reader))
        if torch:
            time.sleep(PAUSE_SECONDS)
            peer.append(torch.seconds(rows))
    own, read, peer = own[1:], read[1:], peer[1:]  # the first round warms up
    flops = 2e-9 * rows * penstock.k * penstock.n
    gigabytes = reader.bytes / 1e9
    seconds = statistics.median(own)
    return Result(
        rows=rows,
        seconds=seconds,
        gflops=flops / seconds,
        weight_gigabytes_per_second=gigabytes / seconds,
        read_gigabytes_per_second=gigabytes / statistics.median(read),
        ratio_to_read=statistics.median(r / o for r, o in zip(read, own, strict=True)),
        torch_gflops=flops / statistics.median(peer) if peer else None,
        ratio_to_torch=statistics.median(p / o for p, o in zip(peer, own, strict=True)) if peer else None,
    )


def show(r: Result) -> None:
    torch = f"{r.torch_gflops:8.1f} {r.ratio_to_torch:8.2f}" if r.torch_gflops else f"{'-':>8} {'-':>8}"
    read = f"{r.weight_gigabytes_per_second:8.1f} {r.read_gigabytes_per_second:8.1f} {r.ratio_to_read:8.2f}"
    print(f"{r.rows:6d} {r.seconds * 1e3:10.2f} {r.gflops:8.1f} {torch} {read}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", default="1,2,4,6,8,12,16,32,64,256,4096")
    parser.add_argument("--k", type=int, default=4096)
    parser.add_argument("--n", type=int, default=14336)
    parser.add_argument("--dtype", choices=ITEM_BYTES, default="BF16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="for each number of rows (default: fewer where there are many)")
    parser.add_argument("--isa", help="instruction set to force")
    parser.add_argument("--torch-python", help="a Python that can import torch")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.peer:
        return serve_torch(*map(int, options.peer.split(",")))
    penstock = Penstock(options.k, options.n, options.threads, options.dtype, options.isa)
    reader = Reader(penstock.weights, options.threads)
    torch = TorchPeer(options.torch_python, options.k, options.n, options.threads) if options.torch_python else None
    if not options.json:
        print(f"{penstock.core.isa()}, {options.threads} threads, k={options.k}, n={options.n}, {options.dtype}")
        print("  rows         ms  GFLOP/s    torch    ratio     GB/s     read    ratio")
    results = []
    for rows in map(int, options.rows.split(",")):
        rounds = options.rounds or min(21, max(3, 2000 // rows))
        results.append(measure(penstock, reader, torch, rows, rounds))
        if not options.json:
            show(results[-1])
    if options.json:
        setting = {"isa": penstock.core.isa(), "torch": torch.version if torch else None}
        setting |= {name: getattr(options, name) for name in ("k", "n", "dtype", "threads")}
        print(json.dumps({**setting, "results": [asdict(result) for result in results]}, indent=1))
    return None


if __name__ == "__main__":
    main()
