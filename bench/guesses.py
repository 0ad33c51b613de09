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
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from prompts import PROMPTS

from penstock import LLM, SamplingParams
from penstock.completion import Output


@dataclass
class Tally:
    """Over some answers."""

    passes: int = 0
    accepted: int = 0
    nodes: int = 0
    reached: Counter[int] = field(default_factory=Counter)
    right: Counter[int] = field(default_factory=Counter)

    def take(self, output: Output) -> None:
        guesses = output.stats.guesses
        self.passes += guesses.walks
        self.accepted += guesses.accepted
        self.nodes += guesses.nodes
        self.reached += guesses.reached
        self.right += guesses.right

    @property
    def tokens_a_pass(self) -> float:
        return 1 + self.accepted / max(1, self.passes)


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
            for kind, those in plain.items():
                same = [a.token_ids == b.token_ids for a, b in zip(those, outputs[kind], strict=True)]
                if not all(same):
                    raise SystemExit(f"{kind}: {same.count(False)} answers differ from those without guesses")
        every, kinds = Tally(), {}
        for kind, those in outputs.items():
            kinds[kind] = Tally()
            for output in those:
                kinds[kind].take(output)
                every.take(output)
        told = ", ".join(f"{kind} {tally.tokens_a_pass:.2f}" for kind, tally in kinds.items())
        share = every.nodes / max(1, every.passes)
        print(f"{nodes} guesses: {every.tokens_a_pass:.2f} tokens a pass ({told}); {share:.1f} checked", flush=True)
        results[nodes] = {
            "tokens_a_pass": every.tokens_a_pass,
            "kinds": {kind: tally.tokens_a_pass for kind, tally in kinds.items()},
            "passes": every.passes,
            "reached": every.reached,
            "right": every.right,
            "answers": {kind: [list(output.token_ids) for output in those] for kind, those in outputs.items()},
        }
    if args.json:
        args.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
