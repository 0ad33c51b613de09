"""`penstock pull --cluster`: the model on this machine, and on the others of a cluster, each from the Hub itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from threading import Thread
from typing import TYPE_CHECKING

from penstock.architectures.registry import parse_config
from penstock.checkpoints.share_file import layers_in_words
from penstock.cli.plan_cluster import measure_cluster
from penstock.cli.pull_bar import PullBar
from penstock.cli.status_line import visible
from penstock.errors import PenstockError
from penstock.hub.folder import HubFolder
from penstock.hub.pull import finished, place_of, pull
from penstock.hub.pull_share import check_enough
from penstock.hub.repository import check_repo_id, find_repository
from penstock.stages.cut import Network, parse_cut

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import Progress

    from penstock.cluster.fleet import RayNode
    from penstock.cluster.pull_order import PullOrder
    from penstock.cluster.pulling import PullThere
    from penstock.hub.pull import PullResult
    from penstock.models.stage import Share

LOOK_SECONDS = 0.5


@dataclass(slots=True)
class Pulls:
    """Those of the other machines, at the same time. None of them is left behind: `close` ends what is not done."""

    order: PullOrder
    """Of this machine."""
    others: Sequence[tuple[RayNode, tuple[int, ...] | None]]
    """What pulls, and which layers; None for all."""
    bar: Progress
    results: dict[str, PullResult | PenstockError | None] = field(default_factory=dict)
    """Of those that are done, by machine; None where the model was there already."""
    _pulls: list[tuple[PullThere, PullBar]] = field(default_factory=list)
    _watching: Thread | None = None
    _closed: bool = False

    def begin(self, commit: str) -> None:
        """Have all of them pull this commit."""
        from penstock.cluster.pulling import PullThere  # imports Ray

        for node, layers in self.others:
            there = PullThere(node, replace(self.order, revision=commit, layers=layers))
            self._pulls.append((there, PullBar(self.bar, f"{visible(node.name)}: ")))
        self._watching = Thread(target=self._watch, daemon=True)
        self._watching.start()

    def wait(self) -> None:
        """Until all are done."""
        while self._watching is not None and self._watching.is_alive():
            self._watching.join(LOOK_SECONDS)

    def close(self) -> None:
        """End them; another pull goes on from there."""
        self._closed = True
        self.wait()
        for there, _ in self._pulls:
            there.close()

    def _watch(self) -> None:
        while not self._closed and len(self.results) < len(self._pulls):
            for there, bar in self._pulls:
                if there.name not in self.results:
                    self._look(there, bar)
            time.sleep(LOOK_SECONDS)

    def _look(self, there: PullThere, bar: PullBar) -> None:
        try:
            bar.show(there.state())
            if there.done():
                self.results[there.name] = there.result()
        except PenstockError as error:
            self.results[there.name] = error


class _Begins(PullBar):
    """Shows the pull of this machine, and has those of the others begin, of the same commit."""

    def __init__(self, bar: Progress, pulls: Pulls) -> None:
        super().__init__(bar, "this machine: ")
        self._pulls = pulls

    def settled(self, commit: str) -> None:
        self._pulls.begin(commit)


def pull_on_cluster(
    address: str, order: PullOrder, cut: str | None, bar: Progress
) -> tuple[PullResult | None, dict[str, PullResult | PenstockError | None]]:
    """What came of it here, None where the model was here already, and elsewhere, by machine with its layers.

    Raises as `pull`, ClusterError.
    """
    from penstock.cluster.fleet import RayFleet

    check_repo_id(order.repo)
    fleet = RayFleet(address)
    try:
        nodes = fleet.nodes()
        shares = [None] * len(nodes) if cut is None else _layers(order, cut, address, len(nodes))
        held = [(node, layers) for node, layers in zip(nodes, shares, strict=True) if layers != ()]
        pulls = Pulls(order, held, bar)
        try:
            here = _pull_here(order, pulls)
            pulls.wait()
        finally:
            pulls.close()
        return here, {_said(node, layers): pulls.results[node.name] for node, layers in held}
    finally:
        fleet.close()


def _pull_here(order: PullOrder, pulls: Pulls) -> PullResult | None:
    """This machine needs all of it: it knows by its weights whether those of the others are the same."""
    if finished(order.repo, order.out):
        check_enough(place_of(order.repo, order.out), None)
        pulls.begin(find_repository(order.repo, order.revision, order.token).commit)
        return None
    return pull(
        order.repo,
        order.out,
        revision=order.revision,
        token=order.token,
        threads=order.threads,
        watcher=_Begins(pulls.bar, pulls),
    )


def _layers(order: PullOrder, cut: str, address: str, others: int) -> list[tuple[int, ...]]:
    """Of each of the other machines; none where it has no part in that cut."""
    folder = HubFolder(find_repository(order.repo, order.revision, order.token))
    config = parse_config(folder.read_json("config.json"), str(folder.path / "config.json"))
    way = parse_cut(cut, config.num_hidden_layers, 1 + others)
    shares = way if isinstance(way, tuple) else _quickest(order.repo, address, cut)
    found = [() if share is None else share.layers for share in shares[1:]]
    return found + [()] * (others - len(found))


def _quickest(repo: str, address: str, way: str) -> Sequence[Share | None]:
    """By machine, of a model that is packed there."""
    from penstock.forecast.cluster import measured_machines, parts_of
    from penstock.forecast.outlook import PlanSettings, look
    from penstock.stages.choose_cut import choose_cut

    outlook = look(repo, PlanSettings(draft="none", prompts=()))
    machines = measured_machines(outlook, measure_cluster(address, outlook.subject), Network())
    parts = parts_of(outlook.subject, "packed" if outlook.subject.packs else "raw", outlook.context, "bf16", 0.0)
    return choose_cut(parts, machines.nodes, machines.network, "dealt" if way == "dealt" else "runs").shares


def _said(node: RayNode, layers: tuple[int, ...] | None) -> str:
    name = visible(node.name)
    return name if layers is None else f"{name}, layers {layers_in_words(layers)}"
