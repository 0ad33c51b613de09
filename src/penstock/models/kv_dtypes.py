"""The types that keys and values may be kept in."""

from __future__ import annotations

from penstock.errors import UsageError

KV_ITEM_BYTES = {"bf16": 2, "f32": 4}


def check_kv_dtype(dtype: str) -> None:
    """Raise UsageError for a type that keys and values are not kept in."""
    if dtype not in KV_ITEM_BYTES:
        raise UsageError(f"kv_dtype={dtype!r} is not known.", f"Use one of: {', '.join(KV_ITEM_BYTES)}.")
