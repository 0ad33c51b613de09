"""Tokens a pass on questions of four kinds, for trained models.

    python bench/guesses.py MODEL [--draft D] [--nodes 16,64,256|auto] [--tokens 96] [--temperature 0] [--json FILE]

Each question is put as the model's chat template has it, and answered greedily, or at a temperature with the seed 1,
as far as `--tokens` and without stopping at an end. Tokens a pass are those of all passes after the prompts' over the
number of these passes. `auto` leaves the number of guesses to the engine. With `--check`, every answer is compared with
that of a run without guesses. Seconds are those of all answers, their prompts included. Last comes, of the
model's own drafter, how often the first guess was right, the second, ... after a root, after a node behind it, ..., as
`penstock bench --speculate --simulate` takes it. With --json, all that and what the answers were is written too.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from prompts import PROMPTS, prompt_of

from penstock import LLM, SamplingParams
from penstock.benchmarks.seconds import say_chances
from penstock.completion import Output
from penstock.speculate.asking import Asking
from penstock.speculate.drafter import MOST_GUESSES, Drafter, Guess
from penstock.speculate.speculator import Record
from penstock.speculate.tree import Tree

LEAST_CASES = 100
"""Of a depth, for shares of its own."""


class Remembering(Asking):
    """Keeps what a drafter guessed, by the context's length and the path after it."""

    def __init__(self, drafter: Drafter) -> None:
        super().__init__(drafter)
        self.guesses: dict[tuple[int, tuple[int, ...]], list[int]] = {}

    def expand(self, nodes: Sequence[tuple[Tree, int]]) -> list[list[Guess]]:
        said = super().expand(nodes)
        for (tree, node), guesses in zip(nodes, said, strict=True):
            self.guesses[len(tree.context), tuple(tree.path(node))] = [guess.token for guess in guesses]
        return said

    def ranks(self, text: Sequence[int]) -> Counter[tuple[int, int]]:
        """By depth of the node and rank of the guess that was right, MOST_GUESSES where none was; then forgets."""
        found: Counter[tuple[int, int]] = Counter()
        for (begin, path), tokens in self.guesses.items():
            end = begin + len(path)
            if end < len(text) and tuple(text[begin:end]) == path:
                found[len(path), tokens.index(text[end]) if text[end] in tokens else MOST_GUESSES] += 1
        self.guesses.clear()
        return found


def chances(ranks: Counter[tuple[int, int]]) -> list[list[float]]:
    """Depth by depth, as far as there are enough cases of each; the rest together."""
    of_depth = [Counter[int]()]
    for (depth, rank), count in sorted(ranks.items()):
        if depth >= len(of_depth) and of_depth[-1].total() >= LEAST_CASES:
            of_depth.append(Counter())
        of_depth[-1][rank] += count
    if len(of_depth) > 1 and of_depth[-1].total() < LEAST_CASES:
        last = of_depth.pop()
        of_depth[-1].update(last)
    shares = [[round(c[rank] / max(1, c.total()), 3) for rank in range(MOST_GUESSES)] for c in of_depth]
    return [[share for share in each if share] for each in shares]


def seconds(outputs: dict[str, list[Output]]) -> float:
    return sum(output.stats.seconds for output in chain.from_iterable(outputs.values()))


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


def answers(
    model: str, nodes: int | None, args: argparse.Namespace
) -> tuple[dict[str, list[Output]], Counter[tuple[int, int]]]:
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
    draft = "none" if nodes == 0 else args.draft
    out: dict[str, list[Output]] = {}
    ranks: Counter[tuple[int, int]] = Counter()
    with LLM.open(model, draft=draft, draft_nodes=nodes, memory=args.memory, threads=args.threads) as llm:
        drafters = llm.engine.speculator.drafters
        own = next((Remembering(drafter) for drafter in drafters if not drafter.free), None)
        if own is not None:
            llm.engine.speculator.drafters = [own if own.name == drafter.name else drafter for drafter in drafters]
        for kind, questions in PROMPTS.items():
            for question in questions[: args.prompts]:
                prompt = prompt_of(llm, question)
                (answer,) = llm.generate([prompt], params)
                out.setdefault(kind, []).append(answer)
                if own is not None:
                    ranks += own.ranks([*prompt, *answer.token_ids])
    return out, ranks


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
    plain = answers(args.model, 0, args)[0] if args.check else None
    results = {}
    for nodes in args.nodes.split(","):
        outputs, ranks = answers(args.model, None if nodes == "auto" else int(nodes), args)
        if plain is not None:
            check(plain, outputs)
            print(f"without guesses {seconds(plain):.1f} s; the same answers", flush=True)
        results[nodes] = found = result(outputs) | {"chances": chances(ranks)}
        told = ", ".join(f"{kind} {tokens:.2f}" for kind, tokens in found["kinds"].items())
        shares = f"{found['tokens_a_pass']:.2f} tokens a pass ({told}); {found['guesses_a_pass']:.1f} checked"
        print(f"{nodes} guesses: {shares}; {seconds(outputs):.1f} s", flush=True)
        if ranks:
            print("right by depth and rank:", say_chances(found["chances"]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
