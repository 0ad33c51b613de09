"""How the models, or the adapters, of two sessions differ (weights/identity.py says which model it is)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def identity_fields(said: object) -> tuple[str, ...]:
    """What an identity has: an adapter only where keys and values came through one."""
    return ("config", "weights", *(["adapter"] if isinstance(said, dict) and "adapter" in said else []))


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """How the model of one identity differs from that of another, in words; None where it is the same."""
    if there["config"] != here["config"]:
        pairs = {
            key: (there["config"].get(key), here["config"].get(key)) for key in {**here["config"], **there["config"]}
        }
        return ", ".join(f"its {key} is {a}, not {b}" for key, (a, b) in pairs.items() if a != b)
    return None if there["weights"] == here["weights"] else "the shape is the same, the weights are others"


def adapter_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """How the adapters of two identities of one model differ, in words; None where they do not."""
    if "adapter" not in there:
        return "without an adapter" if "adapter" in here else None
    if "adapter" not in here:
        return "with an adapter"
    return None if there["adapter"] == here["adapter"] else "with another adapter"
