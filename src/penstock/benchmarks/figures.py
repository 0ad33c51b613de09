"""What several reports tell of an open model: its weights, and the process that runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.errors import UsageError
from penstock.system import machine
from penstock.weights.sizes import holds_packed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.llm import LLM
    from penstock.models.pass_stats import PassTotals


def weight_figures(llm: LLM, compute_seconds: float | None) -> dict[str, Any]:
    """Bytes of the weights that a pass needs, as BF16, as stored, and in memory. Where they are packed, also their size
    relative to BF16, and the bytes of BF16 that a pass decodes and applies in a second, if one of a single row computed
    for `compute_seconds`."""
    stored, in_bf16 = llm.weights.pass_bytes, 2 * llm.architecture.pass_weights
    met = 2 * llm.architecture.weights_per_row
    packed = holds_packed(llm.weights.tensors.values())
    return {
        "weight_bytes": in_bf16,
        "stored_bytes": stored,
        "packed_ratio": stored / in_bf16 if packed else None,
        "decoded_bytes_per_second": met / compute_seconds if packed and compute_seconds else None,
        "resident_bytes": llm.weights.resident_bytes,
    }


def experts_figures(passes: Sequence[PassTotals]) -> dict[str, Any]:
    """How many experts the rows of a pass needed in all layers, and how many of them were read, in the mean; None where
    there are none."""
    needed, read = (sum(getattr(totals, name) for totals in passes) for name in ("experts", "experts_read"))
    if not needed:
        return dict.fromkeys(("experts_per_pass", "experts_read_per_pass", "expert_hit_rate"))
    return {
        "experts_per_pass": needed / len(passes),
        "experts_read_per_pass": read / len(passes),
        "expert_hit_rate": 1 - read / needed,
    }


def process_figures(llm: LLM) -> dict[str, Any]:
    """The memory of the process at its peak, its ceiling, and what it computes with."""
    return {
        "peak_rss_bytes": machine.peak_process_bytes(),
        "memory_ceiling_bytes": llm.memory.budget.ceiling,
        "threads": llm.kernels.threads,
        "isa": llm.kernels.isa,
    }


def check_counts(settings: object, *names: str) -> None:
    """Raise UsageError where one of these settings is below 1; they are named like the options of the command."""
    for name in names:
        if getattr(settings, name) < 1:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} {getattr(settings, name)}: at least 1 is needed.", f"Raise {option}.")
