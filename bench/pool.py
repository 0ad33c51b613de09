"""How much faster several machines answer a batch than one: nodes with disks of their own, on this machine.

    python bench/pool.py MODEL --nodes 3 --read 100MB --ceiling 400MiB

One machine answers the batch alone, without a cluster and under the same limits, then all nodes do (local_cluster.py);
the results have to be the same, byte for byte. Choose a model and a cap on reads with which arithmetic does not bind,
as all nodes share the CPUs here. Exits with 1 where the results differ.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from control_group import GroupV1, GroupV2
from limit import exit_on_signals
from local_cluster import Machine, local_cluster, machine_group

from penstock.system.sizes import parse_bytes

TOPICS = ("rivers", "bread", "prime numbers", "owls", "steam engines", "the moon", "chess", "glass")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--ceiling", default="400MiB", help="of each process of Penstock")
    parser.add_argument("--read", type=parse_bytes, default="100MB", help="bytes a second from each node's disk")
    parser.add_argument("--network", help="of each link, as tc has it: 1gbit")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--at-once", type=int, default=16, help="answers that share a pass")
    parser.add_argument("--tokens", type=int, default=8, help="of each answer")
    asked = parser.parse_args()
    exit_on_signals()
    model, machine = Path(asked.model).resolve(), Machine(None, asked.read, asked.ceiling)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in requests(asked)))
        options = ["--at-once", str(asked.at_once), "--threads", str(asked.threads), "--memory", asked.ceiling]
        command = [sys.executable, "-m", "penstock", "batch", str(model), str(folder / "in.jsonl")]
        command += ["--draft", "none", "--json", "--quiet", *options]
        with ExitStack() as stack:
            alone = answer([*command, str(folder / "alone")], machine_group(stack, 1, machine, model))
        with local_cluster([machine] * asked.nodes, asked.network, model) as cluster:
            environment = {"PENSTOCK_HOME": str(cluster.store)}
            shared = [*command, str(folder / "together"), "--cluster", cluster.address]
            together = answer(shared, None, environment)
        same = (folder / "alone").read_bytes() == (folder / "together").read_bytes()
    ratio = together["tokens_per_second"] / alone["tokens_per_second"]
    print(f"{asked.nodes} nodes: {ratio:.2f} times one machine; results {'the same' if same else 'DIFFERENT'}")
    return 0 if same else 1


def answer(
    command: list[str], group: GroupV1 | GroupV2 | None, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """What a batch says of itself: its seconds have all that opening takes."""
    enter = None if group is None else group.enter
    whole = os.environ | (environment or {})
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=whole, preexec_fn=enter)
    if result.returncode or not result.stdout:
        raise SystemExit(f"exit code {result.returncode}: {result.stderr}")
    told: dict[str, Any] = json.loads(result.stdout)
    said = f"{told['drawn']} tokens in {told['seconds']:.1f} s and {told['passes']} passes"
    print(f"{said}: {told['tokens_per_second']:.2f} tokens/s", flush=True)
    return told


def requests(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Plain ones, no two alike."""
    texts = [f"{number} words about {TOPICS[number % len(TOPICS)]}" for number in range(asked.requests)]
    return [{"prompt": text, "max_tokens": asked.tokens, "ignore_eos": True} for text in texts]


if __name__ == "__main__":
    sys.exit(main())
