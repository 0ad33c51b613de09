from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import in_process
from helpers.cases import CASES
from penstock import LLM, SamplingParams

RAW = ("run", "demo", "--raw", "def add(a, b):", "--temperature", "0", "--max-tokens", "8")


def penstock(*arguments: str, stdin: str | None = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=120)


def completed(text: str, max_tokens: int = 8) -> str:
    with LLM.open("demo") as llm:
        return llm.generate([text], SamplingParams(temperature=0, max_tokens=max_tokens))[0].text


class TestRun:
    def test_text_goes_to_standard_output_and_nothing_else(self) -> None:
        result = penstock(*RAW)
        assert result.stdout == completed("def add(a, b):") + "\n"
        assert (result.stderr, result.returncode) == ("", 0)

    def test_the_prompt_may_come_from_standard_input(self) -> None:
        expected = penstock(*RAW).stdout
        for arguments in (("run", "demo", "-"), ("run", "demo")):
            result = penstock(*arguments, *RAW[4:4], "--raw", *RAW[4:], stdin="def add(a, b):")
            assert result.stdout == expected

    def test_a_prompt_goes_through_the_chat_template(self) -> None:
        result = penstock("run", "demo", "print it", "--json", "--max-tokens", "3", "--temperature", "0")
        with LLM.open("demo") as llm:
            answer = llm.chat([{"role": "user", "content": "print it"}], SamplingParams(temperature=0, max_tokens=3))
            prompt_tokens = len(llm.chat_prompt([{"role": "user", "content": "print it"}]))
        said = json.loads(result.stdout)
        assert (said["text"], said["token_ids"], said["finish_reason"]) == (
            answer.text,
            answer.token_ids,
            answer.finish_reason,
        )
        assert said["stats"]["prompt_tokens"] == prompt_tokens

    def test_stats(self) -> None:
        result = penstock(*RAW, "--stats-layers", "--threads", "1", "--memory", "1GiB")
        assert "8 out in" in result.stderr
        for row in ("layer 0", "layer 5", "embedding", "head", "total", "average layer"):
            assert row in result.stderr

    def test_sampling_options_reach_the_sampler(self) -> None:
        options = ("--top-p", "0.9", "--top-k", "50", "--min-p", "0.01", "--repetition-penalty", "1.1", "--stop", "x")
        drawn = penstock("run", "demo", "--raw", "x", "--temperature", "1.5", "--seed", "7", "--json",
                         "--max-tokens", "9", *options)  # fmt: skip
        with LLM.open("demo") as llm:
            params = SamplingParams(
                temperature=1.5, seed=7, max_tokens=9, top_p=0.9, top_k=50, min_p=0.01, repetition_penalty=1.1, stop="x"
            )
            [output] = llm.generate(["x"], params)
        assert json.loads(drawn.stdout)["token_ids"] == output.token_ids

    def test_a_model_without_a_tokenizer(self, tmp_path: Path) -> None:
        result = penstock("run", str(CASES["gqa-4"].write(tmp_path)), "text")
        assert (result.returncode, result.stdout) == (1, "")
        assert "no tokenizer" in result.stderr


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (("run", "no/such/model", "text"), 1, "no such directory"),
            (("run", "demo", "text", "--temperature", "3"), 2, "temperature=3.0 is out of range"),
            (("run", "demo", "text", "--memory", "lots"), 2, "'lots' is not a size"),
            (("run", "demo", "text", "--memory", "1MiB"), 2, "The least that works is"),
            (("run", "demo", "text", "--kv-dtype", "int8"), 2, "kv_dtype='int8'"),
            (("run", "demo", "text", "--context", "1"), 2, "context of 1 is out of range"),
            (("run", "demo", "text", "--threads", "0"), 2, "a whole number from 1"),
            (("run", "demo", "some long text", "--raw", "--context", "3"), 2, "a context of 3 has no room"),
            (("run", "demo", "text", "--no-such-option"), 2, "No such option"),
            (("fly",), 2, "No such command"),
        ],
    )
    def test_one_message_no_traceback(self, arguments: tuple[str, ...], code: int, words: str) -> None:
        result = in_process.penstock(*arguments)
        assert result.returncode == code
        assert words in result.stderr
        assert "Traceback" not in result.stderr

    def test_an_instruction_set_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PENSTOCK_ISA", "mmx")
        result = penstock(*RAW)
        assert result.returncode == 2
        assert "PENSTOCK_ISA=mmx" in result.stderr


def test_ctrl_c_ends_with_what_there_is() -> None:
    command = [sys.executable, "-m", "penstock", "run", "demo", "--raw", "def add(a, b):", "--temperature", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        begun = process.stdout.read(5)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        text = (begun + process.stdout.read()).removesuffix("\n")
        errors = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert len(text) >= 5
    assert completed("def add(a, b):", 200).startswith(text[:100])
