"""`penstock run --session` killed for real (SIGKILL), in processes of their own."""

from __future__ import annotations

import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from penstock import LLM, SamplingParams, Session

TOOL = Path(__file__).parents[2] / "tools" / "kill_sessions.py"
LONG = ("--temperature", "0.8", "--seed", "1", "--max-tokens", "100", "--draft", "none")


def penstock(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", "run", "demo", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.thorough
def test_answers_are_those_of_a_run_that_was_left_in_peace(tmp_path: Path) -> None:
    tool: dict[str, Any] = runpy.run_path(str(TOOL))
    options = ["--temperature", "0.8", "--max-tokens", "80"]
    outcome = tool["kill_sessions"](tmp_path, 4, "demo", options, random.Random(4))
    assert outcome.differences == []
    assert outcome.kills == 4


def test_it_goes_on_amid_a_sentence_and_says_what_was_said(tmp_path: Path) -> None:
    path = tmp_path / "talk"
    command = [sys.executable, "-m", "penstock", "run", "demo", "write a class", "--session", str(path), *LONG]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not path.exists() or path.stat().st_size < 60_000:
        time.sleep(0.005)
    process.kill()
    said, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL
    with LLM.open("demo", draft="none") as llm, Session(llm, path) as session:
        [expected] = llm.generate([session.turn.prompt], session.turn.params)  # type: ignore[union-attr]
        assert 0 < len(session.turn.drawn) < 100  # type: ignore[union-attr]
    assert expected.text.startswith(said)
    rest = penstock("--session", str(path))
    assert (rest.stdout, rest.returncode) == (expected.text + "\n", 0)
    rest = penstock("--session", str(path))  # that one has told it
    assert rest.returncode == 2
    assert "its last answer is finished" in rest.stderr
    assert "Give a prompt to go on with" in rest.stderr


class TestCommandLine:
    def test_the_prompt_may_come_from_standard_input(self, tmp_path: Path) -> None:
        path = str(tmp_path / "talk")
        result = penstock("--session", path, "--max-tokens", "5", stdin="write a class")
        assert result.returncode == 0
        with LLM.open("demo", draft="none") as llm, Session(llm, path) as session:
            assert session.messages[0] == {"role": "user", "content": "write a class"}
            assert session.turn is not None
            assert session.turn.told

    def test_json_and_raw(self, tmp_path: Path) -> None:
        path = str(tmp_path / "talk")
        with LLM.open("demo", draft="none") as llm, Session(llm, path) as session:
            list(session.complete("def add(a, b):", SamplingParams(temperature=0, max_tokens=5)))
            session.told()
        whole = penstock("--raw", "\n", "--session", path, "--max-tokens", "5", "--temperature", "0", "--json")
        assert '"finish_reason": "length"' in whole.stdout

    def test_two_processes(self, tmp_path: Path) -> None:
        with LLM.open("demo", draft="none") as llm, Session(llm, tmp_path / "talk") as session:
            session.ask("write a class", SamplingParams(temperature=0, max_tokens=4))
            result = penstock("write a class", "--session", str(tmp_path / "talk"))
        assert result.returncode == 1
        assert result.stderr.startswith(f"error: {tmp_path}/talk is in use by another process.\n")

    @pytest.mark.thorough
    def test_ctrl_c_leaves_an_answer_to_be_gone_on_with(self, tmp_path: Path) -> None:
        path = tmp_path / "talk"
        command = [sys.executable, "-m", "penstock", "run", "demo", "write a class", "--session", str(path), *LONG]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not path.exists() or path.stat().st_size < 60_000:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode == 130
        with LLM.open("demo", draft="none") as llm, Session(llm, path) as session:
            assert session.turn is not None
            [expected] = llm.generate([session.turn.prompt], session.turn.params)
            assert "".join(piece.text for piece in session.go_on()) == expected.text
