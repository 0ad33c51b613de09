"""Penstock's side of the comparison, in a process without torch: `python penstock_logits.py JOBS.json`.

A job is {"path", "kv", "tokens", "prompt", "first", "keep", "greedy", "context", "out"}. Written to `out`: `whole`,
the logits of the last `keep` tokens, at positions from `first` on, computed in one go; `steps`, the same with the
`prompt` first tokens at once and then one token at a time (where `first` is 0); `greedy`, as many tokens as asked for.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from penstock import LLM, SamplingParams
from penstock.compute.kernels import F32
from penstock.models.rows import Rows, SequenceRows


def run(job: dict[str, Any]) -> dict[str, Any]:
    tokens, keep = job["tokens"], job["keep"]
    with LLM.open(job["path"], kv_dtype=job["kv"], threads=2, context=job["context"] or None) as llm:
        if job["first"]:
            return {"whole": far_logits(llm, tokens, job["first"])[-keep:]}
        results: dict[str, Any] = {
            "whole": llm.logits(tokens)[-keep:],
            "steps": steps(llm, tokens, job["prompt"])[-keep:],
        }
        if job["greedy"]:
            params = SamplingParams(temperature=0, max_tokens=job["greedy"], ignore_eos=True)
            results["greedy"] = llm.generate([tokens], params)[0].token_ids
        return results


def steps(llm: LLM, tokens: list[int], prompt: int) -> F32:
    cache = llm.new_cache()
    parts = [llm.model.forward(tokens[:prompt], 0, cache)]
    parts += [llm.model.forward(tokens[at : at + 1], at, cache) for at in range(prompt, len(tokens))]
    return np.concatenate(parts)


def far_logits(llm: LLM, tokens: list[int], first: int) -> F32:
    """The only rows of a cache, but at positions from `first` on."""
    cache = llm.new_cache()
    rows = SequenceRows.plain(cache, tokens, range(len(tokens)))
    return llm.chain.run(Rows([replace(rows, positions=rows.positions + first)]))[0]


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text()):
        np.savez(job["out"], **run(job))
    loaded = {"torch", "transformers"} & sys.modules.keys()
    if loaded:
        raise SystemExit(f"{loaded} must stay out of this process")


if __name__ == "__main__":
    main()
