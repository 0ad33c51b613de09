"""What `run` does about a model that is not on this machine, and may be on the Hub."""

from __future__ import annotations

from penstock.checkpoints.store import find_model
from penstock.cli.asked import stdin_is_terminal
from penstock.cli.live import is_terminal
from penstock.cli.pull import pull
from penstock.cli.units import format_size
from penstock.errors import CheckpointError
from penstock.hub.repository import find_repository, is_repo_id

PACKED_SHARE = 0.68
"""Of the bytes of BF16 weights, roughly, that packed ones take."""


def offer_to_pull(model: str) -> None:
    """Where there is no such model here: on a terminal, offer to download it.

    Raises CheckpointError where it is not there afterwards.
    """
    try:
        find_model(model)
    except CheckpointError as missing:
        if not (is_repo_id(model) and stdin_is_terminal() and is_terminal()):
            raise
        try:
            files = find_repository(model).files.values()
        except CheckpointError as error:
            raise CheckpointError(f"{missing.problem} {error.problem}", missing.remedy) from None
        size = sum(file.size for file in files if file.name.endswith(".safetensors"))
        print(
            f"{model} is not on this machine. On the Hub its weights take {format_size(size)}; here, packed, they "
            f"would take about {format_size(int(size * PACKED_SHARE))}."
        )
        if not _agreed("Download it now? [y/N] "):
            raise missing from None
        pull(model)


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False
