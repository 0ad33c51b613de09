"""An open model put together: its weights, the ceiling that they keep to, and the engine that runs its passes."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.adapters.named import open_adapters
from penstock.checkpoints.store import find_model, name_elsewhere
from penstock.compute.corrections import Components
from penstock.compute.kernels import Kernels
from penstock.engine.engine import Engine
from penstock.engine.stored_prefixes import StoredPrefixes
from penstock.errors import ClusterWarning, StageLostError
from penstock.events import Events
from penstock.memory.budget import Budget, check_context
from penstock.memory.memory import Memory
from penstock.memory.pressure import Relief
from penstock.memory.room import StageBudget, StageRoom
from penstock.models.chain import Chain
from penstock.models.kv_cache import Blocks
from penstock.models.kv_planes import KvShape
from penstock.models.stage import Share, Stage
from penstock.options import OpenOptions
from penstock.packed_format.draft_file import usable_corrections
from penstock.prefix_cache.folder import BlockFolder
from penstock.prefix_cache.keys import root_key
from penstock.speculate.costs import Costs
from penstock.speculate.draft_model import DraftModel
from penstock.speculate.drafters import draft_drafter, free_drafters, working_bytes
from penstock.speculate.speculator import Speculator
from penstock.speculate.worth import Worth
from penstock.stages.alike import what_is_alike
from penstock.stages.crew import Crew
from penstock.stages.measure import measured
from penstock.stages.messages import HostSettings
from penstock.stages.opening import OpenShare, decoder_of, open_weights
from penstock.system import machine
from penstock.weights.identity import contents_identity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from penstock.adapters.adapter import Adapter
    from penstock.checkpoints.checkpoint import Checkpoint
    from penstock.checkpoints.generation_config import GenerationDefaults
    from penstock.compute.corrections import Correction
    from penstock.memory.memory import Room
    from penstock.models.stage import OnLayer
    from penstock.speculate.drafter import Drafter
    from penstock.weights.weights import Weights


MOST_REMOTE_ROWS = 1024
"""Rows of one pass where hidden rows go to other machines: 16 MB a message for the 8B."""


class Runtime:
    """What runs the passes of one open model."""

    def __init__(
        self, checkpoint: Checkpoint, options: OpenOptions, available: int, defaults: GenerationDefaults
    ) -> None:
        """`available`: bytes that the machine had free, the ceiling where `options` give none. What else the process
        needs is in memory by now. Raises as `LLM.open` does."""
        self.context = check_context(options.context, checkpoint.config)
        checkpoint = checkpoint.for_context(self.context)
        self.config, self.architecture = checkpoint.config, checkpoint.architecture
        self.kernels = Kernels(options.threads)
        self.ceiling = available + machine.anonymous_bytes() if options.ceiling is None else options.ceiling
        self.events = Events()
        self.blocks = Blocks()
        self.draft: DraftModel | None = None
        self.adapters: dict[str, Adapter] = open_adapters(options.adapters, self.architecture, self.ceiling)
        self.weights: list[Weights] = []
        self.stages: list[Stage] = []
        """Those in this process."""
        self.crew: Crew | None = None
        """Those on other machines."""
        self._checkpoint, self._options = checkpoint, options
        self._on_layer: OnLayer | None = None
        try:
            self._open(defaults)
        except BaseException:
            self._free()
            raise

    def _open(self, defaults: GenerationDefaults) -> None:
        """Stages, what keeps them to their ceilings, drafters, and the engine."""
        checkpoint, options = self._checkpoint, self._options
        self.crew = self._open_crew()
        shares, others = self._deal(options.cut)
        opened = self._open_shares(shares)
        # Measured now, since the vectors are a part of the process.
        self._process = machine.footprint().nbytes - self._adapter_bytes + options.all_reserved
        budgets = self._budgets(opened, 0)
        corrections: Mapping[str, Correction] = {}
        if options.guesses:
            coarse = any(one.weights.draft_bytes for one in opened)
            budgets = self._budgets(opened, working_bytes(self.architecture, coarse))
            corrections = _corrections(checkpoint, opened[0], budgets[0]) if coarse else {}
            budgets = self._budgets(opened, budgets[0].draft + sum(one.nbytes for one in corrections.values()))
        drafters = []
        if options.draft_model is not None:
            self.draft = DraftModel(find_model(options.draft_model), self.kernels, options.kv_dtype, self.context)
            drafters.append(self._load_draft(self.draft, checkpoint, budgets[0]))
            budgets = self._budgets(opened, budgets[0].draft + self.draft.nbytes)
        rooms = self._assemble(opened, budgets, others)
        self.memory = Memory(rooms, self.blocks)
        chain = self._chain()
        if options.guesses:
            drafters = [*free_drafters(chain, self.stages, corrections), *drafters]
        worth = None if self.draft is None else Worth("draft", self.draft.nbytes)
        costs = Costs.of(self.architecture)
        speculator = Speculator(drafters, costs, options.draft_nodes, worth, self.drop_draft)
        self.engine = Engine(chain, self.memory, speculator, self.kernels, self.context, defaults)
        if self.crew is not None:
            self.engine.scheduler.max_rows = MOST_REMOTE_ROWS
            self.engine.replace_lost = self._replace_lost
        if options.prefix_cache is not None:
            self.engine.scheduler.stored = self._stored_prefixes(checkpoint, options, Path(options.prefix_cache))

    def _open_crew(self) -> Crew | None:
        """What starts stages on other machines, where there are to be any."""
        options, checkpoint = self._options, self._checkpoint
        fleet = options.fleet
        if fleet is None and options.cluster is not None:
            from penstock.cluster.fleet import RayFleet  # imports Ray, which few have

            fleet = RayFleet(options.cluster)
        if fleet is None:
            return None
        settings = HostSettings(
            model=name_elsewhere(checkpoint.path),
            share=Share(()),
            context=self.context,
            kv_dtype=options.kv_dtype,
            ceiling=None,
            threads=None,
            adapters=options.adapters,
            max_resident=options.max_resident,
        )
        adapters = list(self.adapters.values())
        alike = partial(what_is_alike, checkpoint, kernels=self.kernels, adapters=adapters)
        return Crew(fleet, settings, self.blocks, alike)

    def _deal(self, wanted: str | None) -> tuple[Sequence[Share], Mapping[str, Share]]:
        """What the stages in this process hold, and those on other machines, by name; `wanted`: as for `--cut`."""
        if self.crew is None:
            return self._options.shares or (Share(tuple(range(self.config.num_hidden_layers))),), {}
        reserved = self._options.all_reserved + self._adapter_bytes + (0 if self.draft is None else self.draft.nbytes)
        here = measured("here", self._checkpoint.files, self.ceiling, self.kernels, reserved)
        own, others = self.crew.deal(self._checkpoint, here, wanted)
        if not others:
            warnings.warn(
                "The other machines of the cluster are left out: this one is as quick alone.",
                ClusterWarning,
                stacklevel=2,
            )
            self.crew.close()
            self.crew = None
        return (own,), others

    def _assemble(
        self, opened: Sequence[OpenShare], budgets: Sequence[Budget], others: Mapping[str, Share]
    ) -> list[Room]:
        """Make stages of what is open here, and start the others; the rooms of all."""
        rooms = self._rooms(opened, budgets, self._options.max_resident)
        self.stages = [
            Stage(one.decoder, one.weights, one.share, room) for one, room in zip(opened, rooms, strict=True)
        ]
        if self.crew is None:
            return [*rooms]
        self.crew.open(others)
        return [*rooms, *(stage.room for stage in self.crew.stages)]

    def _chain(self) -> Chain:
        remote = [] if self.crew is None else self.crew.stages
        layers, vocab_size = self.config.num_hidden_layers, self.config.vocab_size
        return Chain([*self.stages, *remote], layers, vocab_size, self.blocks, self.events)

    def _replace_lost(self) -> None:
        """Have other hosts hold the layers that are lost: on the same machines, or, where these are out of reach for
        too long, on those that are left, with all layers cut anew. Raises StageLostError, ClusterError."""
        crew = self.crew
        if crew is None:
            return
        try:
            crew.revive()
        except StageLostError:
            self._cut_anew(crew)

    def _cut_anew(self, crew: Crew) -> None:
        draft = self.memory.budget.draft
        crew.close_stages()
        for weights in self.weights:
            weights.close()
        self.weights.clear()
        self.blocks.forget_stages()
        # Ranges were for other machines.
        shares, others = self._deal(self._options.cut if self._options.cut in ("runs", "dealt") else None)
        opened = self._open_shares(shares)
        self.memory.rooms = tuple(self._assemble(opened, self._budgets(opened, draft), others))
        self.engine.chain = self._chain()
        if self.engine.scheduler.stored is not None:
            self.engine.scheduler.stored.chain = self.engine.chain
        self.listen(self._on_layer)

    def listen(self, listener: OnLayer | None) -> None:
        """Have `listener` called after each layer of each pass."""
        self._on_layer = listener
        for stage in self.engine.chain.stages:
            stage.on_layer = listener

    def _stored_prefixes(self, checkpoint: Checkpoint, options: OpenOptions, path: Path) -> StoredPrefixes:
        """What is kept of prompts on the disk, for just this model, adapters and type of keys and values. Raises
        ReadError, FormatError."""
        shape, identity = KvShape.of(self.config, options.kv_dtype), contents_identity(self.config, checkpoint.tensors)
        folder = BlockFolder(path, options.most_prefix_bytes, shape.block_bytes)

        def root(adapter: str | None) -> bytes:
            return root_key(identity, asdict(shape), None if adapter is None else self.adapters[adapter].digest)

        return StoredPrefixes(folder, root, self.engine.chain, self.memory)

    def _open_shares(self, shares: Sequence[Share]) -> list[OpenShare]:
        """What each stage is to hold; weights that are open are closed with this object, whatever comes."""
        checkpoint, options, opened = self._checkpoint, self._options, []
        guesses = options.guesses and self.crew is None  # guessing with coarse weights takes those of all layers
        for share, ceiling in zip(shares, _ceilings(checkpoint, shares, self.ceiling), strict=True):
            weights = open_weights(checkpoint, share, self.kernels, ceiling, self.events, guesses)
            self.weights.append(weights)
            adapters = list(self.adapters.values())
            decoder = decoder_of(checkpoint, share, weights, self.kernels, self.blocks, options.kv_dtype, adapters)
            opened.append(OpenShare(share, weights, decoder, ceiling))
        return opened

    @property
    def _adapter_bytes(self) -> int:
        return sum(adapter.nbytes for adapter in self.adapters.values())

    def _budgets(self, opened: Sequence[OpenShare], draft: int) -> list[Budget]:
        """The first stage counts the process, the adapters, which all stages here share, and what guessing takes."""
        adapters, remote = self.adapters.values(), self.crew is not None
        first, *rest = opened
        budget = first.budget(self.kernels, self._process, adapters, with_adapters=True, remote=remote)
        others = (one.budget(self.kernels, 0, adapters, with_adapters=False, remote=remote) for one in rest)
        return [replace(budget, draft=draft), *others]

    def _rooms(self, opened: Sequence[OpenShare], budgets: Sequence[Budget], most: int | None) -> list[StageRoom]:
        """The first stage has the engine beside it, and a draft model."""
        rooms: list[StageRoom] = []
        for one, budget in zip(opened, budgets, strict=True):
            first = not rooms
            draft_kv = self.draft.kv_shape if first and self.draft is not None else None
            shape = one.decoder.planes.shape
            own = StageBudget(budget, shape, draft_kv, one.weights.least_draft_bytes, with_engine=first)
            rooms.append(StageRoom(own, one.weights, Relief(), most))
        return rooms

    def _load_draft(self, draft: DraftModel, checkpoint: Checkpoint, budget: Budget) -> Drafter:
        """A draft model as it is where all of both models stays in memory, else in 4 bits a weight."""
        draft.check_tokens_of(checkpoint.path, self.config)
        with_whole = replace(budget, draft=budget.draft + draft.likely_bytes("whole"))
        return draft_drafter(draft, "whole" if with_whole.holds_all() else "4 bits", self.config.vocab_size)

    def drop_draft(self) -> None:
        """The draft model does not pay: give its memory back to the weights."""
        if self.draft is not None:
            self.draft.close()
            self.memory.drop_draft(self.draft.nbytes)
            self.draft = None

    def close(self) -> None:
        """End the reader and free the weights."""
        # They refer to this object, which would be left to the garbage collector.
        self.listen(None)
        self.engine.replace_lost = None
        self.engine.speculator.close()
        self.memory.caches.kept.clear()
        self._free()

    def _free(self) -> None:
        for weights in self.weights:
            weights.close()
        if self.draft is not None:
            self.draft.close()
        if self.crew is not None:
            self.crew.close()


def _corrections(checkpoint: Checkpoint, opened: OpenShare, budget: Budget) -> dict[str, Correction]:
    """What a packed model was tuned with, as far as it is worth its room under the ceiling."""
    found = usable_corrections(checkpoint.path, checkpoint.files, checkpoint.tensors)
    stage = StageBudget(budget, opened.decoder.planes.shape, draft_weights=opened.weights.least_draft_bytes)
    components = Components.of(found)
    rank = stage.correction_rank(components.nbytes, components.rank)
    return {name: correction.first(rank) for name, correction in found.items()} if rank else {}


def _ceilings(checkpoint: Checkpoint, shares: Sequence[Share], ceiling: int) -> list[int]:
    """Parts of a ceiling for stages of one process, as large as their weights are beside one another; the first one has
    the process itself."""
    if len(shares) == 1:
        return [ceiling]
    architecture, process = checkpoint.architecture, machine.footprint().nbytes
    sizes = [
        sum(checkpoint.tensors[name].nbytes for name in architecture.matrices_of(share.layers, head=share.head))
        for share in shares
    ]
    parts = [max(0, ceiling - process) * size // sum(sizes) for size in sizes]
    return [process + parts[0], *parts[1:]]
