"""JSON of 200 schemas by a trained model: whether it is valid, whether guesses change it, what masks cost.

    python bench/structured.py MODEL [--schemas 200] [--tokens 300] [--memory M] [--json FILE]

Every schema (`bench/schemas.py`) is answered without guesses and with them, greedily and drawn with a seed at a
temperature of 0.8. Answers share passes. One that ended by itself has to be JSON that the package `jsonschema` finds
valid; those that `--tokens` cut are counted. Time a token is what all calls of matchers took (masks, tokens taken,
guesses looked at), over the tokens of all answers. The exit code is 1 where anything was wrong.

With --masks the model is not run: tokens are drawn at random from those that may follow, and only matchers are timed.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.validators import validator_for
from prompts import prompt_of
from schemas import Schema, all_schemas

from penstock import LLM, SamplingParams
from penstock.checkpoints.checkpoint import generation_defaults
from penstock.completion import Output
from penstock.grammars.compiler import GrammarCompiler
from penstock.grammars.grammar import Grammar
from penstock.grammars.matcher import Matcher
from penstock.text.tokenizer import Tokenizer

TIMED = ("mask", "take", "forced", "allows", "ended")
ROUNDS = {"greedy": 0.0, "drawn": 0.8}
TOGETHER = 16
"""Answers that share passes."""


@dataclass
class Clock:
    """Seconds in methods that it times, those that they call included once."""

    seconds: float = 0.0
    calls: dict[str, int] = field(default_factory=dict)
    _inside: bool = False

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            if self._inside:
                return function(*arguments)
            self._inside, begin = True, time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - begin
                self._inside = False

        return run

    def timed_context(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Of a function that makes a context: its beginning and its end."""

        @contextmanager
        def run(*arguments: Any) -> Iterator[None]:
            context = function(*arguments)
            self.timed(name, context.__enter__)()
            try:
                yield
            finally:
                self.timed(f"{name}, end", context.__exit__)(None, None, None)

        return run


@contextmanager
def timing() -> Iterator[Clock]:
    """Of all matchers."""
    clock, plain = Clock(), {name: Matcher.__dict__[name] for name in (*TIMED, "after")}
    for name in TIMED:
        member = plain[name]
        get = member.fget if isinstance(member, property) else member
        timed = clock.timed(name, get)
        setattr(Matcher, name, property(timed) if isinstance(member, property) else timed)
    Matcher.after = clock.timed_context("after", plain["after"])
    try:
        yield clock
    finally:
        for name, member in plain.items():
            setattr(Matcher, name, member)


def why_invalid(schema: Schema, text: str) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    try:
        value = json.loads(text, parse_float=Decimal)  # as floats, 0.3 is no multiple of 0.1
    except ValueError as error:
        return f"no JSON: {error}"
    schema = json.loads(json.dumps(schema), parse_float=Decimal)
    kind = validator_for(schema, Draft202012Validator)
    formats = FormatChecker()
    formats.checkers = {**kind.FORMAT_CHECKER.checkers, "date": (_is_date, ValueError)}
    errors = kind(schema, format_checker=formats).iter_errors(value)
    return next((error.message for error in errors), None)


def _is_date(value: object) -> bool:
    """As RFC 3339 has it: with a year 0, which is a leap year, and which Python's dates begin behind."""
    if isinstance(value, str):
        date.fromisoformat(f"0004{value[4:]}" if value.startswith("0000") else value)
    return True


def question(name: str) -> str:
    return f"Give an example of this as JSON on one line: {name}."


def answers(llm: LLM, schemas: Mapping[str, Schema], temperature: float, tokens: int) -> dict[str, Output | str]:
    """By schema; the message of the error where one ended with one."""
    found: dict[str, Output | str] = {}
    names = [*schemas]
    for begin in range(0, len(names), TOGETHER):
        group = {
            name: _submit(llm, name, schemas[name], temperature, tokens) for name in names[begin : begin + TOGETHER]
        }
        while any(completion.runs for completion in group.values()):
            llm.step()
        for name, completion in group.items():
            found[name] = str(completion.error) if completion.error is not None else completion.output()
    return found


