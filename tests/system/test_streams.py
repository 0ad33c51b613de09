from __future__ import annotations

import io
import os
import sys

import pytest

from penstock.system.streams import speak_utf8


def test_pipes_get_utf8_and_keep_what_they_do_with_errors() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="cp1252", errors="backslashreplace")
    with pytest.raises(UnicodeEncodeError):
        io.TextIOWrapper(io.BytesIO(), encoding="cp1252").write("鍵")
    speak_utf8(stream)
    stream.write("鍵\udc80")
    stream.flush()
    assert raw.getvalue() == "鍵\\udc80".encode()


def test_what_is_read() -> None:
    stream = io.TextIOWrapper(io.BytesIO("naïve 鍵".encode()), encoding="cp1252")
    speak_utf8(stream)
    assert stream.read() == "naïve 鍵"


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo terminals")
def test_terminals_closed_streams_and_others_are_left_alone() -> None:
    leader, follower = os.openpty()
    with os.fdopen(follower, "w", encoding="latin-1") as terminal:
        speak_utf8(terminal, None, io.StringIO())
        assert terminal.encoding == "latin-1"
    os.close(leader)
