"""Laid out text on a terminal: however it comes, all of it is there in the end, once, scrolled off or not."""

from __future__ import annotations

import io
import random

import pytest
from rich.console import Console

from helpers.terminals import Terminal
from helpers.thorough import quick
from penstock.cli.formatted_text import FormattedText
from penstock.cli.layouts import Layout, WordLayout
from penstock.cli.markdown_layout import MarkdownLayout

TEXT = """# Rivers

A river **meanders** because of *erosion* and `deposit(x)`, and antidisestablishmentarianism is a very long word.

1. one item that is long enough to be wrapped at the edge of the screen, certainly so
2. two
   - another with 漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字 and more

| name | what it is | size |
|------|-----------|-----:|
| one | a thing that is described at some length here | 1 |
| two | 漢字 | 22 |

```python
def add(a, b):
    return a + b  # a long comment that goes on until it has to be wrapped somewhere

    # the end
```

> quoted words

Last [link](https://example.com/a) paragraph, 👍🏽.
"""
LONG = "\n".join(f"{number}. item **{number}** of a long list, `code` too" for number in range(1, 25))
TABLE = "| a | b |\n|---|---|\n" + "\n".join(f"| {n} | {'wide ' * (n // 2)} |" for n in range(1, 20))
STATUS = "layer 3/9, 1.00 GB/s"


@pytest.fixture(autouse=True)
def drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.cli.formatted_text.DRAW_SECONDS", 0.0)
    monkeypatch.setattr("penstock.cli.formatted_text.DRAW_SHARE", float("inf"))


def layout(kind: type[MarkdownLayout] | type[WordLayout]) -> Layout:
    return kind(Console(file=io.StringIO()))


def whole(text: str, columns: int, kind: type[MarkdownLayout] | type[WordLayout] = MarkdownLayout) -> list[str]:
    laid = layout(kind)
    laid.add(text)
    terminal = Terminal(columns, 2000)
    terminal.write("\n".join(row.text for row in laid.rows(columns, ended=True).finished))
    return terminal.rows


def streamed(
    terminal: Terminal, text: str, seed: int, kind: type[MarkdownLayout] | type[WordLayout] = MarkdownLayout
) -> FormattedText:
    """Some characters at a time, with a status now and then."""
    view, choice, at = FormattedText(terminal, layout(kind), terminal.size), random.Random(seed), 0
    while at < len(text):
        count = choice.randint(1, 9)
        view.write(text[at : at + count])
        at += count
        if choice.random() < 0.3:
            view.show(STATUS)
    return view


@pytest.mark.parametrize(("columns", "rows"), quick([(60, 10)], [(40, 8), (60, 10), (60, 24), (80, 24), (120, 24)]))
def test_in_pieces_it_is_what_it_is_as_a_whole(columns: int, rows: int) -> None:
    terminal = Terminal(columns, rows)
    streamed(terminal, TEXT, columns).end()
    assert terminal.rows == whole(TEXT, columns)


@pytest.mark.parametrize("text", quick(2, [LONG, TABLE, f"```\n{LONG}\n```", f"{TABLE}\n\n{LONG}\n\nEnd."]))
def test_blocks_taller_than_the_screen(text: str) -> None:
    terminal = Terminal(50, 8)
    streamed(terminal, text, 1).end()
    assert terminal.rows == whole(text, 50)


def test_what_has_scrolled_off_can_be_read_while_more_comes() -> None:
    terminal = Terminal(50, 8)
    streamed(terminal, LONG, 2)
    expected = whole(LONG, 50)
    assert terminal.rows[: len(expected) - 2] == expected[:-2]


def test_of_a_tall_table_the_end_is_shown() -> None:
    terminal = Terminal(50, 8)
    streamed(terminal, TABLE, 3)
    assert len(terminal.rows) <= 8


def test_words() -> None:
    text = "some words and some more " * 20 + "\n\n    indented\n" + "x" * 100
    terminal = Terminal(44, 10)
    streamed(terminal, text, 4, WordLayout).end()
    assert terminal.rows == whole(text, 44, WordLayout)


def test_the_status_is_below_and_goes() -> None:
    terminal = Terminal(40, 10)
    view = FormattedText(terminal, layout(MarkdownLayout), terminal.size)
    view.show(STATUS)
    assert terminal.row_below == STATUS
    view.write("one two")
    assert (terminal.rows, terminal.row_below) == (["one two", STATUS], STATUS)
    assert terminal.screen.cursor.x == len("one two")
    view.show("x" * 100)
    assert terminal.row_below == "x" * 39
    view.end()
    assert terminal.rows == ["one two"]
    assert terminal.screen.cursor.y == 1


def test_rows_that_stay_are_not_written_again() -> None:
    terminal = Terminal(40, 10)
    view = FormattedText(terminal, layout(MarkdownLayout), terminal.size)
    view.write("first\nsecond\nthird")
    before = len(terminal.getvalue())
    view.write(" more")
    assert "first" not in terminal.getvalue()[before:]
    assert "\x1b[J" not in terminal.getvalue()[before:].partition("third more")[0]


def test_nothing_steers_the_terminal() -> None:
    terminal = Terminal(40, 10)
    view = FormattedText(terminal, layout(MarkdownLayout), terminal.size)
    view.write("a\x1b[2Jb\x07 [x](\x1b]8;;http://y\x07)")
    view.end()
    assert "\x1b[2J" not in terminal.getvalue()
    assert "\x07" not in terminal.getvalue()


def test_nothing_came() -> None:
    terminal = Terminal(40, 10)
    view = FormattedText(terminal, layout(MarkdownLayout), terminal.size)
    view.show(STATUS)
    view.end()
    assert terminal.rows == []


@pytest.mark.parametrize("columns", [30, 70])
def test_a_screen_of_another_width(columns: int) -> None:
    terminal = Terminal(50, 24)
    view = streamed(terminal, "One paragraph of words.\n\nAnother one that", 5)
    terminal.screen.resize(columns=columns)
    view.write(" goes on for a while, until it is longer than a row of the screen.")
    view.end()
    assert terminal.rows[0] == "One paragraph of words."
    assert " ".join(terminal.rows[2:]).split()[:6] == ["Another", "one", "that", "goes", "on", "for"]
