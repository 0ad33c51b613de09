"""Seconds a token of one machine and of several: nodes with memory, disk and network of their own, on this machine.

    python bench/cluster.py MODEL --nodes 2 --ceiling 400MiB [--memory 1GiB] [--read 262MB] [--network 1gbit]
        [--cut runs] [--cut dealt] [--passes 6] [--alone] [--json FILE]

`--alone` measures one machine without the others as well.
Peaks are of each group, all processes and page cache counted; those of Ray are in them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from limit import drop_caches, exit_on_signals
from local_cluster import Machine, local_cluster, machine_group

from penstock.system.sizes import MIB, parse_bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--nodes", type=int, default=2, help="machines, the first one included")
    parser.add_argument("--ceiling", default="400MiB", help="of a process of Penstock, on each")
    parser.add_argument("--memory", type=parse_bytes, help="of all processes of a node, page cache counted")
    parser.add_argument("--read", type=parse_bytes, help="bytes a second from each node's disk")
    parser.add_argument("--network", help="of each link, as tc has it: 1gbit")
    parser.add_argument("--cut", action="append", help="as `penstock bench --cut` has it; several times (runs, dealt)")
    parser.add_argument("--passes", type=int, default=6)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    exit_on_signals()
    model = str(Path(asked.model).resolve())
    machine = Machine(asked.memory, asked.read, asked.ceiling)
    results = []
    if asked.alone:
        with ExitStack() as stack:
            group = machine_group(stack, 1, machine, Path(model))
            results.append(("alone", _bench(model, asked, [group], dict(os.environ), [])))
    with local_cluster([machine] * asked.nodes, asked.network, Path(model)) as cluster:
        environment = {**os.environ, "PENSTOCK_HOME": str(cluster.store)}
        for cut in asked.cut or ["runs", "dealt"]:
            options = ["--cluster", cluster.address, "--cut", cut]
            found = _bench(model, asked, cluster.groups, environment, options)
            results.append((f"{asked.nodes} machines, {cut}", found))
    _show(results, asked.json)
    return 0


def _bench(
    model: str, asked: argparse.Namespace, groups: list[Any], environment: dict[str, str], options: list[str]
) -> dict[str, Any]:
    """What `penstock bench` says on the first machine, and the peak of every machine so far."""
    drop_caches()
    command = [sys.executable, "-m", "penstock", "bench", model, "--memory", asked.ceiling, "--json"]
    command += ["--passes", str(asked.passes), "--prompt-tokens", str(asked.prompt_tokens), *options]
    done = subprocess.run(
        command,
        env=environment,
        preexec_fn=groups[0].enter,
        stdout=subprocess.PIPE,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    peaks = [group.peak_bytes() for group in groups]
    return found | {"peaks_mib": [peak // MIB if peak else None for peak in peaks]}


def _show(results: list[tuple[str, dict[str, Any]]], path: Path | None) -> None:
    first = results[0][1]["median_seconds_per_pass"]
    for name, found in results:
        seconds = found["median_seconds_per_pass"]
        print(
            f"{name}: {seconds:.3f} s a pass ({first / seconds:.2f} x the first), first token after "
            f"{found['first_token_seconds']:.2f} s, peaks {found['peaks_mib']} MiB"
        )
    if path is not None:
        path.write_text(json.dumps(dict(results), indent=1))


if __name__ == "__main__":
    sys.exit(main())
