"""`penstock run`: what a prompt is made of, and models that are not here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.infilling import with_tokens
from helpers.on_terminal import OnTerminal
from penstock import LLM, SamplingParams
from penstock.cli import offer_pull
from penstock.errors import CheckpointError
from penstock.hub.repository import HubFile, Repository

GREEDY = ("--temperature", "0", "--max-tokens", "8")


def run(*arguments: str, piped: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", "run", *arguments]
    return subprocess.run(command, input=piped, capture_output=True, text=True, check=False)


def answer(*messages: tuple[str, str]) -> str:
    with LLM.open("demo") as llm:
        conversation = [{"role": role, "content": content} for role, content in messages]
        return llm.chat(conversation, SamplingParams(temperature=0, max_tokens=8)).text


def test_a_prompt_what_is_piped_to_it_files_and_a_system_message(tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    path.write_text("Two.")
    result = run("demo", "Zero.", "--file", str(path), "--system", "Be terse.", *GREEDY, piped="One.")
    question = f"Zero.\n\nOne.\n\nFile {path}:\n\n```\nTwo.\n```"
    assert (result.stderr, result.stdout) == ("", answer(("system", "Be terse."), ("user", question)) + "\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--raw", "--system", "x"), "--system needs the chat template, which --raw leaves out"),
        (("--raw", "--file", "x"), "--file needs the chat template, which --raw leaves out"),
        (("--file", "/no/such"), "/no/such cannot be read: No such file or directory"),
        (("--suffix", "x", "--system", "x"), "--suffix needs a prompt, and goes with no --session, --system or --file"),
    ],
)
def test_wrong_use(arguments: tuple[str, ...], words: str) -> None:
    result = run("demo", "Zero.", *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_suffix(tmp_path: Path) -> None:
    model = with_tokens(tmp_path / "model")
    with LLM.open(model) as llm:
        expected = llm.fill_in("def f(x):\n    ", "\n\nf(1)\n", SamplingParams(temperature=0, max_tokens=8)).text
    result = run(str(model), "def f(x):\n    ", "--suffix", "\n\nf(1)\n", "--no-stdin", *GREEDY)
    assert (result.stderr, result.stdout) == ("", expected + "\n")
    refused = run("demo", "def f(x):\n    ", "--suffix", "\n\nf(1)\n", "--no-stdin", *GREEDY)
    assert refused.returncode == 1
    assert "cannot fill in a middle" in refused.stderr


def test_a_session_keeps_its_system_message(tmp_path: Path) -> None:
    session = ("demo", *GREEDY, "--session", str(tmp_path / "talk"))
    first = run(*session, "Zero.", "--system", "Be terse.").stdout
    assert first == answer(("system", "Be terse."), ("user", "Zero.")) + "\n"
    said = (("system", "Be terse."), ("user", "Zero."), ("assistant", first.removesuffix("\n")), ("user", "One."))
    assert run(*session, "One.").stdout == answer(*said) + "\n"


class TestOfferingToPull:
    @pytest.fixture(autouse=True)
    def hub(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """A terminal, and a Hub with one model; what was pulled."""
        pulled: list[str] = []
        files = {name: HubFile(name, 8 * 10**9, "0" * 64, None) for name in ("a.safetensors", "b.safetensors", "c.bin")}
        for name in ("stdin_is_terminal", "is_terminal"):
            monkeypatch.setattr(offer_pull, name, lambda: True)
        monkeypatch.setattr(offer_pull, "find_repository", lambda name: Repository(name, "0" * 40, files))
        monkeypatch.setattr(offer_pull, "pull", pulled.append)
        return pulled

    def test_it_is_pulled_where_that_is_wanted(
        self, hub: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("builtins.input", lambda question: "y")
        offer_pull.offer_to_pull("nobody/nothing")
        assert hub == ["nobody/nothing"]
        assert "its weights take 16.00 GB; here, packed, they would take about 10.88 GB" in capsys.readouterr().out

    @pytest.mark.parametrize("said", ["", "n", "no"])
    def test_and_not_otherwise(self, hub: list[str], monkeypatch: pytest.MonkeyPatch, said: str) -> None:
        monkeypatch.setattr("builtins.input", lambda question: said)
        with pytest.raises(CheckpointError, match="penstock pull nobody/nothing"):
            offer_pull.offer_to_pull("nobody/nothing")
        assert hub == []

    @pytest.mark.parametrize(("name", "terminal"), [("nobody/nothing", False), ("./nothing", True), ("a/b/c", True)])
    def test_nobody_is_asked(self, hub: list[str], monkeypatch: pytest.MonkeyPatch, name: str, terminal: bool) -> None:
        monkeypatch.setattr(offer_pull, "is_terminal", lambda: terminal)
        with pytest.raises(CheckpointError, match="no such directory"):
            offer_pull.offer_to_pull(name)
        assert hub == []

    def test_a_hub_that_has_none(self, hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(name: str) -> Repository:
            raise CheckpointError("The Hub has no such model.", "Check the name.")

        monkeypatch.setattr(offer_pull, "find_repository", unknown)
        with pytest.raises(CheckpointError, match=r"no such directory.* The Hub has no such model\.\nIf it is on"):
            offer_pull.offer_to_pull("nobody/nothing")
        assert hub == []

    def test_a_model_that_is_here(self, hub: list[str]) -> None:
        offer_pull.offer_to_pull("demo")
        assert hub == []


def test_markdown_on_a_terminal_is_laid_out_and_plain_text_is_not() -> None:
    arguments = ("run", "demo", "write a class", "--temperature", "0", "--max-tokens", "30")
    with LLM.open("demo") as llm:
        params = SamplingParams(temperature=0, max_tokens=30)
        text = llm.chat([{"role": "user", "content": "write a class"}], params).text
    with OnTerminal(*arguments, columns=60) as terminal:
        assert terminal.end() == 0
    assert "\x1b[?2026h" in terminal.raw
    with OnTerminal(*arguments, "--plain", columns=120) as plain:
        assert plain.end() == 0
    assert "\x1b[?2026h" not in plain.raw
    assert [line.rstrip() for line in text.rstrip().split("\n")] == plain.rows
