"""Penstock's side of the comparison, in a process without torch: `python penstock_answers.py JOB.json`.

The job is {"path", "text", "prompts", "tokens", "out"}. Written to `out`: `losses`, of each of the tokens `text` but
the first, in nats; `answers`, so many tokens drawn greedily after each of `prompts`; `logits`, those of the first
prompt's tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from penstock import LLM, SamplingParams
from penstock.compute.kernels import F64

CHUNK = 500


def losses(llm: LLM, tokens: list[int]) -> F64:
    """Of tokens[1:], chunk by chunk: the logits of all would take gigabytes."""
    cache, out = llm.new_cache(), []
    for begin in range(0, len(tokens) - 1, CHUNK):
        end = min(begin + CHUNK, len(tokens) - 1)
        logits = llm.model.forward(tokens[begin:end], begin, cache).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        wanted = logits[np.arange(end - begin), tokens[begin + 1 : end + 1]]
        out.append(np.log(np.exp(logits).sum(axis=1)) - wanted)
    return np.concatenate(out)


def run(job: dict[str, Any]) -> dict[str, Any]:
    with LLM.open(job["path"], threads=2, kv_dtype="f32") as llm:
        params = SamplingParams(temperature=0, repetition_penalty=1.0, max_tokens=job["tokens"], ignore_eos=True)
        answers = [output.token_ids for output in llm.generate(job["prompts"], params)]
        return {
            "losses": losses(llm, job["text"]),
            "answers": np.array(answers),
            "logits": llm.logits(job["prompts"][0]),
        }


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    np.savez(given["out"], **run(given))
    loaded = {"torch", "transformers"} & sys.modules.keys()
    if loaded:
        raise SystemExit(f"{loaded} must stay out of this process")
