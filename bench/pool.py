"""How much faster several machines answer a batch than one.

    python bench/pool.py MODEL --nodes 3 --read 100MB --memory 400MiB

The machines are nodes of a Ray cluster on this one, each in a control group of its own, with a cap of its own on reads
(bench/limit.py); so it needs Linux, root, and the extra `cluster`. One node answers the batch, then all of them do;
their results have to be the same, byte for byte. Choose a model and a cap with which arithmetic does not bind, as all
nodes share the CPUs here. Exits with 1 where the results differ.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from penstock.cluster.connection import connect, disconnect
from penstock.cluster.fleet import MEMORY, THREADS, every_node
from penstock.cluster.settings import OBJECT_STORE_BYTES, Membership, new_token
from penstock.system.sizes import MIB, parse_bytes

LIMIT = Path(__file__).resolve().with_name("limit.py")
RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
START_SECONDS = 400.0
TOPICS = ("rivers", "bread", "prime numbers", "owls", "steam engines", "the moon", "chess", "glass")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--read", default="100MB", help="most bytes a second that each node reads")
    parser.add_argument("--memory", default="400MiB", help="ceiling of each node's process")
    parser.add_argument("--threads", type=int, default=1, help="of each node")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--at-once", type=int, default=16, help="answers that share a pass of a node")
    parser.add_argument("--tokens", type=int, default=8, help="of each answer")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        return _Trial(asked, Path(folder), stack).run()


class _Trial:
    """A cluster that grows from one node to all."""

    def __init__(self, asked: argparse.Namespace, folder: Path, stack: ExitStack) -> None:
        self._asked, self._folder, self._stack = asked, folder, stack
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        token = folder / "token"
        new_token(token)
        os.environ.update(Membership(self._address, str(token)).environment())
        (folder / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in requests(asked)))

    def run(self) -> int:
        port = self._address.rpartition(":")[2]
        self._start([*RAY, "--head", f"--port={port}", "--include-dashboard=false", "--no-monitor", *self._common(0)])
        self._add(0)
        one = self._batch(1)
        for number in range(1, self._asked.nodes):
            self._add(number)
        several = self._batch(self._asked.nodes)
        ratio = several["tokens_per_second"] / one["tokens_per_second"]
        results = [(self._folder / f"{nodes}.jsonl").read_bytes() for nodes in (1, self._asked.nodes)]
        same = results[0] == results[1]
        print(f"{self._asked.nodes} nodes: {ratio:.2f} times one; results {'the same' if same else 'DIFFERENT'}")
        return 0 if same else 1

    def _common(self, cpus: int) -> list[str]:
        return [f"--num-cpus={cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}", "--node-ip-address=127.0.0.1"]

    def _add(self, number: int) -> None:
        """A node under its cap."""
        asked = self._asked
        resources = {MEMORY: parse_bytes(asked.memory) // MIB, THREADS: asked.threads}
        node = [f"--address={self._address}", f"--node-name=node {number}", f"--resources={json.dumps(resources)}"]
        limits = [sys.executable, str(LIMIT), "--read", asked.read, "--disk", asked.model, "--"]
        self._start([*limits, *RAY, *node, *self._common(1)])
        end = time.monotonic() + START_SECONDS
        while self._count() <= number:
            if time.monotonic() > end:
                raise SystemExit(f"node {number} did not start")

    def _start(self, command: list[str]) -> None:
        log = self._stack.enter_context((self._folder / f"{time.monotonic_ns()}.log").open("w"))
        process = self._stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
        self._stack.callback(process.terminate)

    def _count(self) -> int:
        try:
            connect(self._address)
        except Exception:  # it is not there yet
            time.sleep(1)
            return 0
        try:
            return len(every_node())
        finally:
            disconnect()

    def _batch(self, nodes: int) -> dict[str, Any]:
        out = self._folder / f"{nodes}.jsonl"
        command = [
            sys.executable,
            "-m",
            "penstock",
            "batch",
            self._asked.model,
            str(self._folder / "in.jsonl"),
            str(out),
        ]
        options = ["--cluster", self._address, "--at-once", str(self._asked.at_once), "--draft", "none", "--json"]
        result = subprocess.run([*command, *options, "--quiet"], capture_output=True, text=True, check=False)
        if result.returncode or not result.stdout:
            raise SystemExit(f"exit code {result.returncode}: {result.stderr}")
        summary: dict[str, Any] = json.loads(result.stdout)
        seconds, passes = summary["seconds"], summary["passes"]
        print(
            f"{nodes} node{'s' * (nodes > 1)}: {summary['drawn']} tokens in {seconds:.1f} s and {passes} passes, "
            f"{summary['tokens_per_second']:.2f} tokens/s",
            flush=True,
        )
        return summary


def requests(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Plain ones, no two alike."""
    texts = [f"{number} words about {TOPICS[number % len(TOPICS)]}" for number in range(asked.requests)]
    return [{"prompt": text, "max_tokens": asked.tokens, "ignore_eos": True} for text in texts]


if __name__ == "__main__":
    sys.exit(main())
