"""Tables without lines, as the reports have them."""

from __future__ import annotations

from rich.table import Column, Table


def left(heading: str = "", style: str = "") -> Column:
    """A column of words."""
    return Column(heading, style=style)


def right(heading: str = "", style: str = "") -> Column:
    """A column of figures."""
    return Column(heading, style=style, justify="right")


def plain_table(*columns: Column, title: str | None = None, header: bool = True) -> Table:
    """A table without lines, below a bold title if there is one."""
    return Table(*columns, title=title, title_justify="left", title_style="bold", box=None, show_header=header)
