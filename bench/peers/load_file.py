"""What safetensors' `load_file` does with one layer's file, and what it costs, beside plain reads of the same bytes.

    python bench/limit.py [--read 524MB] -- VENV/bin/python bench/peers/load_file.py FILE [--rounds 5] [--json]

FILE out of the page cache each time, the ways by turns, medians. `call` is the time until the call returns, `use` until
every weight was multiplied with a vector once after it, from the disk if need be; CPU seconds are of the whole.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.functional import linear

READ_BYTES = 16 << 20
ALIGNMENT = 4096
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Timing:
    """Seconds and bytes of one way, once."""

    call_seconds: float
    use_seconds: float
    cpu_seconds: float
    disk_bytes: int
    cached_bytes: int
    """Of the file, in the page cache afterwards."""


class Shapes:
    """Where the tensors of the file lie, so that bytes that were read plainly can be used alike."""

    def __init__(self, file: Path) -> None:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        self.entries = [
            (entry["shape"], 8 + size + entry["data_offsets"][0], 8 + size + entry["data_offsets"][1])
            for name, entry in header.items()
            if name != "__metadata__" and len(entry["shape"]) == 2
        ]
        self.buffer = mmap.mmap(-1, -(-file.stat().st_size // ALIGNMENT) * ALIGNMENT, mmap.MAP_PRIVATE)
        self.buffer[:] = bytes(len(self.buffer))  # written to, so that no read pays for new pages

    def matrices(self) -> list[torch.Tensor]:
        whole = torch.frombuffer(self.buffer, dtype=torch.uint8)
        return [whole[begin:end].view(torch.bfloat16).view(shape) for shape, begin, end in self.entries]


def read_buffered(file: Path, shapes: Shapes) -> list[torch.Tensor]:
    with file.open("rb", buffering=0) as stream:
        done = 0
        view = memoryview(shapes.buffer)
        while count := stream.readinto(view[done : done + READ_BYTES]):
            done += count
    return shapes.matrices()


def read_direct(file: Path, shapes: Shapes, at_once: int) -> list[torch.Tensor]:
    """Past the page cache, so many reads at a time."""
    descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    view = memoryview(shapes.buffer)
    try:
        with ThreadPoolExecutor(at_once) as threads:
            read = partial(read_piece, descriptor, view)
            list(threads.map(read, range(0, len(view), READ_BYTES)))
    finally:
        os.close(descriptor)
    return shapes.matrices()


def read_piece(descriptor: int, view: memoryview, begin: int) -> None:
    os.preadv(descriptor, [view[begin : begin + READ_BYTES]], begin)


def load(file: Path, backend: str) -> list[torch.Tensor]:
    return [tensor for tensor in load_file(file, backend=backend).values() if tensor.dim() == 2]


def load_and_copy(file: Path) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in load(file, "mmap")]


def all_ways(file: Path) -> dict[str, Callable[[], list[torch.Tensor]]]:
    shapes = Shapes(file)
    return {
        "load_file": lambda: load(file, "mmap"),
        "load_file, then a copy": lambda: load_and_copy(file),
        'load_file(backend="pread")': lambda: load(file, "pread"),
        "read() through the cache": lambda: read_buffered(file, shapes),
        "direct, one read at a time": lambda: read_direct(file, shapes, 1),
        "direct, two at a time": lambda: read_direct(file, shapes, 2),
        "direct, eight at a time": lambda: read_direct(file, shapes, 8),
    }


def timing(file: Path, way: Callable[[], list[torch.Tensor]]) -> Timing:
    drop(file)
    disk, cpu, begin = disk_bytes(), time.process_time(), time.perf_counter()
    matrices = way()
    middle = time.perf_counter()
    for matrix in matrices:
        linear(torch.ones(1, matrix.shape[1], dtype=matrix.dtype), matrix)
    end = time.perf_counter()
    return Timing(middle - begin, end - middle, time.process_time() - cpu, disk_bytes() - disk, cached_bytes(file))


def drop(file: Path) -> None:
    with file.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_bytes() -> int:
    """What this process has had read from disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def cached_bytes(file: Path) -> int:
    """Of the file, in the page cache (mincore)."""
    import ctypes

    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, mmap.MAP_PRIVATE) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        address = ctypes.c_char.from_buffer(mapped)
        ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(address)), ctypes.c_size_t(len(mapped)), pages)
        del address
        return sum(page & 1 for page in pages) * mmap.PAGESIZE


def measure(file: Path, rounds: int) -> dict[str, Timing]:
    timings: dict[str, list[Timing]] = {}
    for _ in range(rounds):
        for name, way in all_ways(file).items():
            timings.setdefault(name, []).append(timing(file, way))
    fields = Timing.__dataclass_fields__
    return {
        name: Timing(**{field: statistics.median(getattr(one, field) for one in several) for field in fields})
        for name, several in timings.items()
    }


def table(results: dict[str, Timing], nbytes: int) -> str:
    heading = f"{'call, s':>9s}{'use, s':>9s}{'both':>9s}{'GB/s':>7s}{'CPU, s':>8s}{'cached, MB':>12s}"
    lines = [f"{f'{nbytes / 1e6:.0f} MB':28s}{heading}"]
    for name, t in results.items():
        both = t.call_seconds + t.use_seconds
        seconds = f"{t.call_seconds:9.3f}{t.use_seconds:9.3f}{both:9.3f}{nbytes / both / 1e9:7.2f}{t.cpu_seconds:8.2f}"
        lines.append(f"{name:28s}{seconds}{t.cached_bytes / 1e6:12.0f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results, nbytes = measure(args.file, args.rounds), args.file.stat().st_size
    if not args.json:
        return print(table(results, nbytes))
    ways: dict[str, Any] = {name: asdict(result) for name, result in results.items()}
    shown = {"bytes": nbytes, "torch": torch.__version__, "ways": ways, "table": table(results, nbytes)}
    return print(json.dumps(shown, indent=1))


if __name__ == "__main__":
    main()
