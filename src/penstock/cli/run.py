"""`penstock run`: complete a prompt, or chat on a terminal."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import options as opt
from penstock.cli.chat import chat
from penstock.cli.show import show
from penstock.cli.stats import print_layers, print_stats, stats_object
from penstock.errors import UsageError
from penstock.llm import LLM
from penstock.sampling import SamplingParams

if TYPE_CHECKING:
    from penstock.completion import Piece


def run(
    model: opt.Model,
    prompt: Annotated[str | None, typer.Argument(help="Text; `-` reads it from standard input.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Complete the text as it stands, without the template.")] = False,
    max_tokens: opt.MaxTokens = None,
    temperature: opt.Temperature = None,
    top_p: opt.TopP = None,
    top_k: opt.TopK = None,
    min_p: opt.MinP = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
    memory: opt.Memory = None,
    context: opt.Context = None,
    threads: opt.Threads = None,
    kv_dtype: opt.KvDtype = "bf16",
    stats: Annotated[bool, typer.Option("--stats", help="Show where the time went.")] = False,
    stats_layers: Annotated[bool, typer.Option("--stats-layers", help="Show it layer by layer.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Generate text; without a prompt on a terminal, chat."""
    params = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_tokens=max_tokens,
        stop=stop or (),
    )
    if prompt is None and sys.stdin.isatty() and raw:
        raise UsageError("--raw needs a prompt.", "Give the text to complete, or `-` to read it from standard input.")
    with LLM.open(model, memory=memory, threads=threads, context=context, kv_dtype=kv_dtype) as llm:
        if prompt is None and sys.stdin.isatty():
            chat(llm, params)
            return
        text = sys.stdin.read() if prompt in (None, "-") else prompt
        templated = not raw and llm.has_chat_template
        pieces, interrupted = show(
            llm.stream(llm.chat_prompt([{"role": "user", "content": text}]) if templated else text, params),
            quiet=as_json,
        )
        if as_json:
            print(json.dumps(as_object(pieces)))
        if stats or stats_layers:
            print_stats(pieces)
        if stats_layers:
            print_layers(pieces)
    if interrupted:
        raise KeyboardInterrupt


def as_object(pieces: list[Piece]) -> dict[str, Any]:
    """The output as an object for JSON; `finish_reason` is null where Ctrl-C ended it."""
    return {
        "text": "".join(piece.text for piece in pieces),
        "token_ids": [token for piece in pieces for token in piece.token_ids],
        "finish_reason": pieces[-1].finish_reason if pieces else None,
        "stats": stats_object(pieces[-1].stats) if pieces else None,
    }
