from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.batch import requests
from penstock.batch.lines import id_of_line, parse_line
from penstock.batch.requests import Line, LineError, RequestFile
from penstock.errors import PenstockError


def scanned(path: Path, data: bytes) -> list[tuple[Line, bytes | None]]:
    path.write_bytes(data)
    with RequestFile(path) as file:
        return list(file.scan())


class TestScan:
    @given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line)), st.booleans())
    def test_every_line_that_is_not_blank(
        self, tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], ends: bool
    ) -> None:
        path = tmp_path_factory.mktemp("scan") / "in.jsonl"
        data = b"\n".join(lines) + b"\n" * ends
        path.write_bytes(data)
        with RequestFile(path) as file:
            found = list(file.scan())
            for line, content in found:
                assert content == file.read(line)
                assert data[line.offset : line.offset + line.nbytes].rstrip(b"\r\n").endswith(content or b"")
        expected = [(number, line) for number, line in enumerate(data.split(b"\n"), 1)]
        assert [line.number for line, _ in found] == [
            number for number, line in expected if line.removeprefix(b"\xef\xbb\xbf" * (number == 1)).strip()
        ]

    def test_a_mark_before_the_text_and_carriage_returns(self, tmp_path: Path) -> None:
        found = scanned(tmp_path / "in.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"b": 2}\r\n')
        assert [content for _, content in found] == [b'{"a": 1}', b'{"b": 2}']

    def test_long_lines_are_passed_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(requests, "MOST_LINE_BYTES", 100)
        monkeypatch.setattr(requests, "_CHUNK", 7)
        for size in (100, 101, 102, 107, 500):
            data = b"x" * (size - 1) + b"\n"
            found = scanned(tmp_path / "in.jsonl", b"first\n" + data + b"last")
            assert [(line.number, line.offset, line.nbytes) for line, _ in found] == [
                (1, 0, 6),
                (2, 6, size),
                (3, 6 + size, 4),
            ]
            assert [content is None for _, content in found] == [False, size > 100, False]
            with RequestFile(tmp_path / "in.jsonl") as file:
                assert file.read(found[2][0]) == b"last"
                if size > 100:
                    with pytest.raises(LineError) as caught:
                        file.read(found[1][0], 100)
                    assert caught.value.message == f"Line 2 has {size} bytes; there is room for 100 at most."

    def test_lines_that_only_more_memory_has_room_for(self, tmp_path: Path) -> None:
        [(line, _)] = scanned(tmp_path / "in.jsonl", b"x" * 2000)
        with RequestFile(tmp_path / "in.jsonl") as file, pytest.raises(LineError) as caught:
            file.read(line, 1000)
        assert caught.value.message == "Line 1 has 2,000 bytes; there is room for 1,000 at most. Raise --memory."

    def test_progress(self, tmp_path: Path) -> None:
        path, told = tmp_path / "in.jsonl", list[tuple[int, int]]()
        path.write_bytes(b"x\n" * 1000)
        with RequestFile(path) as file:
            assert len(list(file.scan(lambda done, total: told.append((done, total))))) == 1000
        assert told == [(512, 2000), (1024, 2000), (1536, 2000), (2000, 2000)]

    def test_memory_does_not_grow_with_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "in.jsonl"
        with path.open("wb") as out:
            for number in range(20_000):
                out.write(json.dumps({"custom_id": f"{number}", "body": {"prompt": "x" * 400}}).encode() + b"\n")
        with RequestFile(path) as file:
            tracemalloc.start()
            try:
                count = sum(1 for _ in file.scan())
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert count == 20_000
        assert peak < 1 << 20


class TestLines:
    def test_seeds_follow_from_place_and_bytes(self, tmp_path: Path) -> None:
        seeds = [line.seed for line, _ in scanned(tmp_path / "in.jsonl", b"a\nb\na\n")]
        assert seeds == [line.seed for line, _ in scanned(tmp_path / "in.jsonl", b"a\r\nb\r\na")]
        assert len(set(seeds)) == 3
        assert all(0 <= seed < 2**53 for seed in seeds)

    def test_contents(self, tmp_path: Path) -> None:
        path = tmp_path / "in.jsonl"
        path.write_bytes(b"a\n")
        with RequestFile(path) as file:
            before = file.contents()
        path.write_bytes(b"b\n")
        with RequestFile(path) as file:
            after = file.contents()
        assert (before.nbytes, after.nbytes) == (2, 2)
        assert before.digest != after.digest

    def test_one_that_was_changed(self, tmp_path: Path) -> None:
        path = tmp_path / "in.jsonl"
        [(line, _)] = scanned(path, b"a\n")
        for data in (b"b\n", b""):
            path.write_bytes(data)
            with RequestFile(path) as file, pytest.raises(PenstockError, match="line 1 is another one now"):
                file.read(line)


@given(st.binary(max_size=60))
def test_whatever_a_line_is_it_is_a_request_or_an_error(data: bytes) -> None:
    assert id_of_line(data, 3) is None
    with pytest.raises(LineError) as caught:
        parse_line(data, 3, True)
    assert caught.value.code
    assert caught.value.message.startswith(("Line 3 ", '"custom_id" '))
    json.dumps(caught.value.message).encode()


@given(
    st.dictionaries(
        st.sampled_from(["custom_id", "method", "url", "body", "more"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
            lambda inner: st.lists(inner, max_size=2),
        ),
    )
)
def test_whatever_its_fields_are(fields: dict[str, object]) -> None:
    sound = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}
    data = json.dumps(sound | fields).encode()
    custom_id = id_of_line(data, 1)
    try:
        request = parse_line(data, 1, True)
    except LineError as error:
        codes = ["invalid_method", "invalid_url", "invalid_body"] if custom_id else ["missing_custom_id"]
        if error.code not in codes or error.custom_id != custom_id:
            raise
    else:
        assert (request.custom_id, request.url, request.body) == (custom_id, sound["url"], {})
