"""The options that several commands share, and what they mean."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.opening import of_opening

# typer reads annotations at run time, so these are plain aliases (and Optional, for Python 3.10).


def complete_model(incomplete: str) -> list[str]:
    """The names of models that begin so, for the shell; where there is none, it completes paths."""
    from penstock.checkpoints.models_here import models_here
    from penstock.checkpoints.store import DEMO

    names = [DEMO, *(named.name for named in models_here())]
    return [name for name in names if name.startswith(incomplete)]


_MODEL = "A checkpoint's directory, a GGUF file, the name of a model on this machine, or `demo`."
Model = Annotated[str, typer.Argument(help=_MODEL, autocompletion=complete_model)]
Models = Annotated[
    list[str], typer.Argument(help=f"{_MODEL} Several take turns.", metavar="MODEL...", autocompletion=complete_model)
]
Memory = Annotated[str | None, of_opening("memory")]
Threads = Annotated[int | None, of_opening("threads")]
MaxTokens = Annotated[
    int | None, typer.Option(help="Most tokens to generate. (default: as many as context and memory have room for)")
]
Temperature = Annotated[
    float | None, typer.Option(help="Randomness; 0 always takes the likeliest token. (default: the model's)")
]
TopP = Annotated[float | None, typer.Option(help="Keep the likeliest tokens that make up this probability.")]
TopK = Annotated[int | None, typer.Option(help="Keep this many of the likeliest tokens; 0 keeps all.")]
MinP = Annotated[float | None, typer.Option(help="Keep tokens at least this likely, relative to the likeliest.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1, tokens already there become less likely.")]
FrequencyPenalty = Annotated[
    float, typer.Option(help="Above 0, tokens become less likely the more often the answer has them.")
]
PresencePenalty = Annotated[float, typer.Option(help="Above 0, tokens that the answer has become less likely.")]
Seed = Annotated[int | None, typer.Option(help="Draw the same tokens again. (default: a fresh one)")]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends the output; may be given several times.")]
Cluster = Annotated[str | None, of_opening("cluster")]
Cut = Annotated[str | None, of_opening("cut")]
Draft = Annotated[str | None, of_opening("draft")]
DraftNodes = Annotated[int | None, of_opening("draft_nodes")]
KvDtype = Annotated[str, of_opening("kv_dtype")]
Adapters = Annotated[list[str] | None, of_opening("adapters")]
