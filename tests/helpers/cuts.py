"""Machines, and models in parts for them."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from helpers.checkpoints import tiny_config
from penstock.architectures.base import Architecture
from penstock.architectures.registry import parse_config
from penstock.stages.cut import ModelParts, Node
from penstock.stages.rates import ComputeSpeed
from penstock.synth.shapes import shape_config
from penstock.system.sizes import MIB
from penstock.weights.sizes import StoredSize, packed_size, pass_matrices, raw_size

DISK = 524e6
COMPUTE = ComputeSpeed(10e9, 40e9, 10e9, 40e9, 10e9)
"""About what a small laptop does."""


def shape_parts(name: str, positions: int = 512, *, packed: bool = True) -> ModelParts:
    """A published shape, as packed or raw as its checkpoint would be."""
    config = parse_config(shape_config(name), name)
    architecture, matrices = Architecture(config), {m.name: m for m in pass_matrices(config)}

    def size(names: Sequence[str]) -> StoredSize:
        some = [matrices[name] for name in names]
        return (packed_size(some) if packed else None) or raw_size(some)

    return ModelParts.of(architecture, size, positions=positions)


def model_parts(layers: list[int], head: int = 20 * MIB, positions: int = 64, *, packed: bool = False) -> ModelParts:
    """A model whose layers and head take so many bytes, whatever its config says."""
    config = parse_config(tiny_config(num_hidden_layers=len(layers)), "config.json")

    def size(nbytes: int) -> StoredSize:
        if packed:
            return StoredSize(nbytes, int(nbytes / 0.67), int(nbytes / 0.67), indexed=int(nbytes * 1.14))
        return StoredSize(nbytes, nbytes)

    return ModelParts(Architecture(config), tuple(map(size, layers)), size(head), positions)


def nodes_of(count: int, ceiling: int, process: int = 10 * MIB, disk: float = DISK) -> list[Node]:
    """Machines that are alike."""
    return [Node(f"n{place}", ceiling, process, disk, COMPUTE) for place in range(count)]


@st.composite
def kinds_of_nodes(draw: st.DrawFn) -> Node:
    """A machine with 60 to 500 MiB."""
    compute = ComputeSpeed(*(draw(st.floats(1e9, 4e10)) for _ in range(5)))
    ceiling, process = draw(st.integers(60, 500)) * MIB, draw(st.integers(0, 20)) * MIB
    return Node("", ceiling, process, draw(st.floats(1e8, 4e9)), compute)


@st.composite
def some_parts(draw: st.DrawFn, most: int, *, alike: bool) -> ModelParts:
    """A model whose layers are of one size, or of any, up to 100 MiB."""
    count, size = draw(st.integers(1, most)), st.integers(1, 100)
    sizes = [draw(size)] * count if alike else draw(st.lists(size, min_size=count, max_size=count))
    head, positions = draw(size) * MIB, draw(st.integers(1, 2000))
    return model_parts([nbytes * MIB for nbytes in sizes], head, positions, packed=draw(st.booleans()))


@st.composite
def cut_cases(
    draw: st.DrawFn, most_layers: int = 8, most_nodes: int = 4, *, alike: bool = True
) -> tuple[ModelParts, list[Node]]:
    """A model, and machines for it, some of them alike."""
    kinds = draw(st.lists(kinds_of_nodes(), min_size=1, max_size=3))
    nodes = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=most_nodes))
    return draw(some_parts(most_layers, alike=alike)), nodes
