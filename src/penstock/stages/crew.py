"""The stages of an open model that are on other machines: started, and started anew where they are lost."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from penstock.errors import StageLostError
from penstock.stages.alike import check_alike
from penstock.stages.choose_cut import choose_cut
from penstock.stages.cut import ModelParts, Network, parse_cut
from penstock.stages.measure import measure_nodes
from penstock.stages.remote_stage import RemoteStage
from penstock.weights.sizes import size_here

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from penstock.checkpoints.checkpoint import Checkpoint
    from penstock.models.kv_cache import Blocks
    from penstock.models.stage import Share
    from penstock.stages import cut
    from penstock.stages.line import Fleet, Line, Node
    from penstock.stages.messages import HostSettings

PATIENCE_SECONDS = 60.0
"""For which a machine that is out of reach is waited for, before others do its work."""
RETRY_SECONDS = 0.5
POSITIONS = 2048
"""Of a context, that a cut leaves room for everywhere."""


@dataclass(slots=True)
class Crew:
    """Raises, wherever it starts hosts, what opening their part of a model raises, with the node's name; ClusterError
    where one has another model, version or arithmetic."""

    fleet: Fleet
    settings: HostSettings
    """Of every host, but for its share and ceiling."""
    blocks: Blocks
    alike: Callable[[Share], Mapping[str, str]]
    """What has to be the same there, of a share."""
    stages: list[RemoteStage] = field(default_factory=list)

    def deal(self, checkpoint: Checkpoint, here: cut.Node, wanted: str | None) -> tuple[Share, Mapping[str, Share]]:
        """What this machine is to hold, and what others, by name: the quickest way, or as `--cut` has it.

        Raises UsageError for a cut that cannot be meant, MemoryCeilingError where nothing fits.
        """
        nodes = self.fleet.nodes()
        layers = checkpoint.config.num_hidden_layers
        way = None if wanted is None else parse_cut(wanted, layers, 1 + len(nodes))
        there = measure_nodes(nodes, self.settings.model)
        parts = ModelParts.of(
            checkpoint.architecture,
            lambda names: size_here([checkpoint.tensors[name] for name in names]),
            positions=min(self.settings.context, POSITIONS),
            kv_dtype=self.settings.kv_dtype,
        )
        own, *others = choose_cut(parts, [here, *there], Network(), way).shares
        if own is None:
            raise ValueError("the first machine is left out")
        # A cut that was asked for may name fewer machines than there are.
        return own, {node.name: share for node, share in zip(nodes, others, strict=False) if share is not None}

    def open(self, shares: Mapping[str, Share]) -> None:
        """Start the stages, by the names of their nodes."""
        nodes = {node.name: node for node in self.fleet.nodes()}
        for name, share in shares.items():
            line = self._start(nodes[name], share)
            self.stages.append(RemoteStage(name, share, line, self.blocks))

    def close_stages(self) -> None:
        """End all hosts."""
        for stage in self.stages:
            stage.line.close()
        self.stages.clear()

    def close(self) -> None:
        """End all, and leave the cluster."""
        self.close_stages()
        self.fleet.close()

    def revive(self) -> None:
        """New hosts for the layers of all stages that are lost, on their nodes; the others have no keys and values any
        more, either. Raises StageLostError where one is out of reach for longer than PATIENCE_SECONDS."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        for stage in self.stages:
            if stage.lost:
                stage.line.close()
                self._reopen(stage, give_up)

    def _reopen(self, stage: RemoteStage, give_up: float) -> None:
        while True:
            node = next((node for node in self.fleet.nodes() if node.name == stage.name), None)
            try:
                if node is None:
                    raise StageLostError(f"{stage.name} is out of reach.", "See to it, or wait until it is back.")
                stage.reopen(self._start(node, stage.share))
            except StageLostError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(RETRY_SECONDS)
            else:
                return

    def _start(self, node: Node, share: Share) -> Line:
        line = node.start(replace(self.settings, share=share, ceiling=node.ceiling))
        try:
            check_alike(node.name, line.hello.alike, self.alike(share))
        except BaseException:
            line.close()
            raise
        return line
