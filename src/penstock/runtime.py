"""An open model put together: its weights, the ceiling that they keep to, and the engine that runs its passes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from penstock.compute.kernels import Kernels
from penstock.engine.engine import Engine
from penstock.events import Events
from penstock.memory.memory import Memory
from penstock.memory.pressure import Relief
from penstock.models.decoder import Decoder
from penstock.models.kv_cache import KvShape
from penstock.models.stage import Stage
from penstock.planning.plan import Budget, check_context, choose_ring
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
    from penstock.models.stage import OnLayer
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
        ceiling = available + machine.footprint().anonymous if options.memory is None else options.memory
        self.events = Events()
        order = self.architecture.pass_order
        chunk = largest_chunk([checkpoint.tensors[name] for name in order])
        drafts = draft_order(self.architecture) if options.guesses else ()
        ring = choose_ring(ceiling, chunk)
        self.weights = Weights(checkpoint.tensors, order, self.kernels, ring, self.events, drafts)
        self.draft: DraftModel | None = None
        self.on_layer: OnLayer | None = None
        try:
            self.model = Decoder(self.config, self.weights, self.kernels, self.weights.vectors())
            # Only now, since the process is measured for it, and the vectors are a part of that.
            self._share_out(checkpoint, options, self._budget(options, ceiling, chunk), defaults)
        except BaseException:
            self._free()
            raise

    def _budget(self, options: Options, ceiling: int, chunk: int) -> Budget:
        return Budget(
            architecture=self.architecture,
            weights=self.weights.pass_bytes,
            ceiling=ceiling,
            process=machine.footprint().nbytes + options.reserve,
            scratch=self.kernels.scratch_bytes * self.kernels.threads,
            chunk=chunk,
            indexed=self.weights.indexed_bytes,
            draft=working_bytes(self.architecture, self.weights.draft_bytes > 0) if options.guesses else 0,
        )

    def _share_out(
        self, checkpoint: Checkpoint, options: Options, budget: Budget, defaults: GenerationDefaults
    ) -> None:
        """What keeps to the budget: drafters, memory, the engine."""
        self.kv_shape = KvShape.of(self.config, options.kv_dtype)
        drafters = free_drafters(self.model, self.weights) if options.guesses else []
        if options.draft is not None:
            self.draft = DraftModel(options.draft, self.kernels, options.kv_dtype)
            drafters.append(self._load_draft(self.draft, checkpoint, budget))
            budget = replace(budget, draft=budget.draft + self.draft.nbytes)
        draft_kv = None if self.draft is None else self.draft.kv_shape
        self.memory = Memory(budget, self.weights, self.kv_shape, Relief(), options.max_resident, draft_kv)
        worth = None if self.draft is None else Worth("draft", self.draft.nbytes)
        costs = Costs(self.architecture.pass_weights)
        speculator = Speculator(drafters, costs, options.draft_nodes, worth, self.drop_draft)
        self.engine = Engine(
            Stage(self.model, self.weights, range(self.config.num_hidden_layers), self._after_layer),
            self.kernels,
            self.kv_shape,
            self.context,
            defaults,
            memory=self.memory,
            speculator=speculator if drafters else None,
        )

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

    def _after_layer(self, index: int, read: float, wait: float, compute: float) -> None:
        self.memory.relieve()
        if self.on_layer is not None:
            self.on_layer(index, read, wait, compute)

    def close(self) -> None:
        """End the reader and free the weights."""
        # They refer to this object, which would be left to the garbage collector.
        self.engine.stage.on_layer = self.engine.speculator = None
        if self.engine.kept is not None:
            self.engine.kept.clear()
        self._free()

    def _free(self) -> None:
        self.weights.close()
        if self.draft is not None:
            self.draft.close()
