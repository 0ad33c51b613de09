"""How fast an expert comes from the disk once a router has named it, beside the disk's own speed.

    python bench/demand.py MODEL [--experts 200] [--together 1 8] [--memory 1GiB]

Experts of random layers are asked for as a pass does it, so many of a layer at a time, and waited for; nothing is
computed, and nothing stays in memory. In turn with them come as many bytes
in large reads at random places.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from penstock import LLM
from penstock.disk.files import Extent, Files, aligned_buffer
from penstock.options import OpenOptions
from penstock.weights.weights import Weights

LARGE, READS = 8 << 20, 8
PORTION = 16
"""Experts that are read between two measurements of the disk: its speed may change from second to second."""


def fetch(weights: Weights, experts: list[tuple[str, str, str]]) -> tuple[int, float]:
    """Bytes of these experts of one layer, and the seconds until all of them were there."""
    begin, before = time.perf_counter(), weights.totals.bytes_read
    weights.expect([name for parts in experts for name in parts])
    for parts in experts:
        for name in parts:
            for _ in weights.pieces(name):
                pass
    return weights.totals.bytes_read - before, time.perf_counter() - begin


def large_reads(paths: Sequence[Path], nbytes: int, rng: random.Random) -> tuple[int, float]:
    """Bytes and seconds of direct reads of LARGE each at random places, READS at once: other places every time, since
    what lies beneath may keep what was read."""
    extents = [
        Extent(path, rng.randrange(path.stat().st_size - LARGE), LARGE)
        for path in rng.choices(paths, k=nbytes // LARGE + 1)
    ]
    files, buffers = Files(), threading.local()

    def read(extent: Extent) -> int:
        if not hasattr(buffers, "own"):
            buffers.own = aligned_buffer(LARGE)
        return files.read(extent, buffers.own).nbytes

    with ThreadPoolExecutor(READS) as threads:
        begin = time.perf_counter()
        done = sum(threads.map(read, extents))
        return done, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--experts", type=int, default=200)
    parser.add_argument("--together", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--memory", default="1GiB")
    args = parser.parse_args()
    rng = random.Random(0)
    with LLM(args.model, OpenOptions(memory=args.memory, max_resident=0, draft="none")) as llm:
        layers = [layer for layer in range(llm.config.num_hidden_layers) if llm.architecture.experts(layer)]
        for together in args.together:
            sizes, times, disk = [], [], []
            for _ in range(args.experts // PORTION):
                for _ in range(PORTION // together):
                    experts = rng.sample(llm.architecture.experts(rng.choice(layers)), together)
                    nbytes, seconds = fetch(llm.weights, experts)
                    sizes.append(nbytes)
                    times.append(seconds)
                disk.append(large_reads(llm.files, sum(sizes[-PORTION // together :]), rng))
            rate = sum(sizes) / sum(times)
            probe = sum(nbytes for nbytes, _ in disk) / sum(seconds for _, seconds in disk)
            size = sum(sizes) / len(sizes) / together / 1e6
            print(f"{together} at a time, {size:.2f} MB each: {rate / 1e9:.3f} GB/s, {rate / probe:.2f} of the disk")


if __name__ == "__main__":
    main()
