from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.terminals import Terminal
from helpers.thorough import quick
from penstock.cli.status_line import StatusLine, TextEnd, visible

# No tab behind a full row: terminals leave it there, and the next character overwrites the last one.
PIECES = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
    st.text(st.sampled_from("水火日本語한"), max_size=6),
    st.text(st.sampled_from("éñáДλ—“”"), max_size=6),
    st.sampled_from(["\n", "\n\n", "x\n", "\n  y", "\n\tx", "\r\n"]),
)


def line(terminal: Terminal) -> StatusLine:
    return StatusLine(terminal, terminal.size)


@given(
    st.lists(st.tuples(PIECES, st.sampled_from(["", "layer 1/2", "x" * 300]))), st.integers(2, 40), st.integers(3, 8)
)
def test_the_text_ends_up_as_if_there_had_been_no_line(pieces: list[tuple[str, str]], columns: int, rows: int) -> None:
    terminal, plain = Terminal(columns, rows), Terminal(columns, rows)
    shown = line(terminal)
    for text, status in pieces:
        shown.write(text)
        plain.write(text)
        shown.show(status)
    shown.show("")
    assert terminal.rows == plain.rows


@pytest.mark.parametrize("columns", quick([20, 80], [20, 30, 80, 200]))
def test_the_line_stands_below_the_end_of_the_text(columns: int) -> None:
    terminal = Terminal(columns, 6)
    shown = line(terminal)
    text = ""
    for index in range(300):
        word = f"word{index} "
        text += word
        shown.write(word)
        shown.show(f"status {index}")
        assert terminal.row_below == f"status {index}"
        assert "status" not in "".join(terminal.rows[:-1])
    shown.show("")
    assert "".join(row.ljust(columns) for row in terminal.rows).strip() == text.strip()


def test_a_line_is_cut_short_of_the_last_column() -> None:
    terminal = Terminal(20)
    shown = line(terminal)
    shown.write("text")
    shown.show("0123456789" * 3)
    assert terminal.rows == ["text", "0123456789012345678"]
    assert shown.room == 19


def test_text_pushes_the_line_down() -> None:
    terminal = Terminal(20)
    shown = line(terminal)
    shown.show("status")
    assert terminal.rows == ["", "status"]
    shown.write("one")
    assert terminal.rows == ["one", "status"]
    shown.write("\ntwo\n")
    assert terminal.rows == ["one", "two", "", "status"]


def test_a_line_break_behind_a_full_row_leaves_no_empty_one() -> None:
    terminal = Terminal(10)
    shown = line(terminal)
    shown.write("0123456789")
    shown.show("status")
    assert terminal.rows == ["0123456789", "", "status"]
    shown.write("\nnext")
    assert terminal.rows == ["0123456789", "next", "status"]


def test_where_the_width_is_disputed_nothing_is_drawn_at_the_edge() -> None:
    terminal = Terminal(10)
    shown = line(terminal)
    shown.write("👩\u200d👩 abc")
    shown.show("status")
    assert "status" not in terminal.rows
    shown.write("\n")
    assert terminal.rows[-1] == "status"


def test_a_terminal_that_changes_its_width() -> None:
    terminal = Terminal(40)
    shown = line(terminal)
    shown.write("some text")
    shown.show("a status of some length")
    terminal.screen.resize(lines=24, columns=20)
    shown.show("a status of some length")
    assert terminal.rows == ["some text", "a status of some le"]
    shown.write(" and more")
    shown.show("")
    assert terminal.rows == ["some text and more"]


def test_too_few_rows_for_a_line() -> None:
    terminal = Terminal(40, 2)
    shown = line(terminal)
    shown.write("text")
    shown.show("status")
    assert terminal.rows == ["text"]


@pytest.mark.parametrize(("no_color", "dim"), [("1", False), ("", True)])
def test_no_color(monkeypatch: pytest.MonkeyPatch, no_color: str, dim: bool) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    terminal = Terminal(40)
    line(terminal).show("status")
    assert ("\x1b[2m" in terminal.getvalue()) == dim
    assert terminal.rows == ["", "status"]


def test_control_characters_are_not_obeyed() -> None:
    terminal = Terminal(40)
    line(terminal).write("a\x1b[2Jb\x9bc\x07\x00\x7f\td\r\ne")
    assert terminal.rows == ["a\ufffd[2Jb\ufffdc\ufffd\ufffd\ufffd     d", "e"]
    assert visible("text\n\t") == "text\n\t"


class TestTextEnd:
    @pytest.mark.parametrize(
        ("text", "column"),
        [
            ("", 0),
            ("abc", 3),
            ("0123456789", 10),
            ("0123456789a", 1),
            ("one\ntwo", 3),
            ("one\n", 0),
            ("水火", 4),
            ("012345678水", 2),  # a wide character does not fit into the last column
            ("e\u0301", 1),
            ("ДλБ", 3),
            ("a\tb", 9),
            ("abcd👩\u200d👩", None),
            ("👩\u200d👩", 4),
            ("abcdefg\U0001f1e9", None),
            ("1234567☺\ufe0f", None),
            ("x\ufe0fabc", 4),
            ("\U0001f44b\U0001f3fd", 4),
            ("abcd\U0001f44b\U0001f3fd", None),
            ("12345678\t", None),  # its tab stop is beyond the edge
        ],
    )
    def test_columns_behind_a_text(self, text: str, column: int | None) -> None:
        end = TextEnd()
        for character in text:
            end.add(character, 10)
        assert end.column(10) == column

    def test_a_new_width_leaves_doubts_near_the_edge(self) -> None:
        end = TextEnd()
        end.add("0123456789abcde", 40)
        assert end.column(40) == 15
        assert end.column(10) == 5
        assert end.column(15) is None
        end.add("\nnext", 15)
        assert end.column(15) == 4


def test_the_size_is_that_of_the_file() -> None:
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as out, os.fdopen(leader, "rb"):
        import fcntl
        import struct
        import termios

        fcntl.ioctl(out.fileno(), termios.TIOCSWINSZ, struct.pack("4H", 5, 33, 0, 0))
        assert StatusLine(out).room == 32
