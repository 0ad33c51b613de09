"""Do guesses change an answer of a trained model? Random settings of guessing beside answers without guesses.

    python bench/unchanged.py PACKED [PACKED ...] [--draws 200] [--seed 1] [--tokens 24]

Each draw takes one of the models (one that is tuned, and one that is not, say), one to three questions of
`bench/prompts.py`, a temperature, filters, a number of guesses, a kind of keys and values, threads, weights that are
all in memory or stream, and log probabilities for half of the draws. Tokens, texts, reasons and log probabilities have
to be those of the same model without guesses. Ends with 1 at the first that are not.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

from prompts import PROMPTS

from penstock import LLM, SamplingParams
from penstock.completion import Output
from penstock.options import OpenOptions

QUESTIONS = [*chain.from_iterable(PROMPTS.values())]
FILTERS: list[dict[str, Any]] = [{}, {"repetition_penalty": 1.3}, {"top_k": 40, "top_p": 0.9}, {"min_p": 0.05}]
STREAMED_PART = 3
"""Of the weights, that stay in memory in some draws: a third."""


@dataclass(frozen=True)
class Draw:
    """What both runs have in common, and how one of them guesses."""

    model: str
    questions: tuple[str, ...]
    params: SamplingParams
    kv_dtype: str
    threads: int
    nodes: int | None
    streamed: bool


def draws(args: argparse.Namespace) -> list[Draw]:
    rng = random.Random(args.seed)
    return [_draw(rng, args) for _ in range(args.draws)]


def _draw(rng: random.Random, args: argparse.Namespace) -> Draw:
    params = SamplingParams(
        temperature=rng.choice([0.0, 0.7, 1.0]),
        seed=rng.randrange(1 << 30),
        max_tokens=args.tokens,
        logprobs=rng.choice([None, 3]),
        **({"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0} | rng.choice(FILTERS)),
    )
    return Draw(
        rng.choice(args.models),
        tuple(rng.sample(QUESTIONS, rng.choice([1, 1, 3]))),
        params,
        rng.choice(["bf16", "f32"]),
        rng.choice([1, 2]),
        rng.choice([1, 4, 16, 64, None]),
        rng.random() < 0.5,
    )


@cache
def pass_bytes(model: str) -> int:
    with LLM.open(model, draft="none") as llm:
        return llm.weights.pass_bytes


def answers(draw: Draw, *, guesses: bool) -> tuple[list[Output], int]:
    """And how many guesses were right."""
    options: dict[str, Any] = {"threads": draw.threads, "kv_dtype": draw.kv_dtype}
    options |= {"draft_nodes": draw.nodes} if guesses else {"draft": "none"}
    if guesses and draw.streamed:
        options["max_resident"] = pass_bytes(draw.model) // STREAMED_PART
    with LLM.open_with(draw.model, OpenOptions(**options)) as llm:
        prompts = [llm.chat_prompt([{"role": "user", "content": question}]) for question in draw.questions]
        outputs = llm.generate(prompts, draw.params)
    return outputs, sum(output.stats.guesses.accepted for output in outputs)


def told(output: Output) -> tuple[object, ...]:
    return output.token_ids, output.text, output.finish_reason, output.logprobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=24)
    args = parser.parse_args()
    tokens = right = 0
    for number, draw in enumerate(draws(args), 1):
        plain, _ = answers(draw, guesses=False)
        guessed, found = answers(draw, guesses=True)
        if [*map(told, plain)] != [*map(told, guessed)]:
            raise SystemExit(f"draw {number} differs: {draw}")
        tokens += sum(len(output.token_ids) for output in plain)
        right += found
        print(f"{number} of {args.draws} the same; {tokens} tokens, {right} of them guessed", flush=True)


if __name__ == "__main__":
    main()
