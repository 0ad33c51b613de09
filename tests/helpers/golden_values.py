"""Values that must never change: bits of logits and greedy tokens, written once and compared on every machine.

`python tests/golden_values.py` writes them anew, for a change that is meant to move bits (and says why in docs/log.md).
The tiny checkpoint is kept with them, so that they do not depend on a library's random numbers.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from helpers.cases import DEMO, demo_tokens, random_tokens
from helpers.checkpoints import tiny_config, write_checkpoint
from penstock import LLM, SamplingParams
from penstock.compute.kernels import F32

FOLDER = Path(__file__).parents[1] / "golden"
VALUES = FOLDER / "values.json"
MODELS = {"tiny": FOLDER / "tiny", "demo": DEMO}


def read() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(VALUES.read_text())
    return values


def measure(path: Path, kv: str, tokens: list[int]) -> dict[str, Any]:
    """What a model makes of some tokens: the logits' digest, a few of them to look at, and the greedy continuation."""
    with LLM.open(path, kv_dtype=kv) as llm:
        logits = llm.logits(tokens)
        [output] = llm.generate([tokens], SamplingParams(temperature=0, max_tokens=24, ignore_eos=True))
    return {"sha256": digest(logits), "last": [float(x).hex() for x in logits[-1, :4]], "greedy": output.token_ids}


def digest(logits: F32) -> str:
    return hashlib.sha256(np.ascontiguousarray(logits, "<f4").tobytes()).hexdigest()


def write() -> None:
    if not MODELS["tiny"].exists():
        write_checkpoint(MODELS["tiny"], tiny_config(num_attention_heads=8, num_key_value_heads=2, vocab_size=131))
    values: dict[str, Any] = {}
    for name, tokens in {"tiny": random_tokens(48, 131), "demo": demo_tokens(48)}.items():
        values[name] = {"tokens": tokens} | {kv: measure(MODELS[name], kv, tokens) for kv in ("bf16", "f32")}
    VALUES.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    write()
