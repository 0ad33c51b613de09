"""Sharing out a memory ceiling: what the process needs in any case, and what is left for resident weights.

Pure functions of numbers: (the model's shape, what the process takes, the ceiling) to a frozen plan.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.errors import MemoryCeilingError, UsageError

if TYPE_CHECKING:
    from penstock.config import ModelConfig

MIB = 1 << 20
UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": MIB, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
ALLOWANCE_BYTES = 32 * MIB
"""For what is not counted one by one: the Python heap as it grows, malloc's slack, thread stacks."""


def parse_bytes(text: str | int) -> int:
    """Bytes of a size like "512MiB", "2GiB", "3 GB" or a plain number. Raises UsageError."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", str(text))
    if match is None or match[2].lower() not in UNITS:
        raise UsageError(f"{text!r} is not a size.", "Write it like 512MiB or 2GiB.")
    return int(float(match[1]) * UNITS[match[2].lower()])


def format_bytes(count: int) -> str:
    """A size for people, rounded up to whole MiB."""
    return f"{-(-count // MIB)} MiB"


def activation_bytes(config: ModelConfig, rows: int, logit_rows: int) -> int:
    """Peak float32 bytes of one pass besides weights and KV: hidden rows, the widest part, logits, sampling."""
    heads = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    widest = max(heads, config.intermediate_size + min(config.intermediate_size, 1024))
    return 4 * (rows * (3 * config.hidden_size + widest + config.head_dim) + 6 * logit_rows * config.vocab_size)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a ceiling is shared out, in bytes."""

    ceiling: int
    process: int
    """The interpreter with its libraries, the tokenizer and the small tensors, as measured."""
    ring: int
    """Buffers of the reader and scratch of the kernels."""

    def resident(self, kv: int, activations: int) -> int:
        """Bytes left for resident weights beside `kv` and `activations`.

        Raises MemoryCeilingError, naming the least ceiling that works, if the rest alone is more than the ceiling.
        """
        least = self.process + self.ring + ALLOWANCE_BYTES + kv + activations
        if least > self.ceiling:
            raise MemoryCeilingError(
                f"A memory ceiling of {self.ceiling // MIB} MiB is too small for this model and prompt.",
                f"The least that works is {format_bytes(least)}: raise --memory, or shorten the prompt.",
            )
        return self.ceiling - least
