"""Every Python example of README.md and the docs runs as it stands, with the demo model in the place of a large one."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from helpers.adapters import LoraCase
from helpers.cases import DEMO
from helpers.thorough import quick
from penstock import LLM

ROOT = Path(__file__).parents[1]
ADAPTERS = ("path/to/style", "path/to/another")
LARGE, SERVER = "path/to/Llama-3.1-8B-Instruct", "http://127.0.0.1:8000"
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]


def examples(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


PAGES = [str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
PAGES = [page for page in PAGES if examples(page)]


def run(page: str, said: Callable[[], str], server: str = SERVER) -> list[str]:
    """What the examples print that a reader tries one after the other."""
    names: dict[str, Any] = {}
    printed = []
    for number, code in enumerate(examples(page), 1):
        code = code.replace(LARGE, "demo").replace(SERVER, server)
        exec(compile(code, f"{page}, example {number}", "exec"), names)
        printed.append(said())
    return printed


def test_which_pages_have_examples() -> None:
    assert {"README.md", "docs/python.md", "docs/server.md", "docs/sessions.md"} <= {*PAGES}


@pytest.mark.parametrize("page", quick({*PAGES} - {"docs/server.md"}, PAGES))
def test_examples_run_and_print_something(
    page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(ADAPTERS):
        LoraCase(parts=("q_proj",)).write(tmp_path / name, DEMO, seed, size=0.01)
    with LLM.open("demo") if SERVER in "".join(examples(page)) else nullcontext() as llm:
        if llm is None:
            printed = run(page, lambda: capsys.readouterr().out)
        else:
            pytest.importorskip("uvicorn")
            from helpers.serving import serving

            with serving(llm) as at:
                printed = run(page, lambda: capsys.readouterr().out, at.url)
    assert all(text.strip() for text in printed)
    assert max(map(len, printed)) < 5000  # nothing that is printed fills pages


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_a_question_goes_through_the_template(
    page: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instruct model takes a bare question for finished, and says nothing."""
    prompts: list[Any] = []
    stream = LLM.stream

    def watched(llm: LLM, prompt: Any, *arguments: Any, **options: Any) -> Any:
        prompts.append(prompt)
        return stream(llm, prompt, *arguments, **options)

    monkeypatch.setattr(LLM, "stream", watched)
    exec(examples(page)[0].replace(LARGE, "demo"), {})
    with LLM.open("demo") as llm:
        assert prompts == [llm.chat_prompt(QUESTION)]
