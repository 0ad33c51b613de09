"""A pass over layers in runs and dealt out, where every stage has a disk of its own; beside what is forecast.

    python bench/dealt.py MODEL --memory 560MiB [--stages 2] [--disk 80MB] [--passes 6]

All stages are in this process, one after the other, as they are in a cluster, without a network. Each reads through a
gate of its own, which lets so many bytes a second through: a disk that is much slower than the real one. What
arithmetic takes is not of interest, and the forecast takes it for nothing.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from penstock import LLM, SamplingParams
from penstock.models.stage import Share
from penstock.options import OpenOptions
from penstock.stages.cut import Cut, How, ModelParts, Network, Node, forecast_cut
from penstock.stages.rates import ComputeSpeed
from penstock.system.sizes import parse_rate
from penstock.weights.sizes import size_here

if TYPE_CHECKING:
    from penstock.compute.kernels import U8
    from penstock.disk.files import Extent, Files
    from penstock.memory.budget import Budget

AT_ONCE = ComputeSpeed(1e12, 1e12, 1e12, 1e12, 1e12)
NO_NETWORK = Network(hop_seconds=0.0, bytes_per_second=1e15)
SETTLING = 2
"""Passes that are not counted: the first reads all weights."""


def slow_down(files: Files, rate: float) -> None:
    """Let reads through one after another, so many bytes a second."""
    gate, free, read = threading.Lock(), [0.0], files.read

    def slowed(extent: Extent, buffer: U8) -> U8:
        with gate:
            begin = max(time.perf_counter(), free[0])
            free[0] = begin + extent.nbytes / rate
        data = read(extent, buffer)
        time.sleep(max(0.0, begin + extent.nbytes / rate - time.perf_counter()))
        return data

    files.read = slowed  # type: ignore[method-assign]


def shares_of(owners: Sequence[int], stages: int) -> list[Share]:
    """What each stage holds; the first has embedding and head."""
    held = [tuple(layer for layer, owner in enumerate(owners) if owner == stage) for stage in range(stages)]
    return [Share(own, embedding=not stage, head=not stage) for stage, own in enumerate(held)]


def timed(llm: LLM, rate: float, passes: int) -> float:
    """Seconds of a pass: the median of those that follow the first ones."""
    for stage in llm.stages:
        slow_down(stage.weights._files, rate)
    params = SamplingParams(temperature=0, max_tokens=SETTLING + passes, ignore_eos=True)
    *_, last = llm.stream([1], params)
    return statistics.median(totals.seconds for totals in last.stats.log[SETTLING:])


def forecast(llm: LLM, rate: float, shares: Sequence[Share], how: How) -> Cut:
    """Of stages that have just such ceilings."""
    tensors = {name: tensor for stage in llm.stages for name, tensor in stage.weights.tensors.items()}
    parts = ModelParts.of(
        llm.architecture, lambda names: size_here([tensors[name] for name in names]), positions=1 + SETTLING
    )
    budgets: list[Budget] = [room.share.budget for room in llm.memory.rooms]
    nodes = [Node(f"{i}", b.ceiling, b.process + b.scratch, rate, AT_ONCE) for i, b in enumerate(budgets)]
    return forecast_cut(parts, nodes, shares, NO_NETWORK, how)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--memory", required=True)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--disk", default="80MB")
    parser.add_argument("--passes", type=int, default=6)
    args = parser.parse_args()
    rate = float(parse_rate(args.disk))
    options = OpenOptions(memory=args.memory, draft="none")
    with LLM(args.model, replace(options, max_resident=0)) as llm:
        layers = llm.config.num_hidden_layers
    in_runs = shares_of([layer * args.stages // layers for layer in range(layers)], args.stages)
    dealt = shares_of([layer % args.stages for layer in range(layers)], args.stages)

    def tell(what: str, shares: Sequence[Share], how: How) -> Cut:
        with LLM(args.model, replace(options, shares=tuple(shares))) as llm:
            cut, seconds = forecast(llm, rate, shares, how), timed(llm, rate, args.passes)
            alone = sum(stage.streamed_bytes for stage in llm.stages) / rate
        print(f"{what}: {seconds:.2f} s a pass; forecast {cut.seconds:.2f}; one disk alone {alone:.2f}", flush=True)
        return cut

    tell("in runs", in_runs, "runs")
    cut = tell("dealt out, usual rings (the forecast is of the next)", dealt, "dealt")
    tell("dealt out, rings as forecast", [share for share in cut.shares if share is not None], "dealt")


if __name__ == "__main__":
    main()
