"""An open model put together: its weights, the ceiling that they keep to, and the engine that runs its passes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from penstock.compute.kernels import Kernels
from penstock.disk.reader import Ring
from penstock.engine.engine import Engine
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
from penstock.speculate.costs import Costs
from penstock.speculate.draft_model import DraftModel
from penstock.speculate.drafters import draft_drafter, free_drafters, working_bytes
from penstock.speculate.speculator import Speculator
from penstock.speculate.worth import Worth
from penstock.system import machine
from penstock.weights.pieces import largest_chunk
from penstock.weights.residency import draft_order
from penstock.weights.weights import Weights

if TYPE_CHECKING:
    from pathlib import Path

    from penstock.checkpoints.checkpoint import Checkpoint
    from penstock.checkpoints.generation_config import GenerationDefaults
    from penstock.speculate.drafter import Drafter


@dataclass(frozen=True, slots=True)
class Options:
    """How to open a model; `LLM.open` describes them."""

    memory: int | None = None
    """Ceiling on the whole process, bytes."""
    threads: int | None = None
    context: int | None = None
    kv_dtype: str = "bf16"
    guesses: bool = True
    """Whether to guess tokens, for passes to check several at once."""
    draft: Path | None = None
    """A smaller model that guesses too."""
    draft_nodes: int | None = None
    """Guesses a sequence and pass; None for as many as pay."""
    max_resident: int | None = None
    """Most bytes of weights to keep in memory; None keeps what the ceiling allows."""
    reserve: int = 0
    """Bytes under the ceiling that are left to the caller."""


class Runtime:
    """What runs the passes of one open model."""

    def __init__(self, checkpoint: Checkpoint, options: Options, available: int, defaults: GenerationDefaults) -> None:
        """`available`: bytes that the machine had free, the ceiling where `options` give none. What else the process
        needs is in memory by now. Raises as `LLM.open` does."""
        self.config, self.architecture = checkpoint.config, checkpoint.architecture
        self.context = check_context(options.context, self.config.max_position_embeddings)
        self.kernels = Kernels(options.threads)
        self.ceiling = available + machine.footprint().anonymous if options.memory is None else options.memory
        self.events = Events()
        self.blocks = Blocks()
        self.draft: DraftModel | None = None
        share = Share(tuple(range(self.config.num_hidden_layers)))
        self.weights = open_weights(checkpoint, share, self.kernels, self.ceiling, self.events, options.guesses)
        try:
            # The process is measured now, since the vectors are a part of it.
            self.model = decoder_of(checkpoint, share, self.weights, self.kernels, self.blocks, options.kv_dtype)
            self._share_out(checkpoint, share, options, self._budget(options), defaults)
        except BaseException:
            self._free()
            raise

    def _budget(self, options: Options) -> Budget:
        return Budget(
            architecture=self.architecture,
            weights=self.weights.pass_bytes,
            ceiling=self.ceiling,
            process=machine.footprint().nbytes + options.reserve,
            scratch=self.kernels.scratch_bytes * self.kernels.threads,
            chunk=self.weights.largest_chunk,
            indexed=self.weights.indexed_bytes,
            draft=working_bytes(self.architecture, self.weights.draft_bytes > 0) if options.guesses else 0,
        )

    def _share_out(
        self, checkpoint: Checkpoint, share: Share, options: Options, budget: Budget, defaults: GenerationDefaults
    ) -> None:
        """What keeps to the budget: drafters, memory, the engine."""
        if options.draft is not None:
            self.draft = DraftModel(options.draft, self.kernels, options.kv_dtype)
            draft_drafter = self._load_draft(self.draft, checkpoint, budget)
            budget = replace(budget, draft=budget.draft + self.draft.nbytes)
        draft_kv = None if self.draft is None else self.draft.kv_shape
        own = StageBudget(budget, self.model.planes.shape, draft_kv, self.weights.draft_bytes)
        self.room = StageRoom(own, self.weights, Relief(), options.max_resident)
        self.stage = Stage(self.model, self.weights, share, self.room)
        layers = self.config.num_hidden_layers
        chain = Chain([self.stage], layers, self.config.vocab_size, self.blocks, self.events)
        self.memory = Memory([self.room], self.blocks)
        drafters = free_drafters(chain, [self.stage]) if options.guesses else []
        drafters += [draft_drafter] if self.draft is not None else []
        worth = None if self.draft is None else Worth("draft", self.draft.nbytes)
        costs = Costs(self.architecture.pass_weights)
        speculator = Speculator(drafters, costs, options.draft_nodes, worth, self.drop_draft)
        self.engine = Engine(chain, self.memory, speculator, self.kernels, self.context, defaults)

    def _load_draft(self, draft: DraftModel, checkpoint: Checkpoint, budget: Budget) -> Drafter:
        """A draft model as it is where all of both models stays in memory, else in 4 bits a weight."""
        draft.check_tokens_of(checkpoint.path, self.config)
        with_whole = replace(budget, draft=budget.draft + draft.likely_bytes("whole"))
        return draft_drafter(draft, "whole" if with_whole.holds_all() else "4 bits")

    def drop_draft(self) -> None:
        """The draft model does not pay: give its memory back to the weights."""
        if self.draft is not None:
            self.draft.close()
            self.memory.drop_draft(self.draft.nbytes)
            self.draft = None

    def close(self) -> None:
        """End the reader and free the weights."""
        # They refer to this object, which would be left to the garbage collector.
        self.stage.on_layer = None
        self.engine.speculator.close()
        self.memory.caches.kept.clear()
        self._free()

    def _free(self) -> None:
        self.weights.close()
        if self.draft is not None:
            self.draft.close()


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
    return Weights(tensors, order, kernels, ring, events, drafts)


def decoder_of(
    checkpoint: Checkpoint, share: Share, weights: Weights, kernels: Kernels, blocks: Blocks, kv_dtype: str
) -> Decoder:
    """What computes a share of a model, with room of its own for keys and values. Raises ReadError, UsageError."""
    shape = KvShape.of(checkpoint.config, kv_dtype, len(share.layers))
    planes = KvPlanes(shape, share.layers, blocks.outbox())
    return Decoder(checkpoint.config, weights, kernels, weights.vectors(), planes)
