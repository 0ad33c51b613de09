"""Penstock beside its peers: the same weights, the same prompt, under the same cap on disk reads, in one run.

    sudo python bench/compare.py MODEL --read 524MB --memory 3GiB --peer-memory 4GiB --work DIR \
        --torch-python VENV/bin/python --llama-cpp-python VENV/bin/python --airllm-python VENV/bin/python

MODEL is a directory in the Hugging Face layout; DIR, on the same disk, takes one peer's copy of the weights at a time.
Each runs in a control group of its own (bench/limit.py). Disks drift, so Penstock runs right before each peer and once
more at the end, and a peer's ratio is to the mean of the two runs beside it. A peer that is missing or fails is listed
with the reason. Results are written after every run.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from contestants import ALL_PEERS, PENSTOCK, PROMPT_TOKENS, Peer, add_pythons, penstock_command
from control_group import check_system
from limit import exit_on_signals, whole_disk
from measure import Setting, last_line, measure
from results import Result, save
from rich.console import Console
from show_results import plot, show

from penstock.errors import PenstockError, UsageError
from penstock.system.sizes import MIB, parse_bytes

SPARE_BYTES = 10**9
TABLE_WIDTH = 110


class Comparison:
    """The runs so far; `out`, where given, is written after each."""

    def __init__(self, setting: Setting, out: Path | None, console: Console) -> None:
        self.setting, self.out, self.console = setting, out, console
        self.results: list[Result] = []
        self.header = describe(setting)

    def add(self, result: Result) -> None:
        self.results.append(result)
        if self.out:
            save(self.out, self.results, self.header)
        median = f"{result.median_seconds:.2f} s a token" if result.median_seconds else ""
        self.say(f"{result.contestant}: {result.note or median}")

    def say(self, text: str) -> None:
        self.console.print(f"{datetime.now():%H:%M:%S} {text}", markup=False, highlight=False)

    def run(self, peers: dict[Peer, str]) -> None:
        """Every peer, by the Python that holds it, each right after Penstock; then Penstock again."""
        for peer, python in peers.items():
            if note := peer.missing(python):
                self.add(Result(peer.name, note=f"missing: {note}"))
            else:
                self.run_peer(peer, python)
        self.run_penstock()

    def run_penstock(self) -> None:
        s = self.setting
        result = measure(PENSTOCK, penstock_command(s.packed or s.model, s.memory, s.threads, s.tokens), s.memory, s)
        self.add(replace(result, version=version("penstock")))

    def run_peer(self, peer: Peer, python: str) -> None:
        copy = self.setting.scratch / "copy"
        try:
            begin = time.monotonic()
            if note := self.prepare(peer, python, copy):
                return self.add(Result(peer.name, note=note))
            seconds = time.monotonic() - begin
            self.run_penstock()
            options = ("--threads", str(self.setting.threads), "--tokens", str(self.setting.tokens))
            command = peer.command(python, "run", self.setting.model, copy, *options)
            result = measure(peer.name, command, self.setting.peer_memory, self.setting)
            self.add(replace(result, prepare_seconds=seconds))
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def prepare(self, peer: Peer, python: str, copy: Path) -> str | None:
        """Make the peer's copy of the weights, outside the limits; what went wrong, if anything."""
        needed, free = self.setting.copy_bytes() + SPARE_BYTES, shutil.disk_usage(self.setting.scratch).free
        if free < needed:
            place = self.setting.scratch.parent
            return f"needs {needed / 1e9:.1f} GB for its copy; {place} has {free / 1e9:.1f} GB free"
        self.say(f"{peer.name}: makes its copy of the weights")
        command = peer.command(python, "prepare", self.setting.model, copy)
        result = subprocess.run(command, capture_output=True, text=True)
        return f"made no copy: {last_line(result.stderr)}" if result.returncode else None


