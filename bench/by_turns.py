"""Answers with and without guesses by turns, in one process: what guesses gain or cost where all is in memory.

    python bench/by_turns.py MODEL [--random] [--prompts 2] [--tokens 96] [--rounds 1] [--threads N] [--json FILE]

Each question of prompts.py is put as the model's chat template has it, and answered greedily twice: plainly, and with
as many guesses as the engine chooses; which comes first changes from question to question. With --random, each token is
drawn by lot instead, so that no guess is right. Seconds are those of the passes after the prompt's. The first answer
with guesses tells what a process's first draft costs, too, so its ratio is told by itself as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from prompts import PROMPTS, prompt_of

from penstock.benchmarks.seconds import decode_random_text
from penstock.benchmarks.timed_decoding import Decoding, decode, guessing, require_equal
from penstock.llm import LLM
from penstock.sampling import SamplingParams


@dataclass(frozen=True)
class Turn:
    """Seconds of an answer, plainly and with guesses, and the tokens that a pass with guesses brought."""

    question: str
    plain: float
    guessed: float
    tokens_a_pass: float

    @property
    def ratio(self) -> float:
        return self.guessed / self.plain


def take(llm: LLM, question: str, answer: Callable[[list[int]], Decoding], *, plain_first: bool) -> Turn:
    """Raises PenstockError where guesses changed a token."""
    prompt = prompt_of(llm, question)
    runs: dict[bool, Decoding] = {}
    for plain in (plain_first, not plain_first):
        with guessing(llm) if plain else nullcontext():
            runs[plain] = answer(prompt)
    require_equal(runs[True].token_ids, runs[False].token_ids, question)
    a_token = {plain: run.seconds / run.tokens for plain, run in runs.items()}
    tokens = runs[True].tokens
    return Turn(question, a_token[True] * tokens, a_token[False] * tokens, runs[False].tokens / len(runs[False].passes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--prompts", type=int, default=2, help="of each kind")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    params = SamplingParams(temperature=0, repetition_penalty=1.0, max_tokens=args.tokens + 16, ignore_eos=True)
    questions = [question for several in zip(*PROMPTS.values(), strict=True) for question in several]
    turns: list[Turn] = []
    with LLM.open(args.model, threads=args.threads) as llm:

        def answer(prompt: list[int]) -> Decoding:
            if args.random:
                return decode_random_text(llm, prompt, args.tokens)
            return decode(llm, prompt, params, args.tokens)

        with guessing(llm):  # weights come into memory, and into the form that they are kept in
            for _ in range(2):
                decode(llm, llm.encode("Hello"), params, 4)
        for index, question in enumerate(questions[: 4 * args.prompts] * args.rounds):
            turns.append(take(llm, question, answer, plain_first=index % 2 == 0))
            print(f"{turns[-1].ratio:.3f} {turns[-1].tokens_a_pass:.2f} tokens a pass: {question[:60]}", flush=True)
    plain, guessed = sum(turn.plain for turn in turns), sum(turn.guessed for turn in turns)
    median = statistics.median(turn.ratio for turn in turns)
    print(
        f"first {turns[0].ratio:.3f}, median {median:.3f}; all {guessed / plain:.3f} ({guessed:.1f} and {plain:.1f} s)"
    )
    if args.json:
        args.json.write_text(json.dumps([asdict(turn) | {"ratio": turn.ratio} for turn in turns]))


if __name__ == "__main__":
    main()
