"""An open model put together: its weights, the ceiling that they keep to, and the engine that runs its passes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.adapters.named import open_adapters
from penstock.checkpoints.store import find_model
from penstock.compute.corrections import Components
from penstock.compute.kernels import Kernels
from penstock.disk.reader import Ring
from penstock.engine.engine import Engine
from penstock.engine.stored_prefixes import StoredPrefixes
from penstock.events import Events
from penstock.memory.budget import Budget, check_context, choose_ring
from penstock.memory.memory import Memory
from penstock.memory.pressure import Relief
from penstock.memory.room import StageBudget, StageRoom
from penstock.models.chain import Chain
from penstock.models.decoder import Decoder
from penstock.models.kv_cache import Blocks
from penstock.models.kv_planes import KvPlanes, KvShape
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
from penstock.system import machine
from penstock.system.garbage import no_collections
from penstock.weights.identity import contents_identity
from penstock.weights.pieces import largest_chunk
from penstock.weights.residency import draft_order
from penstock.weights.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from penstock.adapters.adapter import Adapter
    from penstock.checkpoints.checkpoint import Checkpoint
    from penstock.checkpoints.generation_config import GenerationDefaults
    from penstock.compute.corrections import Correction
    from penstock.speculate.drafter import Drafter


@dataclass(frozen=True, slots=True)
class _Opened:
    """A share of a model with its weights, and its part of the ceiling."""

    share: Share
    weights: Weights
    decoder: Decoder
    ceiling: int


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
        try:
            self._open(checkpoint, options, defaults)
        except BaseException:
            self._free()
            raise

    def _open(self, checkpoint: Checkpoint, options: OpenOptions, defaults: GenerationDefaults) -> None:
        """Stages, what keeps them to their ceilings, drafters, and the engine."""
        opened = self._open_shares(checkpoint, options)
        # Measured now, since the vectors are a part of the process.
        process = machine.footprint().nbytes - self._adapter_bytes + options.all_reserved
        budgets = [self._budget(one, process if one is opened[0] else 0) for one in opened]
        corrections: Mapping[str, Correction] = {}
        if options.guesses:
            coarse = any(one.weights.draft_bytes for one in opened)
            budgets[0] = replace(budgets[0], draft=working_bytes(self.architecture, coarse))
            corrections = _corrections(checkpoint, opened[0], budgets[0]) if coarse else {}
            held = budgets[0].draft + sum(one.nbytes for one in corrections.values())
            budgets[0] = replace(budgets[0], draft=held)
        drafters = []
        if options.draft_model is not None:
            self.draft = DraftModel(find_model(options.draft_model), self.kernels, options.kv_dtype, self.context)
            drafters.append(self._load_draft(self.draft, checkpoint, budgets[0]))
            budgets[0] = replace(budgets[0], draft=budgets[0].draft + self.draft.nbytes)
        rooms = self._rooms(opened, budgets, options.max_resident)
        self.stages = [
            Stage(one.decoder, one.weights, one.share, room) for one, room in zip(opened, rooms, strict=True)
        ]
        self.memory = Memory(rooms, self.blocks)
        layers = self.config.num_hidden_layers
        chain = Chain(self.stages, layers, self.config.vocab_size, self.blocks, self.events)
        if options.guesses:
            drafters = [*free_drafters(chain, self.stages, corrections), *drafters]
        worth = None if self.draft is None else Worth("draft", self.draft.nbytes)
        costs = Costs.of(self.architecture)
        speculator = Speculator(drafters, costs, options.draft_nodes, worth, self.drop_draft)
        self.engine = Engine(chain, self.memory, speculator, self.kernels, self.context, defaults)
        if options.prefix_cache is not None:
            self.engine.scheduler.stored = self._stored_prefixes(checkpoint, options, Path(options.prefix_cache))

    def _stored_prefixes(self, checkpoint: Checkpoint, options: OpenOptions, path: Path) -> StoredPrefixes:
        """What is kept of prompts on the disk, for just this model, adapters and type of keys and values. Raises
        ReadError, FormatError."""
        shape, identity = KvShape.of(self.config, options.kv_dtype), contents_identity(self.config, checkpoint.tensors)
        folder = BlockFolder(path, options.most_prefix_bytes, shape.block_bytes)

        def root(adapter: str | None) -> bytes:
            return root_key(identity, asdict(shape), None if adapter is None else self.adapters[adapter].digest)

        return StoredPrefixes(folder, root, self.engine.chain, self.memory)

    def _open_shares(self, checkpoint: Checkpoint, options: OpenOptions) -> list[_Opened]:
        """What each stage is to hold; weights that are open are closed with this object, whatever comes."""
        shares = options.shares or (Share(tuple(range(self.config.num_hidden_layers))),)
        opened = []
        for share, ceiling in zip(shares, _ceilings(checkpoint, shares, self.ceiling), strict=True):
            weights = open_weights(checkpoint, share, self.kernels, ceiling, self.events, options.guesses)
            self.weights.append(weights)
            adapters = list(self.adapters.values())
            decoder = decoder_of(checkpoint, share, weights, self.kernels, self.blocks, options.kv_dtype, adapters)
            opened.append(_Opened(share, weights, decoder, ceiling))
        return opened

    @property
    def _adapter_bytes(self) -> int:
        return sum(adapter.nbytes for adapter in self.adapters.values())

    def _budget(self, one: _Opened, process: int) -> Budget:
        """The first stage counts the adapters, which all stages here share."""
        return Budget(
            adapters=self._adapter_bytes if process else 0,
            adapter_rank=max((adapter.rank for adapter in self.adapters.values()), default=0),
            architecture=self.architecture,
            weights=one.weights.pass_bytes,
            ceiling=one.ceiling,
            process=process,
            scratch=self.kernels.scratch_bytes * self.kernels.threads,
            chunk=one.weights.largest_chunk,
            indexed=one.weights.indexed_bytes,
            experts=one.weights.expert_bytes,
            head=one.share.head,
        )

    def _rooms(self, opened: Sequence[_Opened], budgets: Sequence[Budget], most: int | None) -> list[StageRoom]:
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
        for stage in self.stages:
            stage.on_layer = None
        self.engine.speculator.close()
        self.memory.caches.kept.clear()
        self._free()

    def _free(self) -> None:
        for weights in self.weights:
            weights.close()
        if self.draft is not None:
            self.draft.close()


def _corrections(checkpoint: Checkpoint, opened: _Opened, budget: Budget) -> dict[str, Correction]:
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


@no_collections()
def open_weights(
    checkpoint: Checkpoint,
    share: Share,
    kernels: Kernels,
    ceiling: int,
    events: Events,
    guesses: bool,
    ring: Ring | None = None,
) -> Weights:
    """The weights of a share of a model, none of them in memory yet; to be closed. `guesses`: whether some are to be
    kept for guesses alone; `ring`: None for what such a ceiling leaves room for."""
    architecture = checkpoint.architecture
    names = architecture.tensors_of(share.layers, embedding=share.embedding, head=share.head)
    order = architecture.matrices_of(share.layers, head=share.head)
    tensors = {name: checkpoint.tensors[name] for name in names}
    if ring is None:
        ring = choose_ring(ceiling, largest_chunk([tensors[name] for name in order]))
    drafts = [name for name in draft_order(architecture) if name in tensors] if guesses else ()
    experts = [parts for layer in share.layers if (parts := architecture.experts(layer))]
    return Weights(tensors, order, kernels, ring, events, drafts, experts, architecture.expert_share(1))


def decoder_of(
    checkpoint: Checkpoint,
    share: Share,
    weights: Weights,
    kernels: Kernels,
    blocks: Blocks,
    kv_dtype: str,
    adapters: Sequence[Adapter] = (),
) -> Decoder:
    """What computes a share of a model, with room of its own for keys and values, and what `adapters` have for it.
    Raises ReadError, UsageError."""
    shape = KvShape.of(checkpoint.config, kv_dtype, len(share.layers))
    planes = KvPlanes(shape, share.layers, blocks.outbox())
    own = {adapter.name: adapter.only(weights.tensors) for adapter in adapters}
    return Decoder(checkpoint.config, weights, kernels, weights.vectors(), planes, own)
