"""What several reports tell of an open model: its weights, and the process that runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.errors import UsageError
from penstock.forecast.sizes import holds_packed
from penstock.system import machine

if TYPE_CHECKING:
    from penstock.llm import LLM


def weight_figures(llm: LLM, compute_seconds: float | None) -> dict[str, Any]:
    """Bytes of the weights that a pass needs, as BF16, as stored, and in memory. Where they are packed, also their size
    relative to BF16, and the bytes of BF16 that a pass decodes and applies in a second, if one of a single row computed
    for `compute_seconds`."""
    stored, in_bf16 = llm.weights.pass_bytes, 2 * llm.architecture.pass_weights
    packed = holds_packed(llm.weights.tensors.values())
    return {
        "weight_bytes": in_bf16,
        "stored_bytes": stored,
        "packed_ratio": stored / in_bf16 if packed else None,
        "decoded_bytes_per_second": in_bf16 / compute_seconds if packed and compute_seconds else None,
        "resident_bytes": llm.weights.resident_bytes,
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
