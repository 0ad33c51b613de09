"""Files that go with a question."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.cli.attached import Attached, attach, with_files
from penstock.errors import ContextError, UsageError


def no_limit(characters: int) -> None:
    pass


def test_the_model_gets_them_by_name_behind_the_question(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n\n```\ncode\n```\n")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfwith a mark\r\n\xc3\xa4")
    files = [attach(tmp_path / name, no_limit) for name in ("a.md", "b.txt")]
    assert with_files("Compare.", files) == (
        f"Compare.\n\nFile {tmp_path}/a.md:\n\n````\n# A\n\n```\ncode\n```\n````"
        f"\n\nFile {tmp_path}/b.txt:\n\n```\nwith a mark\r\nä\n```"
    )
    assert with_files("Alone.", []) == "Alone."
    assert with_files("", [Attached("x", "y")]) == "File x:\n\n```\ny\n```"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe\x00", r"file is no UTF-8 text: invalid start byte in it\.\nConvert it"),
        (b"a\0b", "file is no text: it has NUL bytes"),
        (b" \n", r"file is empty\.\nLeave it out"),
    ],
)
def test_what_is_no_text(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UsageError, match=words):
        attach(tmp_path / "file", no_limit)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none cannot be read: No such file or directory\.\nCheck the file's name"):
        attach(tmp_path / "none", no_limit)
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        attach(tmp_path, no_limit)


def test_one_that_is_too_long_is_not_read_to_its_end() -> None:
    def check_length(characters: int) -> None:
        if characters > 100:
            raise ContextError("Too long.")

    with pytest.raises(ContextError, match="Too long"):
        attach(Path("/dev/zero"), check_length)


def test_a_name_that_steers_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2J").write_text("x")
    assert "\x1b" not in attach(tmp_path / "a\x1b[2J", no_limit).name
