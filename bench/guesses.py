"""Tokens a pass on questions of four kinds, for trained models.

    python bench/guesses.py MODEL [--draft D] [--nodes 16,64,256] [--tokens 96] [--temperature 0] [--json FILE]

Each question is put as the model's chat template has it, and answered greedily, or at a temperature with the seed 1,
as far as `--tokens` and without stopping at an end. Tokens a pass are those of all passes after the prompts' over the
number of these passes. With `--check`, every answer is compared with that of a run without guesses. With --json, what
was right by depth and what the answers were is written too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from prompts import PROMPTS

from penstock import LLM, SamplingParams
from penstock.completion import Output
from penstock.speculate.speculator import Record


def total(outputs: Iterable[Output]) -> Record:
    """What became of the guesses of all of them."""
    whole = Record()
    for guesses in (output.stats.guesses for output in outputs):
        whole.walks += guesses.walks
        whole.accepted += guesses.accepted
        whole.nodes += guesses.nodes
        whole.reached += guesses.reached
        whole.right += guesses.right
    return whole


def tokens_a_pass(record: Record) -> float:
    return 1 + record.accepted / max(1, record.walks)


def answers(model: str, nodes: int, args: argparse.Namespace) -> dict[str, list[Output]]:
    params = SamplingParams(
        temperature=args.temperature,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        seed=1,
        max_tokens=args.tokens,
        ignore_eos=True,
    )
    draft = args.draft if nodes else None
    out: dict[str, list[Output]] = {}
    with LLM.open(model, draft=draft, draft_nodes=nodes, memory=args.memory, threads=args.threads) as llm:
        for kind, questions in PROMPTS.items():
            for question in questions[: args.prompts]:
                messages = [{"role": "user", "content": question}]
                prompt = llm.chat_prompt(messages) if llm.has_chat_template else llm.encode(question)
                out.setdefault(kind, []).extend(llm.generate([prompt], params))
    return out


def check(plain: dict[str, list[Output]], outputs: dict[str, list[Output]]) -> None:
    """End the program where guesses changed an answer."""
    for kind, those in plain.items():
        same = [a.token_ids == b.token_ids for a, b in zip(those, outputs[kind], strict=True)]
        if not all(same):
            raise SystemExit(f"{kind}: {same.count(False)} answers differ from those without guesses")


def result(outputs: dict[str, list[Output]]) -> dict[str, Any]:
    every = total(chain.from_iterable(outputs.values()))
    return {
        "tokens_a_pass": tokens_a_pass(every),
        "kinds": {kind: tokens_a_pass(total(those)) for kind, those in outputs.items()},
        "passes": every.walks,
        "guesses_a_pass": every.nodes / max(1, every.walks),
        "reached": every.reached,
        "right": every.right,
        "answers": {kind: [list(output.token_ids) for output in those] for kind, those in outputs.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--draft")
    parser.add_argument("--nodes", default="64")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--prompts", type=int, default=6, help="of each kind")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--memory")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    plain = answers(args.model, 0, args) if args.check else None
    results = {}
    for nodes in map(int, args.nodes.split(",")):
        outputs = answers(args.model, nodes, args)
        if plain is not None:
            check(plain, outputs)
        results[nodes] = found = result(outputs)
        told = ", ".join(f"{kind} {tokens:.2f}" for kind, tokens in found["kinds"].items())
        shares = f"{found['tokens_a_pass']:.2f} tokens a pass ({told}); {found['guesses_a_pass']:.1f} checked"
        print(f"{nodes} guesses: {shares}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
