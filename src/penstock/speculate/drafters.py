"""The drafters of an open model: free ones, its own coarse tier, and a draft model where one was named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.memory.budget import RAW_WEIGHT_BYTES
from penstock.models.kv_cache import KvCache
from penstock.speculate.coarse import LEVEL_BYTES, CoarseDrafter
from penstock.speculate.exact_head import KEPT_BYTES
from penstock.speculate.grow import BATCH
from penstock.speculate.lookup import Lookup
from penstock.speculate.model_drafter import ModelDrafter
from penstock.speculate.recycling import ENTRY_BYTES, Recycling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from penstock.architectures.base import Architecture
    from penstock.compute.corrections import Correction
    from penstock.models.chain import Chain
    from penstock.models.stage import Stage
    from penstock.speculate.draft_model import DraftModel, Form
    from penstock.speculate.drafter import Drafter


def free_drafters(chain: Chain, stages: Sequence[Stage], corrections: Mapping[str, Correction]) -> list[Drafter]:
    """Those that need nothing but the model: its own coarse tier only where its weights are packed."""
    drafters: list[Drafter] = [Lookup(), Recycling(chain.vocab_size)]
    if any(stage.weights.draft_bytes for stage in stages):
        drafters.append(CoarseDrafter(chain, stages, corrections))
    return drafters


def draft_drafter(draft: DraftModel, form: Form, vocab_size: int) -> ModelDrafter:
    """Load a draft model, and ask it for tokens below `vocab_size`, the target's."""
    model = draft.load(form)
    return ModelDrafter("draft", model, model.hidden, new_cache=lambda: KvCache(draft.blocks), target_vocab=vocab_size)


def working_bytes(architecture: Architecture, coarse: bool) -> int:
    """What the free drafters take beside the weights: tables, rows that are kept, and a batch on its way.

    `coarse`: whether there is a coarse tier to guess with.
    """
    table = architecture.config.vocab_size * ENTRY_BYTES
    if not coarse:
        return table
    rows = sum(shape[0] for shape in architecture.pass_matrices.values())
    activations = architecture.activation_bytes(BATCH, BATCH, 0, RAW_WEIGHT_BYTES)
    return table + rows * LEVEL_BYTES + KEPT_BYTES + activations
