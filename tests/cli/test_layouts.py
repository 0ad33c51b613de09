"""Rows of text that grows: words stay whole, and Markdown is laid out with nothing lost."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from penstock.cli.layouts import Layout, WordLayout
from penstock.cli.markdown_layout import MarkdownLayout
from penstock.cli.status_line import cells_of


def console(**options: object) -> Console:
    return Console(file=io.StringIO(), **options)  # type: ignore[arg-type]


def words(text: str, columns: int) -> list[str]:
    layout = WordLayout(console())
    layout.add(text)
    return [row.text for row in layout.rows(columns, ended=True).finished]


def markdown(text: str, columns: int = 60) -> list[str]:
    layout = MarkdownLayout(console())
    layout.add(text)
    return [row.text for row in layout.rows(columns, ended=True).finished]


class TestWords:
    def test_they_stay_whole(self) -> None:
        assert words("one two three four", 10) == ["one two", "three", "four"]

    def test_one_longer_than_a_row_is_cut(self) -> None:
        assert words("a " + "b" * 25, 11) == ["a", "b" * 10, "b" * 10, "b" * 5]

    def test_lines_and_indents_stay(self) -> None:
        assert words("def f():\n    return 1\n\n\ttab", 40) == ["def f():", "    return 1", "", "        tab"]

    def test_wide_characters(self) -> None:
        assert words("漢字" * 6, 11) == ["漢字漢字漢", "字漢字漢字", "漢字"]

    @pytest.mark.parametrize("columns", [12, 20, 33])
    def test_no_row_wraps_on_terminals_that_see_characters_differently(self, columns: int) -> None:
        for row in words("ok 👍🏽 and ❤️ or 🇩🇪 yes " * 5, columns):
            assert cell_len(row) + sum(cells_of(character)[1] for character in row) <= columns

    def test_lines_that_are_whole_come_once(self) -> None:
        layout = WordLayout(console())
        layout.add("one\ntw")
        assert [[row.text for row in rows] for rows in layout.rows(20)[:2]] == [["one"], ["tw"]]
        layout.add("o\n")
        assert [[row.text for row in rows] for rows in layout.rows(20)[:2]] == [["two"], [""]]


class TestMarkdown:
    def test_marks_become_what_they_mean(self) -> None:
        assert markdown("# Title\n**bold** and *this* and `code`.") == ["Title", "", "bold and this and code."]
        layout = MarkdownLayout(console(force_terminal=True, color_system="standard"))
        layout.add("**bold**")
        assert layout.rows(60, ended=True).finished[0] == ("\x1b[1mbold\x1b[0m", 4)

    def test_nothing_is_lost(self) -> None:
        text = "<div>html</div> and \\( x \\), C:\\path, 2 ** 3, snake_case_name, <b>bold</b> and\n\n<p>\nblock\n</p>"
        assert markdown(text, 100) == [text.split("\n")[0], "", "<p>", "block", "</p>"]

    def test_line_breaks_are_some(self) -> None:
        assert markdown("Roses are red,\nViolets are blue.") == ["Roses are red,", "Violets are blue."]

    def test_code_stands_as_it_is(self) -> None:
        code = "```python\ndef f():\n    return '**'\n\n\n    # end\n```"
        assert markdown(code) == code.split("\n")

    def test_lists(self) -> None:
        rows = markdown("- one that is long enough to wrap\n- two\n  1. first\n\n9. nine\n10. ten", 22)
        assert rows == [
            " • one that is long",
            "   enough to wrap",
            " • two",
            "    1. first",
            "",
            " 9. nine",
            " 10. ten",
        ]

    def test_a_table(self) -> None:
        rows = markdown("| a | b |\n|---|--:|\n| one | 2 |")
        assert [row.split() for row in rows if "─" not in row] == [["a", "b"], ["one", "2"]]

    def test_blocks_that_are_followed_by_a_whole_line_come_once(self) -> None:
        layout = MarkdownLayout(console())
        layout.add("one\n\ntwo")
        assert [row.text for row in layout.rows(60).growing] == ["one", "", "two"]
        layout.add("\n")
        finished, growing, _ = layout.rows(60)
        assert [row.text for row in finished] == ["one"]
        assert [row.text for row in growing] == ["", "two"]

    def test_a_list_goes_on_behind_a_blank_line(self) -> None:
        layout = MarkdownLayout(console())
        layout.add("1. one\n\n2")
        assert layout.rows(60).finished == []
        layout.add(". two")
        assert [row.text for row in layout.rows(60, ended=True).finished] == [" 1. one", " 2. two"]

    @pytest.mark.parametrize(
        ("so_far", "shown"),
        [
            ("a **bo", "a bo"),
            ("a **", "a"),
            ("a `co", "a co"),
            ("**", ""),
            ("```", ""),
            ("- **one**: *", " • one:"),
            ("```\na **b", "```\na **b\n```"),
            ("2 ** 3 is", "2 ** 3 is"),
            ("```\na\n``", "```\na\n```"),
        ],
    )
    def test_no_marks_are_shown_that_go_away_again(self, so_far: str, shown: str) -> None:
        layout = MarkdownLayout(console())
        layout.add(so_far)
        assert "\n".join(row.text for row in layout.rows(60).growing) == shown

    def test_no_colour(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_COLOR", "1")
        layout: Layout = MarkdownLayout(console(force_terminal=True))
        layout.add("```python\nimport os\n```")
        assert "\x1b[3" not in "".join(row.text for row in layout.rows(60, ended=True).finished)