def describe(setting: Setting) -> dict[str, Any]:
    """The head of the JSON file: when, where, and under which limits."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu_name(), "cpus": psutil.cpu_count(), "memory_bytes": psutil.virtual_memory().total},
        "system": platform.platform(),
        "model": setting.model.name,
        "packed": setting.packed is not None,
        "weight_bytes": setting.copy_bytes(),
        "read_cap_bytes_per_second": setting.read,
        "memory_bytes": setting.memory,
        "peer_memory_bytes": setting.peer_memory,
        "threads": setting.threads,
        "prompt_tokens": PROMPT_TOKENS,
        "tokens_after_the_first": setting.tokens,
    }


def cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def setting_of(args: argparse.Namespace, scratch: Path) -> Setting:
    """Checks what the command line says. Raises UsageError."""
    if not any(args.model.glob("*.safetensors")):
        raise UsageError(f"{args.model} holds no *.safetensors.", "Name a checkpoint's directory.")
    if args.packed and not any(args.packed.glob("*.safetensors")):
        raise UsageError(f"{args.packed} holds no *.safetensors.", "Name a directory that `penstock pack` wrote.")
    if args.tokens < 1:
        raise UsageError(f"--tokens {args.tokens} leaves nothing to measure.", "Ask for at least 1.")
    return Setting(
        model=args.model,
        packed=args.packed,
        scratch=scratch,
        device=device_of(args) if args.read else "",
        read=parse_bytes(args.read) if args.read else None,
        memory=parse_bytes(args.memory),
        peer_memory=parse_bytes(args.peer_memory or args.memory),
        threads=args.threads,
        tokens=args.tokens,
        timeout=args.timeout,
    )


def device_of(args: argparse.Namespace) -> str:
    """ "MAJOR:MINOR" of the disk that is capped. Raises UsageError where model and copies are not both on it."""
    if args.disk:
        return whole_disk(args.disk)
    device = whole_disk(args.model)
    if whole_disk(args.work) != device:
        raise UsageError(
            f"{args.work} is not on the disk of {args.model}, so the cap on reads would hold for one of them alone.",
            "Give a --work directory on the same disk.",
        )
    return device


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--packed", type=Path, help="MODEL packed, on the same disk: what Penstock runs")
    parser.add_argument("--read", help="most bytes a second from the disk, like 524MB (default: no cap)")
    parser.add_argument("--memory", default="3GiB", help="memory of Penstock's group")
    parser.add_argument("--peer-memory", help="memory of a peer's group (default: as --memory)")
    parser.add_argument("--work", type=Path, required=True, help="a directory on MODEL's disk, for the peers' copies")
    parser.add_argument("--disk", type=Path, help="the disk that --read is for (default: MODEL's)")
    names = [peer.name for peer in ALL_PEERS]
    parser.add_argument("--peers", nargs="*", choices=names, default=names, metavar="PEER", help=f"of {names}")
    add_pythons(parser)
    parser.add_argument("--tokens", type=int, default=3, help="tokens to measure after the first")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds after which a run is stopped")
    parser.add_argument("--json", type=Path, help="write everything there, after every run")
    parser.add_argument("--plot", type=Path, help="draw seconds a token into an image file (extra `plot`)")
    return parser.parse_args(words)


def title(setting: Setting) -> str:
    read = f"reads capped at {setting.read / 1e6:.0f} MB/s" if setting.read else "reads not capped"
    memory = f"Penstock in {setting.memory // MIB} MiB, peers in {setting.peer_memory // MIB} MiB"
    packed = ", Penstock with packed weights" if setting.packed else ""
    return f"{setting.model.name}{packed}, {setting.threads} threads, {read}, {memory}"


def main() -> int:
    args = parse()
    exit_on_signals()
    console = Console(width=max(TABLE_WIDTH, Console().width))
    try:
        check_system()
        args.work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="compare-", dir=args.work) as scratch:
            setting = setting_of(args, Path(scratch))
            comparison = Comparison(setting, args.json, console)
            try:
                comparison.run({peer: getattr(args, peer.name) for peer in ALL_PEERS if peer.name in args.peers})
            finally:
                console.print(title(setting), markup=False, highlight=False)
                show(comparison.results, console)
        if args.plot:
            plot(comparison.results, title(setting), args.plot)
    except PenstockError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
