"""Benches in other processes, on other machines mostly: how they open the model, and what is asked of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from penstock import __version__
from penstock.adapters.places import adapter_places
from penstock.batch.bench import Bench
from penstock.batch.line_room import most_line_bytes, with_room
from penstock.batch.opening import model_digest
from penstock.checkpoints.store import find_model, name_elsewhere
from penstock.compute.self_check import kernel_digest
from penstock.errors import ClusterError
from penstock.llm import LLM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future

    from penstock.batch.exchange import Assignment, Begun, Passed, Terms
    from penstock.compute.kernels import Kernels
    from penstock.models.stage import OnLayer
    from penstock.options import OpenOptions

VERSION = "version of Penstock"


class BenchLostError(ClusterError):
    """A bench is gone, and what it was at with it."""


@dataclass(frozen=True, slots=True)
class Opening:
    """How a bench opens the model."""

    model: str
    """As its own machine knows it."""
    options: OpenOptions
    longest_line: int
    """Of the requests, in bytes."""
    terms: Terms


@dataclass(frozen=True, slots=True)
class Hello:
    """What a bench says of itself once its model is open."""

    alike: Mapping[str, str]
    """As `what_is_alike` has it."""
    has_chat_template: bool
    ceiling: int
    """Bytes that its process may take."""
    most_line_bytes: int
    """Longer lines it does not take."""


class BenchLike(Protocol):
    """A bench elsewhere. One call at a time; each raises BenchLostError where the bench is gone, and what the bench
    itself raised."""

    @property
    def name(self) -> str:
        """For people."""

    def version(self) -> Future[str]:
        """Of Penstock there."""

    def open(self, opening: Opening) -> Future[Hello]:
        """Open the model. Raises as `LLM.open` does."""

    def begin(self, assignments: Sequence[Assignment]) -> Future[Begun]:
        """As `Bench.begin`."""

    def step(self) -> Future[Passed]:
        """As `Bench.step`."""

    def heard(self) -> float:
        """When it last gave a sign of life beside its answers, the end of a layer say, by `time.monotonic`."""

    def close(self) -> None:
        """End it, whatever it is at; its call then raises BenchLostError."""


def known_elsewhere(options: OpenOptions) -> OpenOptions:
    """With models by the names that other machines know them by, and folders by their whole paths."""
    draft, cache = options.draft, options.prefix_cache
    return replace(
        options,
        adapters=tuple(f"{name}={Path(place).absolute()}" for name, place in adapter_places(options.adapters).items()),
        draft=name_elsewhere(Path(draft)) if draft is not None and Path(draft).exists() else draft,
        prefix_cache=None if cache is None else str(Path(cache).absolute()),
    )


def what_is_alike(model_digest: str, kernels: Kernels) -> Mapping[str, str]:
    """What has to be the same everywhere, by what it is called to people."""
    return {VERSION: __version__, "model": model_digest, "arithmetic": kernel_digest(kernels)}


def open_bench(opening: Opening, on_layer: OnLayer | None = None) -> tuple[Bench, Hello]:
    """Where a bench is to be: open its model. Raises as `LLM.open` does."""
    options = opening.options
    digest = model_digest(find_model(opening.model), options.adapters)
    most_bytes = most_line_bytes(options.ceiling)
    llm = LLM.open_with(opening.model, with_room(options, min(most_bytes, opening.longest_line)), on_layer)
    hello = Hello(what_is_alike(digest, llm.kernels), llm.has_chat_template, llm.memory.budget.ceiling, most_bytes)
    return Bench(llm, opening.terms), hello
