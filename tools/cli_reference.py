"""Write docs/cli.md: every command with its arguments and options, as the command line itself describes them.

python tools/cli_reference.py           # writes it
python tools/cli_reference.py --check   # exits with 1 where it is out of date
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo, OptionInfo

from penstock.cli import app

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEAD = """# Command line

This page is made from the commands themselves (`python tools/cli_reference.py`), and a test keeps it so. Every command
has `--help`. Exit codes: 0, 1 where something failed, 2 for wrong use, 130 after Ctrl-C.
"""
TYPES = {int: "INTEGER", float: "FLOAT", Path: "PATH", str: "TEXT"}


@dataclass(frozen=True)
class Parameter:
    """One argument or option: how it is written, and what it means."""

    written: str
    help: str
    is_option: bool
    required: bool


def parameters(command: Callable[..., None]) -> list[Parameter]:
    """Those of a command's function, by its annotations."""
    hints = typing.get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    return [_parameter(name, hints[name], p.default) for name, p in signature.parameters.items()]


def _parameter(name: str, hint: Any, default: Any) -> Parameter:
    plain, info = typing.get_args(hint)[:2]
    if not isinstance(info, (ArgumentInfo, OptionInfo)):
        raise TypeError(f"{name}: {hint} says nothing to the command line")
    required = default is inspect.Parameter.empty
    text = " ".join((info.help or "").split())
    if not required and default not in (None, False, (), []) and "(default" not in text:
        text += f" (default: {default})"
    if isinstance(info, ArgumentInfo):
        return Parameter(str(info.metavar or name).upper(), text, False, required)
    # Within Annotated, typer takes the first name for a default until it builds the command.
    names = [*([info.default] if isinstance(info.default, str) else []), *(info.param_decls or ())]
    flags = ", ".join(names or [f"--{name.replace('_', '-')}"])
    kind = _kind(plain)
    return Parameter(flags if kind is bool else f"{flags} {info.metavar or TYPES[kind]}", text, True, required)


def _kind(plain: Any) -> type:
    """The type of one value: of an optional one, or of a list."""
    for part in typing.get_args(plain) or (plain,):
        if part is not type(None):
            return _kind(part) if typing.get_args(part) else part
    raise TypeError(f"{plain} is no type of an option")


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_command(info.callback) for info in app.registered_commands if info.callback)])


def _command(command: Callable[..., None]) -> str:
    name, known = command.__name__, parameters(command)
    arguments = [p.written if p.required else f"[{p.written}]" for p in known if not p.is_option]
    usage = " ".join(["penstock", name, *["[OPTIONS]"] * any(p.is_option for p in known), *arguments])
    rows = [f"| `{p.written.replace('|', chr(92) + '|')}` | {p.help.replace('|', chr(92) + '|')} |" for p in known]
    table = ["| | |", "|---|---|", *rows, ""] if rows else []
    return "\n".join(
        [f"## penstock {name}", "", inspect.cleandoc(command.__doc__ or ""), "", f"    {usage}", "", *table]
    )


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text() != page():
            sys.exit(f"{PAGE.name} is out of date: run python tools/cli_reference.py")
        return
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
