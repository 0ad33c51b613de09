"""Who takes part in bench/compare.py: Penstock, and its peers, each run by the interpreter that holds it."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PEERS = Path(__file__).resolve().parent / "peers"
PENSTOCK = "Penstock"
PROMPT_TOKENS = 16


@dataclass(frozen=True)
class Peer:
    """A script below bench/peers, and what the Python that runs it must be able to import."""

    name: str
    script: str
    modules: tuple[str, ...]
    install: str
    option: str
    """The option of bench/compare.py that names the Python."""

    def command(self, python: str, action: str, model: Path, copy: Path, *options: str) -> list[str]:
        return [python, str(PEERS / self.script), action, str(model), str(copy), *options]

    def missing(self, python: str) -> str | None:
        """What to do before this peer can run; None where it can."""
        remedy = f"{self.install}, and name that Python: {self.option}"
        try:
            result = subprocess.run([python, "-c", f"import {', '.join(self.modules)}"], capture_output=True, text=True)
        except OSError as error:
            return f"{python}: {error.strerror}; {remedy}"
        if result.returncode == 0:
            return None
        return f"{(result.stderr.strip().splitlines() or ['import failed'])[-1]}; {remedy}"


ALL_PEERS = (
    Peer(
        "one-file-a-layer",
        "one_file_a_layer.py",
        ("torch", "safetensors"),
        "pip install torch==2.13.0 safetensors",
        "--torch-python",
    ),
    Peer(
        "llama.cpp",
        "run_llama_cpp.py",
        ("llama_cpp", "gguf"),
        "pip install llama-cpp-python==0.3.36 gguf",
        "--llama-cpp-python",
    ),
    Peer("airllm", "run_airllm.py", ("airllm",), "pip install torch==2.13.0, then airllm==4.0.0", "--airllm-python"),
)


def add_pythons(parser: argparse.ArgumentParser) -> None:
    """An option for each peer: the Python that holds it."""
    for peer in ALL_PEERS:
        text = f"a Python that holds {peer.name} (default: this one)"
        parser.add_argument(peer.option, dest=peer.name, default=sys.executable, help=text)


def penstock_command(model: Path, memory: int, threads: int, tokens: int) -> list[str]:
    """`penstock bench` with this Python; `tokens` are those after the first."""
    options = {"passes": tokens + 1, "prompt-tokens": PROMPT_TOKENS, "memory": memory, "threads": threads}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "penstock", "bench", str(model), *words, "--json"]
