"""Lossless codes beside each other on the same weights: gzip -9, zstd, ZipNN, and Penstock's packing.

    python bench/lossless.py MODEL [--codecs-python VENV/bin/python] [--megabytes 256] [--threads 1,2] [--json]

The samples are every n-th chunk (whole rows, up to 1 MiB) of the matrices of a pass over MODEL, and as many bytes of
weights drawn from the published exponent histogram (bench/histogram.py). Ratios are to the bytes in BF16; checksums and
padding of ours are counted. Speeds are of BF16 bytes, in memory, the fastest of three rounds; a slow code packs what it
can in --seconds. VENV holds zstandard and zipnn (pip install zstandard zipnn); a code that is missing is left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import histogram
import numpy as np
import numpy.typing as npt
from measure import last_line
from safetensors_file import write

PEERS = Path(__file__).resolve().parent / "peers"
sys.path.append(str(PEERS))
from checkpoint import Tensor, read_tensors  # noqa: E402

CODES = ("gzip-9", "zstd-3", "zstd-19", "zipnn", "penstock")
CHUNK_BYTES = 1 << 20
U16 = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Chunk:
    """Rows [begin, end) of a matrix."""

    tensor: Tensor
    begin: int
    end: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.end - self.begin, self.tensor.shape[1]

    def words(self) -> U16:
        return np.ascontiguousarray(self.tensor.words()[self.begin : self.end])


def chunks_of_a_pass(tensors: dict[str, Tensor]) -> Iterator[Chunk]:
    """All whole chunks of the BF16 matrices that a pass reads whole: no embedding, unless it is the head too."""
    tied = "lm_head.weight" not in tensors
    for name, tensor in tensors.items():
        if tensor.dtype == "BF16" and len(tensor.shape) == 2 and (tied or "embed_tokens" not in name):
            rows, cols = tensor.shape
            step = max(1, CHUNK_BYTES // (2 * cols))
            for begin in range(0, rows - step + 1, step):
                yield Chunk(tensor, begin, begin + step)


def spread(chunks: list[Chunk], nbytes: int) -> list[Chunk]:
    """About `nbytes` of the chunks, evenly spread."""
    total = sum(2 * rows * cols for rows, cols in (chunk.shape for chunk in chunks))
    count = min(len(chunks), max(1, len(chunks) * nbytes // total))
    return [chunks[index * len(chunks) // count] for index in range(count)]


def save_samples(model: Path, folder: Path, nbytes: int) -> dict[str, Path]:
    """The samples by name: of the checkpoint, and drawn from the histogram."""
    every = list(chunks_of_a_pass(read_tensors(model)))
    if not every:
        sys.exit(f"{model} holds no matrices of BF16 weights.")
    chunks = spread(every, nbytes)
    shapes = {f"chunk{index}": chunk.shape for index, chunk in enumerate(chunks)}
    law = histogram.law("all")
    samples: dict[str, Iterable[U16]] = {
        model.name: (chunk.words() for chunk in chunks),
        "histogram": (histogram.draw(law, chunk.shape, seed=seed) for seed, chunk in enumerate(chunks)),
    }
    for name, matrices in samples.items():
        (folder / name).mkdir()
        write(folder / name / "sample.safetensors", "BF16", shapes, matrices)
    return {name: folder / name for name in samples}


def run(code: str, python: str, sample: Path, threads: int, seconds: float) -> dict[str, Any] | str:
    """What peers/run_codec.py measured, or why it did not."""
    command = [python, str(PEERS / "run_codec.py"), str(sample), "--code", code]
    command += ["--threads", str(threads), "--seconds", str(seconds)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        return f"{code} is left out: {last_line(result.stderr)}"
    measured: dict[str, Any] = json.loads(result.stdout)
    return measured


def line(sample: str, results: list[dict[str, Any]]) -> str:
    """One code on one sample, with any numbers of threads."""
    first = results[0]
    ratio = first["packed_bytes"] / first["nbytes"]
    speeds = "".join(
        f"{r['nbytes'] / r['pack_seconds'] / 1e9:10.3f}{r['nbytes'] / r['unpack_seconds'] / 1e9:10.3f}" for r in results
    )
    return f"{sample:12s}{first['name']:10s}{first['version']:>16s}{ratio:8.4f}{16 * ratio:8.3f}{speeds}"


def heading(threads: list[int]) -> str:
    columns = "".join(f"{f'pack x{n}':>10s}{f'unpack x{n}':>10s}" for n in threads)
    return f"{'weights':12s}{'code':10s}{'version':>16s}{'ratio':>8s}{'bits':>8s}{columns}   (GB/s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--codecs-python", default=sys.executable, help="a Python that holds zstandard and zipnn")
    parser.add_argument("--codes", nargs="*", choices=CODES, default=CODES, metavar="CODE", help=f"of {CODES}")
    parser.add_argument("--megabytes", type=int, default=256, help="of each sample")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=10, help="for a code to pack what it can")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args()
    threads = list(map(int, args.threads.split(",")))
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="lossless-") as folder:
        samples = save_samples(args.model, Path(folder), args.megabytes * 10**6)
        if not args.json:
            print(heading(threads))
        for name, sample in samples.items():
            for code in args.codes:
                python = sys.executable if code == "penstock" else args.codecs_python
                runs = [run(code, python, sample, count, args.seconds) for count in threads]
                measured = [result for result in runs if isinstance(result, dict)]
                results.setdefault(name, []).extend(measured)
                if len(measured) < len(runs):
                    print(next(result for result in runs if isinstance(result, str)), file=sys.stderr)
                elif not args.json:
                    print(line(name, measured), flush=True)
    if args.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
