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


def run(job: dict[str, Any]) -> dict[str, Any]:
    with LLM.open(job["path"], threads=2, kv_dtype="f32") as llm:
        params = SamplingParams(temperature=0, repetition_penalty=1.0, max_tokens=job["tokens"], ignore_eos=True)
        answers = [output.token_ids for output in llm.generate(job["prompts"], params)]
        return {
            "losses": -llm.score([job["text"]])[0].logprobs,
            "answers": np.array(answers),
            "logits": llm.logits(job["prompts"][0]),
        }


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    np.savez(given["out"], **run(given))
    loaded = {"torch", "transformers"} & sys.modules.keys()
    if loaded:
        raise SystemExit(f"{loaded} must stay out of this process")
