"""Adapters by name: what a user gives, and what an open model has of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.adapters.adapter import open_adapter
from penstock.adapters.places import adapter_places
from penstock.errors import UsageError
from penstock.strict_json import listed, shown

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from penstock.adapters.adapter import Adapter
    from penstock.architectures.base import Architecture


def open_adapters(
    given: Sequence[str | os.PathLike[str]], architecture: Architecture, most_bytes: int | None = None
) -> dict[str, Adapter]:
    """The adapters of a model by name, each of `most_bytes` at most. Raises as `adapter_places` and `open_adapter`."""
    return {name: open_adapter(name, path, architecture, most_bytes) for name, path in adapter_places(given).items()}


def check_names(adapters: Sequence[str | os.PathLike[str]], model: str) -> None:
    """Raise UsageError where an adapter has the name that requests know the model by."""
    if model in adapter_places(adapters):
        raise UsageError(f"An adapter is called {shown(model)}, as the model is.", "Give it another name: NAME=DIR.")


def check_adapter(name: str | None, known: Sequence[str]) -> None:
    """Raise UsageError unless a model has this adapter; None stands for the model without any."""
    if name is not None and name not in known:
        there = f"Those that are open: {listed(known)}." if known else "Open the model with it: adapters=[DIR]."
        raise UsageError(f"There is no adapter called {shown(name)}.", there)
