"""What a block of keys and values is called: by all that its bits depend on.

The keys of a sequence are a chain: each is SHA-256 of the one before and of the block's tokens, so it names the tokens
up to the block's end, and sequences that begin alike have their first keys in common. A hash that withstands collisions
is needed: whoever could make two prompts of one key would get, or give, answers to another prompt.
"""

from __future__ import annotations

import json
from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.models.kv_cache import BLOCK_SLOTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BITS = 1
"""To be raised where the same tokens come to give other bits, in one version of Penstock."""


def root_key(model: bytes, kv: Mapping[str, Any], adapter: str | None = None) -> bytes:
    """What all chains of a model begin with, 32 bytes.

    `model`: tells its weights and config; `kv`: shape and type of keys and values, for JSON; `adapter`: the digest of
    the one that they come through. Another version of Penstock has other keys, since it may compute other bits.
    """
    said = {"penstock": version("penstock"), "bits": BITS, "model": model.hex(), "kv": dict(kv), "adapter": adapter}
    return sha256(json.dumps(said, sort_keys=True).encode()).digest()


def block_keys(root: bytes, tokens: Sequence[int], count: int) -> list[bytes]:
    """The keys of the first `count` whole blocks of some tokens, 32 bytes each."""
    data = np.asarray(tokens[: count * BLOCK_SLOTS], "<u4").reshape(count, BLOCK_SLOTS)
    keys = [root]
    for block in data:
        keys.append(sha256(keys[-1] + block.tobytes()).digest())
    return keys[1:]
