"""Markdown that grows, as rows of a terminal.

What comes is cut into blocks: paragraphs, lists, tables, blocks of code. All but the last are final as soon as a line
of the next one is whole, so only the last one is ever laid out again. CommonMark is read by markdown-it-py and laid out
by rich, with nothing lost: HTML and backslashes are text, and a line break is one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from markdown_it import MarkdownIt
from rich.markdown import CodeBlock, Heading, ListItem, Markdown
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

from penstock.cli.layouts import Row, Rows, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from markdown_it.token import Token
    from rich.console import Console, ConsoleOptions, RenderResult

_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("escape")
THEME = Theme({"markdown.code": "bold cyan"})
"""Nothing with a background, which suits dark or light screens alone."""
_STRONG = re.compile(r"(?<!\s)\*\*|\*\*(?!\s)")
"""What may begin or end strong text: not between blanks."""


class MarkdownLayout:
    """Lays out Markdown."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._source = ""
        """From the beginning of the first block that is not final."""
        self._follows = False
        """Whether blocks have become final before it."""

    def add(self, text: str) -> None:
        self._source += text

    def rows(self, columns: int, ended: bool = False) -> Rows:
        blocks = list(_blocks(_PARSER.parse(self._source)))
        final = len(blocks) if ended else max(0, self._whole(blocks) - 1)
        finished = [row for block in blocks[:final] for row in self._block(block, columns)]
        if ended:
            self._source = ""
        elif final:
            self._source = "".join(self._source.splitlines(keepends=True)[_begin(blocks[final]) :])
        follows = self._follows
        if not ended:
            blocks = list(_blocks(_PARSER.parse(_closed(self._source))))
            steady = not any(block[0].type == "table_open" for block in blocks)
            growing = [row for block in blocks for row in self._block(block, columns)]
            self._follows = follows
            return Rows(finished, growing, steady)
        return Rows(finished, [])

    def _whole(self, blocks: Sequence[Sequence[Token]]) -> int:
        """How many blocks begin with a line that is there as a whole; what begins amid one may yet become something
        else, the next item of a list, say."""
        lines = self._source.count("\n")
        return sum(_begin(block) < lines for block in blocks)

    def _block(self, tokens: Sequence[Token], columns: int) -> list[Row]:
        """A block's rows, a blank one before it where others were."""
        rows = rows_of(self._console, _Tokens(tokens), columns)
        while rows and not rows[0].text:
            del rows[0]
        while rows and not rows[-1].text:
            del rows[-1]
        before = [Row("", 0)] if rows and self._follows else []
        self._follows = self._follows or bool(rows)
        return before + rows


def _blocks(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """The tokens of each block."""
    block: list[Token] = []
    for token in tokens:
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield block
            block = []


def _begin(block: Sequence[Token]) -> int:
    """The number of the line that a block begins with."""
    return block[0].map[0] if block[0].map else 0


def _closed(source: str) -> str:
    """The text with what its last line opens closed, and without marks at its end, of which nobody knows yet what they
    are: so none are shown that go away again."""
    before, newline, last = source.rpartition("\n")
    if not last.strip("*`"):
        return before + newline
    tokens = _PARSER.parse(source)
    if tokens and tokens[-1].type in ("fence", "code_block"):
        return source
    last = last.rstrip("*`")
    if last.count("`") % 2:
        last += "`"
    elif len(_STRONG.findall(last)) % 2:
        last = f"{last.rstrip()}**"
    return before + newline + last


class _Code(CodeBlock):
    """As it stands in Markdown, in colours: the marks say where it begins and ends, and nothing is before its lines."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        language = "" if self.lexer_name == "text" else self.lexer_name
        yield Text(f"```{language}", style="dim")
        code = str(self.text).removesuffix("\n")
        yield Syntax(code, self.lexer_name, theme="ansi_dark", background_color="default", word_wrap=True)
        yield Text("```", style="dim")


class _Heading(Heading):
    """To the left."""

    LEVEL_ALIGN: ClassVar[dict[str, Any]] = {}


class _Item(ListItem):
    """Numbered as in Markdown, and indented alike however many items there are going to be."""

    def render_number(self, console: Console, options: ConsoleOptions, number: int, last_number: int) -> RenderResult:
        mark = f" {number}. "
        style = console.get_style("markdown.item.number", default="none")
        lines = console.render_lines(self.elements, options.update(width=options.max_width - len(mark)))
        for index, line in enumerate(lines):
            yield Segment(mark if index == 0 else " " * len(mark), style)
            yield from line
            yield Segment.line()


class _Tokens(Markdown):
    """Markdown that has been parsed."""

    elements: ClassVar[dict[str, Any]] = Markdown.elements | {
        "fence": _Code,
        "code_block": _Code,
        "heading_open": _Heading,
        "list_item_open": _Item,
    }

    def __init__(self, tokens: Sequence[Token]) -> None:
        super().__init__("", hyperlinks=False)
        for token in tokens:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"
        self.parsed = list(tokens)
