"""What has to be the same in every process that runs a part of a model, so that the bits are those of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock import __version__
from penstock.compute.self_check import kernel_digest
from penstock.errors import ClusterError
from penstock.weights.identity import model_identity

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from penstock.adapters.adapter import Adapter
    from penstock.checkpoints.checkpoint import Checkpoint
    from penstock.compute.kernels import Kernels
    from penstock.models.stage import Share


def what_is_alike(
    checkpoint: Checkpoint, share: Share, kernels: Kernels, adapters: Collection[Adapter]
) -> Mapping[str, str]:
    """Digests, by what they are of. Of the weights those that `model_identity` looks at, so that it makes no difference
    which are packed. Raises ReadError, FormatError."""
    names = checkpoint.architecture.tensors_of(share.layers, embedding=share.embedding, head=share.head)
    identity = model_identity(checkpoint.config, {name: checkpoint.tensors[name] for name in names})
    alike = {
        "version of Penstock": __version__,
        "config": repr(sorted(identity["config"].items())),
        "weights": identity["weights"],
        "arithmetic": kernel_digest(kernels),
    }
    return alike | {f"adapter {adapter.name}": adapter.digest for adapter in adapters}


def check_alike(name: str, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Raise ClusterError where node `name` has something that is not as it is here, with both."""
    for what in sorted({*theirs, *ours}):
        mine, other = ours.get(what, "none"), theirs.get(what, "none")
        if mine != other:
            raise ClusterError(
                f"{name} has another {what}: {_short(other)}, and here it is {_short(mine)}.",
                "Install the same version of Penstock, and put the same model, on every machine.",
            )


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