def _submit(llm: LLM, name: str, schema: Schema, temperature: float, tokens: int) -> Any:
    prompt = prompt_of(llm, question(name))
    params = SamplingParams(
        temperature=temperature, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=1, max_tokens=tokens,
        schema=schema,
    )  # fmt: skip
    return llm.submit(prompt, params)


@dataclass
class Found:
    """Of one way to draw."""

    ended: int = 0
    cut: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def compare(schemas: Mapping[str, Schema], plain: dict[str, Output | str], guessed: dict[str, Output | str]) -> Found:
    """What became of the answers without guesses and with them."""
    found = Found()
    for name, schema in schemas.items():
        one, other = plain[name], guessed[name]
        if isinstance(one, str) or isinstance(other, str):
            found.wrong += [f"{name}: {error}" for error in (one, other) if isinstance(error, str)]
            continue
        if (one.token_ids, one.finish_reason) != (other.token_ids, other.finish_reason):
            found.wrong.append(f"{name}: guesses change {one.text!r} to {other.text!r}")
        if one.finish_reason == "length":
            found.cut.append(name)
            continue
        found.ended += 1
        if why := why_invalid(schema, one.text):
            found.wrong.append(f"{name}: {one.text!r}: {why}")
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is told of a model."""
    schemas, told, of_round = all_schemas(args.schemas), {}, {}
    for draft in ("none", None):
        with LLM.open(args.model, draft=draft, memory=args.memory, threads=args.threads) as llm:
            llm.generate([llm.encode("a")], SamplingParams(regex="a"))  # the vocabulary is taken in
            for kind, temperature in ROUNDS.items():
                with timing() as clock:
                    of_round[kind, draft] = found = answers(llm, schemas, temperature, args.tokens)
                outputs = [output for output in found.values() if isinstance(output, Output)]
                tokens, passes = (sum(len(o.token_ids) for o in outputs), sum(o.stats.passes for o in outputs))
                told[f"{kind}, {'without' if draft else 'with'} guesses"] = {
                    "tokens": tokens, "passes": passes, "ms_a_token": 1000 * clock.seconds / tokens,
                }  # fmt: skip
    for kind in ROUNDS:
        told[kind] = vars(compare(schemas, of_round[kind, "none"], of_round[kind, None]))
    return told


def walk(model: Path, schemas: Mapping[str, Schema], tokens: int) -> dict[str, float]:
    """What matchers cost along random texts of the schemas."""
    tokenizer = Tokenizer.open(model)
    assert tokenizer is not None
    end = generation_defaults(model).eos_token_ids
    compiler, draws, drawn = GrammarCompiler(tokenizer.to_json, tokenizer.vocab_size, end), random.Random(1), 0
    begin = time.perf_counter()
    matchers = [compiler.matcher(Grammar("schema", json.dumps(schema))) for schema in schemas.values()]
    compiled = time.perf_counter() - begin
    with timing() as clock:
        for matcher in matchers:
            left = tokens
            while left > 0 and not matcher.ended:
                forced = matcher.forced()
                taken = forced or [draws.choice(np.flatnonzero(matcher.mask()).tolist())]
                if taken[0] in end:
                    break
                for token in taken:
                    matcher.take(token)
                left, drawn = left - len(taken), drawn + len(taken)
    return {
        "vocabulary": tokenizer.vocab_size,
        "tokens": drawn,
        "masks": clock.calls["mask"],
        "ms_a_token": 1000 * clock.seconds / drawn,
        "ms_a_schema": 1000 * compiled / len(matchers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--memory")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--masks", action="store_true")
    args = parser.parse_args()
    if args.masks:
        print(json.dumps(walk(Path(args.model), all_schemas(args.schemas), args.tokens)))
        return
    told = measure(args)
    for kind, found in told.items():
        print(f"{kind}: {json.dumps(found, ensure_ascii=False)}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(told))
    if any(told[kind]["wrong"] for kind in ROUNDS):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
