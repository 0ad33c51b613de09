"""What an answer has to be, as options of the command line: files of a schema or a grammar, or an expression."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.cli.attached import attach
from penstock.errors import UsageError

Schema = Annotated[
    Path | None, typer.Option(help="Answer with JSON that the JSON Schema in this file describes.", metavar="FILE")
]
Regex = Annotated[str | None, typer.Option(help="Answer with text that this regular expression matches.")]
GrammarFile = Annotated[
    Path | None,
    typer.Option("--grammar", help="Answer with text of the grammar in this file (Lark, or GBNF).", metavar="FILE"),
]


def form_of(schema: Path | None, regex: str | None, grammar: Path | None) -> dict[str, Any]:
    """As SamplingParams takes it. Raises UsageError for files that cannot be read, and for several at once."""
    asked = {"schema": schema, "regex": regex, "grammar": grammar}
    given = [f"--{name}" for name, value in asked.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} are given together.", "An answer follows one of them: give one.")
    files = {"schema": schema, "grammar": grammar}
    form = {name: attach(path, _check_length).text for name, path in files.items() if path is not None}
    return form | ({} if regex is None else {"regex": regex})


def _check_length(characters: int) -> None:
    from penstock.grammars.grammar import MOST_CHARACTERS

    if characters > MOST_CHARACTERS:
        raise UsageError("The file is too long.", f"Give one of at most {MOST_CHARACTERS:,} characters.")
