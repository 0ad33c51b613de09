from __future__ import annotations

import functools
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from helpers.on_terminal import OnTerminal
from helpers.terminals import Terminal
from helpers.thorough import quick
from penstock import LLM, SamplingParams
from penstock.architectures.base import Architecture
from penstock.checkpoints.store import find_model
from penstock.cli.live import ROUGH_FLOPS, Live
from penstock.cli.show import _warnings_afterwards
from penstock.cli.status_line import StatusLine
from penstock.packing.pack import pack

RUN = ("run", "demo", "--raw", "def add(a, b):", "--temperature", "0", "--max-tokens", "60")
STATUS = re.compile(r"layer \d/6|head|reading|first token")


@functools.cache
def text() -> str:
    with LLM.open("demo") as llm:
        return llm.generate(["def add(a, b):"], SamplingParams(temperature=0, max_tokens=60))[0].text


def rows_of(text: str, columns: int) -> list[str]:
    terminal = Terminal(columns)
    terminal.write(text)
    return terminal.rows


@pytest.mark.parametrize("columns", quick([30], [20, 30, 80, 200]))
def test_the_text_is_left_alone(columns: int) -> None:
    with OnTerminal(*RUN, "--plain", columns=columns) as terminal:
        assert terminal.end() == 0
    assert STATUS.search(terminal.raw)
    assert terminal.rows == rows_of(text(), columns)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    quick(1, [(("--quiet",), {}), ((), {"TERM": "dumb"}), (("--json",), {}), ((), {"TERM": ""})]),
)
def test_no_line(arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    with OnTerminal(*RUN, *arguments, environment=environment) as terminal:
        assert terminal.end() == 0
    assert "\x1b" not in terminal.raw
    assert not STATUS.search(terminal.raw)


def test_no_line_where_errors_go_elsewhere(tmp_path: Path) -> None:
    with (tmp_path / "errors").open("wb") as errors, OnTerminal(*RUN, stderr=errors.fileno()) as terminal:
        assert terminal.end() == 0
    assert "\x1b" not in terminal.raw
    assert (tmp_path / "errors").read_bytes() == b""


def test_a_pipe_gets_the_text_alone() -> None:
    result = subprocess.run([sys.executable, "-m", "penstock", *RUN], input=b"", capture_output=True, check=True)
    assert (result.stdout.decode(), result.stderr) == (text() + "\n", b"")


def test_ctrl_c_leaves_the_terminal_clean() -> None:
    with OnTerminal(*RUN[:-2]) as terminal:
        terminal.wait_for(lambda raw: "return" in raw)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
    assert not STATUS.search("\n".join(terminal.rows))
    assert "Traceback" not in terminal.raw


def test_a_chat() -> None:
    with OnTerminal("run", "demo", "--temperature", "0", "--max-tokens", "20", "--seed", "1", "--stats") as terminal:
        for answers in (1, 2):
            terminal.wait_for(lambda raw, n=answers: raw.count("\x1b[?2004h") >= n)
            terminal.type("print it\r")
            terminal.wait_for(lambda raw, n=answers: raw.count("GiB allowed") >= n)
        terminal.wait_for(lambda raw: raw.count("\x1b[?2004h") >= 3)  # what comes between two prompts may be lost
        terminal.type("\x04")
        assert terminal.end() == 0
    assert STATUS.search(terminal.raw)
    assert terminal.raw.count("20 tokens in ") == 2


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_warnings_wait_until_the_screen_is_free(error: type[Exception] | None) -> None:
    with pytest.warns(UserWarning, match="later") as told:
        assert warn_in_mid_pass(told, error) == 0
    assert len(told.list) == 1


def warn_in_mid_pass(told: pytest.WarningsRecorder, error: type[Exception] | None) -> int:
    """How many warnings had been told by then."""
    count = -1
    with suppress(RuntimeError), _warnings_afterwards():
        warnings.warn("later", stacklevel=1)
        count = len(told.list)
        if error:
            raise error
    return count


class Opened:
    """The demo model with nothing in memory, an answer of which is shown on a screen."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.terminal = Terminal(80)
        self.seen: list[str] = []

    def answer(self, prompt: list[int], fail_at: int = 0) -> None:
        with Live(self.llm, len(prompt), StatusLine(self.terminal, self.terminal.size)) as live:
            live.begin()
            self.seen.append(self.terminal.row_below)
            for number, piece in enumerate(self.llm.stream(prompt, SamplingParams(temperature=0, max_tokens=20))):
                live.print(piece)
                self.seen.append(self.terminal.row_below)
                if number + 1 == fail_at:
                    raise RuntimeError


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    monkeypatch.setattr("penstock.cli.live.REDRAW_SECONDS", 0.0)
    with LLM.open("demo", draft="none") as llm:
        yield Opened(llm)


def test_every_pass_is_told(opened: Opened) -> None:
    opened.answer([1, 2, 3])
    assert opened.seen[0].startswith("first token in about 1 s, layer 1/6")
    assert opened.seen[1].endswith(", 1 token")
    assert opened.seen[-1].endswith("s/token, 20 tokens")
    assert opened.llm.events.listeners == []
    assert not STATUS.search("\n".join(opened.terminal.rows))


def test_every_layer_is_told(opened: Opened) -> None:
    shown = []
    line = StatusLine(opened.terminal, opened.terminal.size)
    line.show = shown.append
    with Live(opened.llm, 3, line) as live:
        live.begin()
        next(iter(opened.llm.stream([1, 2, 3], SamplingParams(max_tokens=1))))
    places = [match[0] for status in shown if (match := re.search(r"layer \d/6|head", status))]
    assert list(dict.fromkeys(places)) == [*(f"layer {n}/6" for n in range(1, 7)), "head"]


def test_guessing_is_told(opened: Opened) -> None:
    shown = []
    line = StatusLine(opened.terminal, opened.terminal.size)
    line.show = shown.append
    with Live(opened.llm, 3, line) as live:
        live.begin()
        opened.llm.events.tell("draft", "9 guesses", 5.0, 5.5)
        live._due = 1e9
        opened.llm.events.tell("pass", "10 rows", 5.5, 6.0)
    assert "guessing" in shown[-2]


def test_a_second_answer(opened: Opened) -> None:
    opened.answer([1, 2, 3])
    opened.answer([1, 2, 3, 4])
    assert opened.seen[-1].endswith("20 tokens")


def test_an_error_leaves_the_screen_clean(opened: Opened) -> None:
    with pytest.raises(RuntimeError):
        opened.answer([1, 2, 3], fail_at=5)
    assert not STATUS.search("\n".join(opened.terminal.rows))
    assert opened.llm.events.listeners == []


def test_what_the_disk_promises(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = opened.llm.weights.pass_bytes
    monkeypatch.setattr(opened.llm, "prefetch", lambda: weights / 29)
    opened.answer([1, 2, 3])
    assert opened.seen[0].startswith("first token in about 29 s")
    opened.seen.clear()
    monkeypatch.setattr(opened.llm, "prefetch", lambda: 0.0)  # all that is missing has been read already
    opened.llm.weights.limit_resident(0)
    opened.answer([1, 2, 3])
    assert opened.seen[0].startswith("layer 1/6")


def test_arithmetic_is_that_of_the_weights_however_they_are_stored(tmp_path: Path) -> None:
    pack(find_model("demo"), tmp_path / "packed")
    promised = []
    for model in ("demo", tmp_path / "packed"):
        with LLM.open(model, threads=1) as llm:
            live = Live(llm, 4000, StatusLine(Terminal(80)))
            promised.append(live._begun(0.0, rate=1e30).seconds_left(0.0))
            operations = Architecture(llm.config).flops(4000, 4000)
    assert promised == [operations / ROUGH_FLOPS] * 2
