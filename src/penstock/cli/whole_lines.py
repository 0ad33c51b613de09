"""Lines that stay whole: a name, a path or a command in them can be read, searched for and copied as it is.

Rich folds text at the width of the terminal, or at 80 columns where there is none, and drops blanks where it does. What
the caller does not choose goes into such lines, then, and not into a table's cells or its title.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_WIDEST = 100_000


def whole(line: str, style: str = "") -> Text:
    """A line of markup that is never folded; the terminal wraps it. To be shown by `tell`, which does not cut it."""
    return Text.from_markup(line, style=style, overflow="ignore")


def titled(title: str, table: Table) -> Group:
    """A table below its title, a line of markup."""
    return Group(whole(title, "bold"), table)


def tell_rows(console: Console, table: Table) -> None:
    """Show a table as wide as it is, each row on a line of its own, which the terminal wraps."""
    console.width = max(console.width, console.measure(table, options=console.options.update(width=_WIDEST)).maximum)
    console.print(table, crop=False)


def tell(console: Console, *parts: RenderableType) -> None:
    """Show lines of markup, whole, and tables, as wide as the terminal at most; one below the other."""
    console.print(Group(*(whole(part) if isinstance(part, str) else part for part in parts)), crop=False)
