"""One lossless code on the chunks of a sample: how small, how fast. For bench/lossless.py, by the Python that holds it.

    python bench/peers/run_codec.py SAMPLE --code zstd-3 --threads 2 --seconds 10

Prints one JSON object. Threads share the chunks; ZipNN, which has threads of its own, gets some chunks at once.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from checkpoint import read_tensors

U16 = npt.NDArray[np.uint16]


class Code(Protocol):
    """A way to pack a matrix of BF16 words [rows, cols]."""

    name: str
    version: str
    at_once: int
    """Chunks that it gets as one matrix."""
    own_threads: bool

    def pack(self, words: U16) -> Any: ...

    def unpack(self, packed: Any, out: U16) -> None: ...

    def nbytes(self, packed: Any) -> int: ...


class Bytes:
    """Base of the codes that know nothing of matrices: bytes in, bytes out."""

    at_once, own_threads = 1, False

    def nbytes(self, packed: Any) -> int:
        return len(packed)


class Gzip(Bytes):
    """What gzip -9 does, without its header of 18 bytes."""

    name, version = "gzip -9", f"zlib {zlib.ZLIB_RUNTIME_VERSION}"

    def pack(self, words: U16) -> bytes:
        return zlib.compress(words.data, 9)

    def unpack(self, packed: bytes, out: U16) -> None:
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(zlib.decompress(packed, bufsize=out.nbytes), np.uint8)


class Zstd(Bytes):
    def __init__(self, level: int) -> None:
        import zstandard

        self.name, self.version = f"zstd -{level}", f"zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}"
        self._module, self._level, self._local = zstandard, level, threading.local()

    def pack(self, words: U16) -> bytes:
        if not hasattr(self._local, "compressor"):
            self._local.compressor = self._module.ZstdCompressor(level=self._level)
        packed: bytes = self._local.compressor.compress(words.data)
        return packed

    def unpack(self, packed: bytes, out: U16) -> None:
        if not hasattr(self._local, "decompressor"):
            self._local.decompressor = self._module.ZstdDecompressor()
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(self._local.decompressor.decompress(packed), np.uint8)


class ZipNN(Bytes):
    """Bytes grouped, exponents in a Huffman code (arXiv 2411.05239)."""

    name, at_once, own_threads = "ZipNN", 16, True

    def __init__(self, threads: int) -> None:
        import zipnn

        self.version = f"zipnn {version('zipnn')}"
        self._zipnn = zipnn.ZipNN(input_format="byte", bytearray_dtype="bfloat16", threads=threads)

    def pack(self, words: U16) -> bytes:
        return bytes(self._zipnn.compress(bytearray(words.data.cast("B"))))

    def unpack(self, packed: bytes, out: U16) -> None:
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(self._zipnn.decompress(packed), np.uint8)


class Penstock:
    """Both tiers of docs/format.md."""

    name, at_once, own_threads = "Penstock", 1, False

    def __init__(self) -> None:
        from penstock.compute import codec

        self.version = f"penstock {version('penstock')}"
        self._codec, self._local = codec, threading.local()

    def pack(self, words: U16) -> Any:
        codec, (rows, cols) = self._codec, words.shape
        if not hasattr(self._local, "fine"):
            self._local.fine = np.empty(0, np.uint8)
        most = codec.most_fine_bytes(rows, cols)
        if len(self._local.fine) < most:
            self._local.fine = np.empty(most, np.uint8)
        coarse = np.empty(codec.coarse_bytes(rows, cols), np.uint8)
        n = codec.encode(words.reshape(-1).view(np.uint8), rows, cols, coarse, self._local.fine)
        return codec.PackedRows(rows, cols, rows, coarse, self._local.fine[:n].copy(), np.array([0, n]))

    def unpack(self, packed: Any, out: U16) -> None:
        self._codec.decode(packed, 0, packed.rows, out.reshape(-1).view(np.uint8))

    def nbytes(self, packed: Any) -> int:
        checksums = 20
        return len(packed.coarse) + len(packed.fine) + checksums


CODES: dict[str, Callable[[int], Code]] = {
    "gzip-9": lambda _: Gzip(),
    "zstd-3": lambda _: Zstd(3),
    "zstd-19": lambda _: Zstd(19),
    "zipnn": ZipNN,
    "penstock": lambda _: Penstock(),
}
"""By name, made for a number of threads."""


@dataclass(frozen=True)
class Result:
    """Seconds are those of the faster of the rounds, for `nbytes` bytes of weights."""

    name: str
    version: str
    threads: int
    nbytes: int
    packed_bytes: int
    pack_seconds: float
    unpack_seconds: float


def load(sample: Path, at_once: int) -> list[U16]:
    """The sample's chunks in memory, in an order in which every few of them are like all; `at_once` to a matrix."""
    tensors = list(read_tensors(sample).values())
    order = np.random.default_rng(0).permutation(len(tensors))
    words = [tensors[index].words() for index in order]
    if at_once == 1:
        return [np.array(chunk) for chunk in words]
    flat = (
        np.concatenate([np.array(chunk).reshape(-1) for chunk in words[i : i + at_once]])
        for i in range(0, len(words), at_once)
    )
    return [chunk.reshape(1, -1) for chunk in flat]


def timed(code: Code, threads: int, count: int, work: Callable[[int], None], limit: float) -> tuple[float, int]:
    """Seconds of work(0), work(1), ... on as many threads, and how many there were: all `count`, or those of `limit`
    seconds."""
    workers, begin = 1 if code.own_threads else threads, time.perf_counter()
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        while done < count and (done == 0 or time.perf_counter() - begin < limit):
            step = min(count - done, 4 * workers if code.at_once == 1 else workers)
            list(pool.map(work, range(done, done + step)))
            done += step
    return time.perf_counter() - begin, done


def measure(code: Code, chunks: list[U16], threads: int, seconds: float, rounds: int) -> Result:
    """Pack as many of the chunks as `seconds` allow, unpack them, and compare. Raises ValueError where they differ."""
    packed: list[Any] = [None] * len(chunks)
    outs = [np.zeros_like(chunk) for chunk in chunks]  # written to, so that no round pays for new pages

    def pack(index: int) -> None:
        packed[index] = code.pack(chunks[index])

    def unpack(index: int) -> None:
        code.unpack(packed[index], outs[index])

    pack_seconds, count = timed(code, threads, len(chunks), pack, seconds)
    unpack_seconds, _ = timed(code, threads, count, unpack, float("inf"))
    for _ in range(rounds - 1 if count == len(chunks) else 0):
        pack_seconds = min(pack_seconds, timed(code, threads, count, pack, float("inf"))[0])
        unpack_seconds = min(unpack_seconds, timed(code, threads, count, unpack, float("inf"))[0])
    if not all(np.array_equal(chunk, out) for chunk, out in zip(chunks[:count], outs, strict=False)):
        raise ValueError(f"{code.name} gave other weights back")
    nbytes = sum(chunk.nbytes for chunk in chunks[:count])
    size = sum(map(code.nbytes, packed[:count]))
    return Result(code.name, code.version, threads, nbytes, size, pack_seconds, unpack_seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sample", type=Path, help="a directory with a safetensors file, a tensor a chunk")
    parser.add_argument("--code", choices=CODES, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10, help="to pack; what is left of the sample is left out")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    code = CODES[args.code](args.threads)
    result = measure(code, load(args.sample, code.at_once), args.threads, args.seconds, args.rounds)
    print(json.dumps(vars(result)))


if __name__ == "__main__":
    main()
