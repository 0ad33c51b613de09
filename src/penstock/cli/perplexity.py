"""`penstock perplexity`: how well a model foresees texts."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from penstock.cli import options as opt
from penstock.cli.opening import opens_model
from penstock.cli.standard_input import read_text
from penstock.errors import UsageError
from penstock.memory.text_room import BYTES_TO_TOKENIZE
from penstock.options import OpenOptions

if TYPE_CHECKING:
    from penstock.llm import LLM
    from penstock.scoring import Perplexity, Score, Scorer

USUAL_WINDOW = 2048
"""Tokens of a window, where the model takes as many."""


@opens_model("memory", "threads", "kv_dtype")
def perplexity(
    model: opt.Model,
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE...", help="Texts in UTF-8; `-` is standard input. (default: -)")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens by which a window goes on from the one before. (default: half a window)"),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of a window. (default: 2048, or what the model was trained for, where that is less)"),
    ] = None,
    options: OpenOptions = OpenOptions(),  # noqa: B008
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell how well a model foresees texts: perplexity, bits a byte. A long text is cut into windows of --context
    tokens that overlap and share passes."""
    from penstock.llm import LLM
    from penstock.scoring import perplexity_of

    names = files or ["-"]
    if names.count("-") > 1:
        raise UsageError("Standard input can be read once.", "Name `-` once.")
    begin = time.perf_counter()
    with LLM.open_with(model, replace(options, context=_window(model, context), draft="none")) as llm:
        texts = [_read(llm, name) for name in names]
        window, stride = llm.context, max(1, llm.context // 2) if stride is None else stride
        scorer = llm.scorer(texts, stride=stride)
        _run(scorer, quiet)
        sizes = [_scored_bytes(llm, text, score) for text, score in zip(texts, scorer.scores, strict=True)]
    each = [perplexity_of([score], size) for score, size in zip(scorer.scores, sizes, strict=True)]
    whole = perplexity_of(scorer.scores, sum(sizes))
    if as_json:
        of_files = [{"file": name} | asdict(told) for name, told in zip(names, each, strict=True)]
        seconds = time.perf_counter() - begin
        about = {"model": model, "context": window, "stride": stride, "seconds": seconds}
        print(json.dumps(about | asdict(whole) | {"files": of_files}))
        return
    for name, told in zip(names, each, strict=True):
        print(f"{name}: {in_words(told)}")
    if len(names) > 1:
        print(f"all: {in_words(whole)}")


def in_words(told: Perplexity) -> str:
    """In a line."""
    value = f"perplexity {told.perplexity:.4f} \u00b1 {told.standard_error:.4f}"
    bits = "" if told.bits_per_byte is None else f", {told.bits_per_byte:.4f} bits a byte"
    return f"{value}, {told.tokens:,} tokens, {told.nats_per_token:.5f} nats a token{bits}"


def _window(model: str, context: int | None) -> int:
    """Tokens of a window: those that were asked for, or as many as is usual."""
    from penstock.checkpoints.checkpoint import open_checkpoint
    from penstock.checkpoints.store import find_model

    if context is not None:
        return context
    return min(USUAL_WINDOW, open_checkpoint(find_model(model)).config.usual_context)


def _read(llm: LLM, name: str) -> str:
    if name == "-":
        return read_text(lambda characters: llm.memory.check_tokenizing(BYTES_TO_TOKENIZE * characters))
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name} cannot be read as a text: {error}", "Give a file of UTF-8 text.") from error


def _scored_bytes(llm: LLM, text: str, score: Score) -> int:
    """Bytes of a text without those of its first token, unless that is a special one."""
    first = llm.text_side().decode(score.token_ids[:1])
    return len(text.encode()) - len(first.encode())


def _run(scorer: Scorer, quiet: bool) -> None:
    """Run the passes, and show how far they are."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"))
    hidden = quiet or not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task("scoring", total=None)
        for at in scorer.run():
            so_far = "scoring" if at.perplexity is None else f"perplexity {at.perplexity:.3f}"
            bar.update(task, completed=at.scored, total=at.wanted, description=so_far)
