"""How to open a model: every option declared, documented and checked once, for Python and for the command line."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from penstock.errors import UsageError
from penstock.models.kv_planes import check_kv_dtype
from penstock.system.sizes import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from penstock.models.stage import Share

MOST_NODES = 4096
"""Guesses of a pass, where somebody says how many."""


def _option(default: Any, help: str, metavar: str | None = None) -> Any:
    """An option that commands have too."""
    return field(default=default, metadata={"help": help, "metavar": metavar})


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOptions:
    """How to open a model. Raises UsageError for values that cannot be meant."""

    memory: str | int | None = _option(
        None, "Ceiling on the whole process, like 512MiB or 2GiB. (default: what the machine has free)"
    )
    context: int | None = _option(None, "Most positions of a sequence. (default: what prompt and answer need)")
    threads: int | None = _option(None, "CPU threads. (default: every CPU)")
    kv_dtype: str = _option("bf16", "What keys and values are rounded to: bf16 or f32.")
    draft: str | None = _option(
        None,
        "What guesses tokens, for a pass to check many at once; it changes no token. A smaller MODEL with the same "
        "tokenizer, or `none`. (default: the text so far, and a packed model's own coarse weights)",
        "MODEL|none",
    )
    draft_nodes: int | None = _option(None, "Guesses a sequence and pass; 0 for none. (default: as many as pay)", "K")
    reserve: int = 0
    """Bytes under the ceiling that are left to the caller."""
    max_resident: int | None = None
    """Most bytes of weights to keep in memory; None keeps what the ceiling allows."""
    shares: tuple[Share, ...] = ()
    """What each of several stages holds; without any, one holds the model."""

    def __post_init__(self) -> None:
        if self.memory is not None:
            parse_bytes(self.memory)
        check_kv_dtype(self.kv_dtype)
        nodes = self.draft_nodes
        if nodes is not None and not (type(nodes) is int and 0 <= nodes <= MOST_NODES):
            raise UsageError(f"draft_nodes={nodes!r} is out of range.", f"Give a whole number from 0 to {MOST_NODES}.")

    @property
    def ceiling(self) -> int | None:
        """Bytes that the process may take; None for what the machine has free."""
        return None if self.memory is None else parse_bytes(self.memory)

    @property
    def guesses(self) -> bool:
        """Whether to guess tokens, for passes to check several at once."""
        return self.draft != "none" and self.draft_nodes != 0

    @property
    def draft_model(self) -> str | None:
        """A smaller model that guesses too."""
        return self.draft if self.guesses else None


def command_options() -> Mapping[str, tuple[Any, str, str | None]]:
    """The options that commands have: by name the default, what it does, and a word for its value."""
    return {
        option.name: (option.default, option.metadata["help"], option.metadata["metavar"])
        for option in fields(OpenOptions)
        if option.metadata and option.default is not MISSING
    }
