"""One safetensors file a layer: what loading costs, and what a second thread that loads ahead gains.

    sudo python bench/loading.py MODEL --torch-python VENV/bin/python --work DIR [--read 524MB] [--layers 8]

DIR, on MODEL's disk, takes a copy of MODEL's first layers and its head, a file each, for the time of the run: more of
them than --memory holds, so that every token reads them all. First, one layer's file in all the ways of
peers/load_file.py. Then tokens, by turns: layers run from the mapping that `load_file` returns, copied into memory
before they run, and copied by a second thread while the layer before them runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contestants import PEERS
from limit import Limits, exit_on_signals, run_limited, whole_disk
from measure import last_line
from safetensors_file import write

from penstock.errors import PenstockError
from penstock.system.sizes import parse_bytes

sys.path.append(str(PEERS))
from checkpoint import Tensor, read_tensors

FOLDER = "separated_weights"
WAYS = {"mapped": "one_file_a_layer.py", "copied": "load_copy.py", "copied ahead": "load_ahead.py"}


@dataclass(frozen=True)
class Setting:
    """What all runs share: the Python with torch, the split copy, and the caps."""

    python: str
    copy: Path
    limits: Limits

    def run(self, script: str, *words: str, memory: bool = True) -> Any:
        """What a script below peers/ printed, JSON. Raises PenstockError with its last line where it fails."""
        limits = self.limits if memory else Limits(None, self.limits.read, self.limits.device)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            report = run_limited([self.python, str(PEERS / script), *words], limits, stdout=out, stderr=errors)
            for file in (out, errors):
                file.seek(0)
            if report.exit_status:
                text = last_line(errors.read().decode(errors="replace"))
                raise PenstockError(f"{script} ended with status {report.exit_status}: {text}")
            return json.loads(out.read())


def part_of(name: str) -> tuple[str, str]:
    """The file that holds a tensor, and the tensor's name in it: ("layers3", "mlp.up_proj.weight")."""
    words = name.removeprefix("model.").split(".")
    return (f"layers{words[1]}", ".".join(words[2:])) if words[0] == "layers" else (words[0], ".".join(words[1:]))


def split(model: Path, copy: Path, layers: int) -> None:
    """A copy of the first layers, the embedding, the last norm and the head, one file each, and their config."""
    config = json.loads((model / "config.json").read_text())
    kept = {f"layers{index}" for index in range(layers)} | {"embed_tokens", "norm", "lm_head"}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(model).items():
        part, inner = part_of(name)
        if part in kept:
            parts.setdefault(part, {})[inner] = tensor
    (copy / FOLDER).mkdir(parents=True)
    for part, tensors in parts.items():
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        write(copy / FOLDER / f"{part}.safetensors", "BF16", shapes, (tensor.words() for tensor in tensors.values()))
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))


def ways(setting: Setting, rounds: int, tokens: int) -> dict[str, list[float]]:
    """Seconds of every token after the first, by way."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, script in WAYS.items():
            place = str(setting.copy)
            result = setting.run(script, "run", place, place, "--tokens", str(tokens))
            seconds[name] += result["seconds_per_token"][1:]
    return seconds


def streamed_bytes(copy: Path) -> int:
    """Of the files that a token reads whole."""
    tied = not (copy / FOLDER / "lm_head.safetensors").exists()
    files = (copy / FOLDER).iterdir()
    return sum(file.stat().st_size for file in files if tied or file.stem != "embed_tokens")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a BF16 checkpoint of the shape to measure")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that holds torch and safetensors")
    parser.add_argument("--work", type=Path, required=True, help="a directory on MODEL's disk, for the copy")
    parser.add_argument("--read", help="most bytes a second from the disk, like 524MB (default: no cap)")
    parser.add_argument("--memory", default="3GiB", help="of each process that draws tokens, page cache counted")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=3, help="in a round, after the first")
    return parser.parse_args(words)


def main() -> int:
    args = parse()
    exit_on_signals()
    try:
        args.work.mkdir(parents=True, exist_ok=True)
        read = parse_bytes(args.read) if args.read else None
        limits = Limits(parse_bytes(args.memory), read, whole_disk(args.work) if read else "")
        with tempfile.TemporaryDirectory(prefix="loading-", dir=args.work) as scratch:
            setting = Setting(args.torch_python, Path(scratch) / "copy", limits)
            split(args.model, setting.copy, args.layers)
            layer = setting.copy / FOLDER / "layers1.safetensors"
            print(setting.run("load_file.py", str(layer), "--json", memory=False)["table"], flush=True)
            nbytes = streamed_bytes(setting.copy)
            print(f"{args.layers} layers and the head, {nbytes / 1e9:.2f} GB a token, in {args.memory}")
            for name, seconds in ways(setting, args.rounds, args.tokens).items():
                middle = statistics.median(seconds)
                spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
                print(f"{name:14s}{middle:8.2f} s a token ({spread}), {nbytes / middle / 1e9:.2f} GB/s")
    except PenstockError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
