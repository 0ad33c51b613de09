"""A share of a model, opened: its weights, what computes it, and its part of a ceiling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.disk.reader import Ring
from penstock.memory.budget import Budget, choose_ring
from penstock.models.decoder import Decoder
from penstock.models.kv_planes import KvPlanes, KvShape
from penstock.system.garbage import no_collections
from penstock.weights.pieces import largest_chunk
from penstock.weights.residency import draft_order
from penstock.weights.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from penstock.adapters.adapter import Adapter
    from penstock.checkpoints.checkpoint import Checkpoint
    from penstock.compute.kernels import Kernels
    from penstock.events import Events
    from penstock.models.kv_cache import Blocks
    from penstock.models.stage import Share


@dataclass(frozen=True, slots=True)
class OpenShare:
    """A share of a model with its weights, and its part of the ceiling."""

    share: Share
    weights: Weights
    decoder: Decoder
    ceiling: int

    def budget(
        self, kernels: Kernels, process: int, adapters: Collection[Adapter], *, with_adapters: bool, remote: bool
    ) -> Budget:
        """`process`: bytes that the process takes beside it, without adapters; `with_adapters`: whether these count
        here, as stages of one process share them; `remote`: whether others are in other processes."""
        return Budget(
            architecture=self.decoder.architecture,
            weights=self.weights.pass_bytes,
            ceiling=self.ceiling,
            process=process,
            scratch=kernels.scratch_bytes * kernels.threads,
            chunk=self.weights.largest_chunk,
            indexed=self.weights.indexed_bytes,
            head=self.share.head,
            window=self.share.window,
            adapters=sum(adapter.nbytes for adapter in adapters) if with_adapters else 0,
            adapter_rank=max((adapter.rank for adapter in adapters), default=0),
            experts=self.weights.expert_bytes,
            remote=remote,
        )


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
        ring = choose_ring(ceiling, largest_chunk([tensors[name] for name in order]), share.window)
    drafts = [name for name in draft_order(architecture) if name in tensors] if guesses else ()
    experts = [parts for layer in share.layers if (parts := architecture.experts(layer))]
    # No ring has room for the head while other stages have their turn.
    first = [architecture.head] if share.head and share.window else []
    return Weights(tensors, order, kernels, ring, events, drafts, experts, architecture.expert_share(1), first)


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
