from __future__ import annotations

import io
import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import resident
import turns
from resident import LLAMA, ORIGINAL, PACKED, Contestant, Turn, commands, measure, parse, show, summary

from helpers.cases import DEMO

SERVER = """
import sys
sys.path.append({peers!r})
from turns import serve
def open_model():
    print("a library says something")
    def draw(prompt, count):
        yield from range(prompt[0], prompt[0] + count + {more})
    return draw, lambda: {said}
serve({version!r}, open_model)
"""


def server(name: str, tmp_path: Path, more: int = 0, said: str = "{}") -> Contestant:
    program = SERVER.format(peers=str(resident.PEERS), more=more, said=said, version=f"{name} 1")
    return Contestant(name, [sys.executable, "-c", program])


def turn(prompt: float, token: float, bytes_read: int | None = None) -> Turn:
    return Turn(prompt, token, (1, 2), bytes_read)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "PAUSE_SECONDS", 0)


class TestTurns:
    def test_seconds_of_each_token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter([1.0, 3.0, 3.5, 4.5])
        monkeypatch.setattr(turns.time, "perf_counter", lambda: next(clock))
        assert turns.seconds_of_tokens(iter([7, 8, 9])) == ([2.0, 0.5, 1.0], [7, 8, 9])

    def test_each_line_is_answered(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        def draw(prompt: list[int], count: int) -> Iterator[int]:
            yield from prompt * count

        request = json.dumps({"prompt": [5], "tokens": 2})
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{request}\n{request}\n"))
        turns.serve("1.0", lambda: (draw, lambda: {"bytes_read": 3}))
        first, *answers = map(json.loads, capsys.readouterr().out.splitlines())
        assert first == {"version": "1.0"}
        assert [(answer["tokens"], answer["bytes_read"]) for answer in answers] == [([5, 5], 3)] * 2


@pytest.mark.usefixtures("pauses")
class TestContestants:
    def test_a_turn(self, tmp_path: Path) -> None:
        contestant = server("one", tmp_path, said="{'bytes_read': 9}")
        taken = contestant.take([40], 3)
        contestant.close()
        assert contestant.version == "one 1"
        assert (taken.tokens, taken.bytes_read) == ((40, 41, 42), 9)
        assert 0 < taken.prompt_seconds < 1

    def test_one_that_ends(self) -> None:
        with pytest.raises(SystemExit, match=r"broken ended with status 3\."):
            Contestant("broken", [sys.executable, "-c", "import sys; sys.exit(3)"])

    def test_rounds_by_turns(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"vocab_size": 50}')
        args = Namespace(original=tmp_path, rounds=2, prompt_tokens=4, tokens=3)
        contestants = [server(name, tmp_path) for name in (PACKED, ORIGINAL, LLAMA)]
        results = measure(contestants, args)
        for contestant in contestants:
            contestant.close()
        assert [result.name for result in results] == [PACKED, ORIGINAL, LLAMA]
        assert (results[-1].prompt_ratio, results[-1].token_ratio, results[-1].bytes_read) == (1, 1, None)

    def test_other_tokens_from_packed_weights(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"vocab_size": 50}')
        args = Namespace(original=tmp_path, rounds=1, prompt_tokens=4, tokens=3)
        contestants = [server(PACKED, tmp_path), server(ORIGINAL, tmp_path, more=1), server(LLAMA, tmp_path)]
        with pytest.raises(SystemExit, match="Packed weights gave other tokens than the original ones"):
            measure(contestants, args)
        for contestant in contestants:
            contestant.close()

    def test_penstock_itself(self) -> None:
        command = [sys.executable, str(resident.PEERS / "serve_penstock.py"), str(DEMO), "1", "1GiB"]
        contestant = Contestant(PACKED, command)
        first, again = (contestant.take([5, 6, 7], 4) for _ in range(2))
        contestant.close()
        assert first.tokens == again.tokens
        assert len(first.tokens) == 4
        assert again.bytes_read == 0


class TestResults:
    def test_ratios_are_those_of_rounds(self) -> None:
        own, llama = [turn(2, 0.1, 5), turn(4, 0.2, 0), turn(1, 0.1, 0)], [turn(1, 0.2), turn(1, 0.2), turn(1, 0.3)]
        result = summary("Penstock", "1", own, llama)
        assert (result.prompt_seconds, result.token_seconds) == (2, 0.1)
        assert (result.prompt_ratio, result.token_ratio, result.bytes_read) == (0.5, pytest.approx(2), 5)

    def test_the_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        results = [summary(LLAMA, "llama 1", [turn(2, 0.08)], [turn(2, 0.08)])]
        show(results, Namespace(original=Path("m/synth-1b"), threads=2, prompt_tokens=200, tokens=32))
        title, _, line = capsys.readouterr().out.splitlines()
        assert title == "synth-1b, 2 threads, prompt of 200, then 32 tokens"
        assert line.split() == ["llama.cpp,", "BF16", "80.00", "1.00", "2.00", "1.00", "-", "llama", "1"]


class TestCommandLine:
    def test_commands(self, tmp_path: Path) -> None:
        (tmp_path / "model.gguf").write_bytes(b"")
        words = ["raw", "packed", "--work", str(tmp_path), "--llama-cpp-python", "py", "--memory", "4GiB"]
        told = commands(parse(words))
        assert [command[2:] for command in told.values()][:2] == [["packed", "2", "4GiB"], ["raw", "2", "4GiB"]]
        assert told[LLAMA] == ["py", str(resident.PEERS / "serve_llama_cpp.py"), str(tmp_path / "model.gguf"), "2"]

    def test_a_gguf_that_cannot_be_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resident, "PEERS", tmp_path)
        with pytest.raises(SystemExit, match="No GGUF was made: "):
            commands(parse(["raw", "packed", "--work", str(tmp_path)]))
