"""Write docs/cli.md: every command with its arguments and options, as the command line itself describes them.

python tools/cli_reference.py           # writes it
python tools/cli_reference.py --check   # exits with 1 where it is out of date
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from penstock.cli import app
from penstock.cli.declared import Declared, declared

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEAD = """# Command line

This page is made from the commands themselves (`python tools/cli_reference.py`), and a test keeps it so. Every command
has `--help`. Exit codes: 0, 1 where something failed, 2 for wrong use, 130 after Ctrl-C. `penstock --version` tells the
version. `penstock --install-completion` has the shell (bash, zsh, fish, PowerShell) complete commands, options and the
names of models, in shells that are started after it. `eval "$(penstock --show-completion)"` does so in the bash where
it is given, and changes no file. Both need `penstock` on the `PATH`.

Sizes are written like `512MiB`, `3G`, `3 gib` or `2.5GB`: a letter alone and `KiB`, `MiB`, `GiB`, `TiB` are powers of
1,024; `KB`, `MB`, `GB`, `TB` are powers of 1,000. Your own defaults go into a [configuration file](configuration.md).
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
    """Those of a command's function."""
    return [_parameter(one) for one in declared(command)]


def _parameter(one: Declared) -> Parameter:
    required = one.default is inspect.Parameter.empty
    text = " ".join((one.info.help or "").split())
    if not required and one.default not in (None, False, (), []) and "(default" not in text:
        text += f" (default: {one.default})"
    if not one.is_option:
        name = str(one.info.metavar or one.name).upper()
        return Parameter(name + "..." * (one.many and not name.endswith("...")), text, False, required)
    flags = ", ".join(one.flags)
    written = flags if one.kind is bool else f"{flags} {one.info.metavar or TYPES[one.kind]}"
    return Parameter(written, text, True, required)


def page() -> str:
    """The whole page."""
    own = [_command(info.name, info.callback) for info in app.registered_commands if info.callback]
    for group in app.registered_groups:
        inner = group.typer_instance.registered_commands if group.typer_instance else []
        own += [_command(info.name, info.callback, f"{group.name} ") for info in inner if info.callback]
    return "\n".join([HEAD, *own])


def _command(name: str | None, command: Callable[..., None], group: str = "") -> str:
    """`group`: the name of those that it is one of, and a space."""
    name, known = group + (name or command.__name__), parameters(command)
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
