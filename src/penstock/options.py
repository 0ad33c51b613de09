"""How to open a model: every option declared, documented and checked once, for Python and for the command line."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from penstock.adapters.places import adapter_places
from penstock.errors import UsageError
from penstock.memory.text_room import BYTES_TO_TOKENIZE
from penstock.models.kv_dtypes import check_kv_dtype
from penstock.models.stage import Share
from penstock.speculate.speculator import MOST_FIXED_NODES
from penstock.stages.line import Fleet
from penstock.system.sizes import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping


PREFIX_CACHE_BYTES = 4 << 30
"""Of an 8B: 32,000 tokens."""


def _told(text: str, metavar: str | None = None, flag: str | None = None) -> dict[str, Any]:
    """What commands say of an option that they have too; `flag` is its name there, where that is another."""
    return {"help": text, "metavar": metavar, "flag": flag}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOptions:
    """How to open a model. Raises UsageError for values that cannot be meant."""

    memory: str | int | None = field(
        default=None,
        metadata=_told("Ceiling on the whole process, like 512MiB or 2GiB. (default: what the machine has free)"),
    )
    context: int | None = field(
        default=None,
        metadata=_told(
            "Most positions of a sequence. (default: as many as the model was trained for; with longrope, as in "
            "Phi-4-mini, its original context)"
        ),
    )
    """Positions that a sequence may have; None for as many as the model was trained for, or with longrope for those of
    its original context."""
    threads: int | None = field(default=None, metadata=_told("CPU threads. (default: every CPU)"))
    kv_dtype: str = field(default="bf16", metadata=_told("What keys and values are rounded to: bf16 or f32."))
    draft: str | None = field(
        default=None,
        metadata=_told(
            "What guesses tokens, for a pass to check many at once; it changes no token. A smaller MODEL with the "
            "same tokenizer, or `none`. (default: the text so far, and a packed model's own coarse weights)",
            "MODEL|none",
        ),
    )
    """None: the text so far and, of a packed model, its own coarse weights where memory has room for them. A smaller
    model guesses besides."""
    draft_nodes: int | None = field(
        default=None, metadata=_told("Guesses a sequence and pass; 0 for none. (default: as many as pay)", "K")
    )
    """None: as many as pay, by what passes and guesses are seen to take."""
    adapters: tuple[str, ...] = field(
        default=(),
        metadata=_told(
            "A LoRA adapter as PEFT saves it, to answer with. `batch` and `serve` take several, and requests name "
            "theirs as their model: by its directory's name, or NAME.",
            "[NAME=]DIR",
            "--adapter",
        ),
    )
    """What sequences may go through, each by the name that they choose it by."""
    prefix_cache: str | None = field(
        default=None,
        metadata=_told(
            "A folder that keeps the keys and values of prompts, for every later run with this model: what a prompt "
            "begins with as an earlier one did is not computed again. They reveal the prompts. (default: none)",
            "DIR",
        ),
    )
    """None keeps nothing beyond the process."""
    prefix_cache_size: str | int | None = field(
        default=None, metadata=_told("Most bytes of --prefix-cache, like 10GiB. (default: 4GiB)")
    )
    """What was not used for longest goes first. None: PREFIX_CACHE_BYTES."""
    cluster: str | None = field(
        default=None,
        metadata=_told(
            "Share the model's layers out among the machines of a cluster (`penstock cluster`): its ADDRESS, or `auto` "
            "for the one that this machine is in. (default: this machine alone)",
            "ADDRESS|auto",
        ),
    )
    """None keeps to this machine."""
    cut: str | None = field(
        default=None,
        metadata=_told(
            "Which layers go to which machine of --cluster: `runs`, `dealt`, or ranges like 0-9,10-20,21-31, this "
            "machine's first. (default: as is quickest)",
            "CUT",
        ),
    )
    """None: as is quickest by what each machine has and can do."""
    fleet: Fleet | None = None
    """The other machines, in place of `cluster`."""
    reserve: int = 0
    """Bytes under the ceiling that are left to the caller."""
    longest_text: int | None = None
    """Bytes (UTF-8) of the longest text for which room is kept while it becomes tokens, so that `LLM.check` may be
    called at any time; None makes room when a text comes."""
    max_resident: int | None = None
    """Most bytes of weights to keep in memory; None keeps what the ceiling allows."""
    shares: tuple[Share, ...] = ()
    """What each of several stages holds; without any, one holds the model."""

    def __post_init__(self) -> None:
        if self.memory is not None:
            parse_bytes(self.memory)
        check_kv_dtype(self.kv_dtype)
        adapter_places(self.adapters)
        if self.prefix_cache == "":
            raise UsageError("The prefix cache's folder has no name.", "Give one, or leave --prefix-cache out.")
        if self.prefix_cache_size is not None and self.prefix_cache is None:
            raise UsageError("A size of the prefix cache needs one.", "Give its folder too: --prefix-cache DIR.")
        if self.cut is not None and self.cluster is None and self.fleet is None:
            raise UsageError("There is nothing to cut a model for.", "Give --cluster too, or leave --cut out.")
        if self.most_prefix_bytes <= 0:
            raise UsageError(f"{self.prefix_cache_size!r} is no size of a prefix cache.", "Give one like 4GiB.")
        nodes = self.draft_nodes
        if nodes is not None and not (type(nodes) is int and 0 <= nodes <= MOST_FIXED_NODES):
            raise UsageError(
                f"draft_nodes={nodes!r} is out of range.", f"Give a whole number from 0 to {MOST_FIXED_NODES}."
            )

    @property
    def ceiling(self) -> int | None:
        """Bytes that the process may take; None for what the machine has free."""
        return None if self.memory is None else parse_bytes(self.memory)

    @property
    def most_prefix_bytes(self) -> int:
        """What the prefix cache may take on the disk."""
        return PREFIX_CACHE_BYTES if self.prefix_cache_size is None else parse_bytes(self.prefix_cache_size)

    @property
    def sole_adapter(self) -> str | None:
        """The name of the one adapter, where there is one. Raises UsageError for several."""
        names = list(adapter_places(self.adapters))
        if len(names) > 1:
            raise UsageError("Only one adapter can be used here.", "Leave one --adapter; batch and serve take several.")
        return names[0] if names else None

    @property
    def all_reserved(self) -> int:
        """`reserve`, and what the longest text takes."""
        return self.reserve + BYTES_TO_TOKENIZE * (self.longest_text or 0)

    @property
    def guesses(self) -> bool:
        """Whether to guess tokens, for passes to check several at once."""
        return self.draft != "none" and self.draft_nodes != 0

    @property
    def draft_model(self) -> str | None:
        """A smaller model that guesses too."""
        return self.draft if self.guesses else None


def command_options() -> Mapping[str, tuple[Any, Mapping[str, Any]]]:
    """The options that commands have: by name the default, and what it does (`help`), a word for its value (`metavar`)
    and what it is called there (`flag`)."""
    return {option.name: (option.default, option.metadata) for option in fields(OpenOptions) if option.metadata}
