"""The options that several commands share, and what they mean."""

from __future__ import annotations

from typing import Annotated

import typer

# typer reads annotations at run time, so these are plain aliases (and Optional, for Python 3.10).
Model = Annotated[str, typer.Argument(help="A checkpoint's directory, the name of a model on this machine, or `demo`.")]
Memory = Annotated[
    str | None,
    typer.Option(help="Ceiling on the whole process, like 512MiB or 2GiB. (default: what the machine has free)"),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads. (default: every CPU)")]
Context = Annotated[
    int | None, typer.Option(help="Most positions of a sequence. (default: what prompt and answer need)")
]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens to generate.")]
Temperature = Annotated[
    float | None, typer.Option(help="Randomness; 0 always takes the likeliest token. (default: the model's)")
]
TopP = Annotated[float | None, typer.Option(help="Keep the likeliest tokens that make up this probability.")]
TopK = Annotated[int | None, typer.Option(help="Keep this many of the likeliest tokens; 0 keeps all.")]
MinP = Annotated[float | None, typer.Option(help="Keep tokens at least this likely, relative to the likeliest.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1, tokens already there become less likely.")]
Seed = Annotated[int | None, typer.Option(help="Draw the same tokens again. (default: a fresh one)")]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends the output; may be given several times.")]
Draft = Annotated[
    str | None,
    typer.Option(
        help="What guesses tokens, for a pass to check many at once; it changes no token. A smaller MODEL with the "
        "same tokenizer, or `none`. (default: the text so far, and a packed model's own coarse weights)",
        metavar="MODEL|none",
    ),
]
DraftNodes = Annotated[
    int | None, typer.Option(help="Guesses a sequence and pass; 0 for none. (default: as many as pay)", metavar="K")
]
KvDtype = Annotated[str, typer.Option(help="What keys and values are rounded to: bf16 or f32.")]
