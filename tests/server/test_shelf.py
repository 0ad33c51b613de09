"""Several models of which one is open: what is checked when, and what a closed one leaves behind."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.adapters import LoraCase
from helpers.checkpoints import tiny_config, write_checkpoint
from helpers.http_siege import write_model
from helpers.serving import opened
from penstock import LLM, SamplingParams
from penstock.errors import CheckpointError, MemoryCeilingError, PenstockError, UsageError
from penstock.known_model import KnownModel
from penstock.openai_api.answers import submit
from penstock.openai_api.errors import RequestError
from penstock.openai_api.requests import parse
from penstock.options import OpenOptions
from penstock.server import shelf as shelves
from penstock.server.shelf import Shelf

OPTIONS = OpenOptions(memory="1GiB", longest_text=1 << 16)
PROMPT = {"prompt": "def add(a, b):", "max_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other"
    write_model(path)
    return path


@pytest.fixture
def shelf(other: Path) -> Iterator[Shelf]:
    with Shelf.read({"demo": "demo", "other": str(other)}, OPTIONS) as shelf:
        yield shelf


def answered(llm: LLM, **more: Any) -> Any:
    """A request that was answered to its end."""
    answers = submit(llm, parse("/v1/completions", {**PROMPT, **more}))
    while answers.runs:
        llm.step()
    answers.cancel()
    return answers


def test_all_are_known_and_one_is_open(shelf: Shelf) -> None:
    assert (shelf.names, shelf.several, shelf.llm, shelf.current) == (("demo", "other"), True, None, "demo")
    first = opened(shelf, "demo")
    assert shelf.model("demo") is first
    assert not isinstance(shelf.model("other"), LLM)
    second = opened(shelf, "other")
    assert shelf.llm is second is shelf.model("other")
    assert (shelf.current, shelf.is_open("demo"), shelf.is_open("other")) == ("other", False, True)
    shelf.close()
    assert (shelf.llm, shelf.current) == (None, "demo")


def test_names(shelf: Shelf) -> None:
    assert shelf.named(None) == ("demo", None)
    assert shelf.named("other") == ("other", None)
    opened(shelf, "other")
    assert shelf.named(None) == ("other", None)
    with pytest.raises(RequestError, match="Ask for 'demo', 'other', or leave `model` out") as found:
        shelf.named("third")
    assert found.value.status == 404


def test_what_is_known_is_what_an_open_model_says(shelf: Shelf, other: Path) -> None:
    for name, path in (("demo", "demo"), ("other", str(other))):
        known = shelf.known(name)
        with LLM.open(path) as llm:
            assert known.check("def f(x):") == llm.check("def f(x):")
            assert known.check_embedded("a text", "mean") == llm.check_embedded("a text", "mean")
            assert (known.context, known.config, known.path) == (llm.context, llm.config, llm.path)
            for wrong in ([], [1 << 30], [1] * llm.context):
                said = []
                for model in (known, llm):
                    with pytest.raises(PenstockError) as found:
                        model.check(wrong)
                    said.append(str(found.value))
                assert said[0] == said[1]


def test_a_closed_model_is_freed_at_once(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers and errors that somebody still has among it, and without the collector's help."""
    monkeypatch.setattr(shelves.gc, "collect", lambda: 0)
    llm = opened(shelf, "demo")
    held = [answered(llm, logprobs=2, echo=True, n=2), answered(llm, structured_outputs={"choice": ["a", "b"]})]
    with pytest.raises(RequestError) as found:
        submit(llm, parse("/v1/completions", {**PROMPT, "prompt": [1 << 30]}))
    held.append(str(found.value))
    del found
    parts = llm, llm.weights, llm.model.planes, llm.engine, llm.chain.stages[0]
    alive = [weakref.ref(part) for part in parts]
    del llm, parts
    gc.disable()
    try:
        opened(shelf, "other")
        assert [part() for part in alive] == [None] * 5, "it waits for the garbage collector"
    finally:
        gc.enable()
    assert held[0].response(id="", created=0, model="")["choices"][0]["text"].startswith(PROMPT["prompt"])


def test_each_has_the_whole_ceiling(shelf: Shelf) -> None:
    for _ in range(2):
        residents = []
        for name in shelf.names:
            llm = opened(shelf, name)
            assert llm.memory.budget.ceiling == 1 << 30
            llm.generate(["x"], SamplingParams(max_tokens=2))
            residents.append(llm.weights.resident_bytes)
            assert residents[-1] == llm.weights.pass_bytes
            del llm
    assert residents[0] != residents[1]


def test_one_that_cannot_be_opened_leaves_none_open(shelf: Shelf, other: Path) -> None:
    opened(shelf, "demo")
    weights = next(other.glob("*.safetensors"))
    aside = weights.rename(other.parent / "aside")
    with pytest.raises(CheckpointError):
        opened(shelf, "other")
    assert (shelf.llm, shelf.current) == (None, "demo")
    aside.rename(weights)
    assert opened(shelf, "other") is shelf.llm


def test_a_ceiling_that_is_too_small_for_one(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(shelf, "demo")
    monkeypatch.setattr(shelf, "_options", OpenOptions(memory="1MiB"))
    with pytest.raises(MemoryCeilingError, match="least that works"):
        opened(shelf, "other")
    assert shelf.llm is None


def test_files_that_are_of_another_model_by_now(shelf: Shelf, other: Path) -> None:
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": config["rms_norm_eps"] * 2}))
    with pytest.raises(CheckpointError, match="holds another model than when the server began"):
        opened(shelf, "other")


def test_what_is_found_wrong_before_anything_is_open(other: Path, tmp_path: Path) -> None:
    adapter = LoraCase().write(tmp_path / "style", other, 1)
    both = {"demo": "demo", "other": str(other)}
    with pytest.raises(UsageError, match="An adapter is of one model, and several are served"):
        Shelf.read(both, OpenOptions(adapters=(str(adapter),)))
    with pytest.raises(CheckpointError, match="no such directory"):
        Shelf.read(both | {"third": str(tmp_path / "third")}, OPTIONS)
    with pytest.raises(UsageError, match="context"):
        Shelf.read(both, OpenOptions(context=10**7))
    write_checkpoint(tmp_path / "textless", tiny_config())
    with pytest.raises(UsageError, match="draft"):
        Shelf.read(both, OpenOptions(draft=str(tmp_path / "textless")))
    (other / "tokenizer.json").write_text("{")
    with pytest.raises(PenstockError, match=r"tokenizer\.json"):
        Shelf.read(both, OPTIONS)


def test_a_draft_for_all_of_them(other: Path, tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    shutil.copytree(other, draft)
    with Shelf.read({"demo": "demo", "other": str(other)}, OpenOptions(draft=str(draft))) as shelf:
        for name in shelf.names:
            assert opened(shelf, name).draft is not None


def test_one_model_is_read_once(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    read = KnownModel.read

    def noted(path: Path, options: OpenOptions) -> KnownModel:
        reads.append(path)
        return read(path, options)

    monkeypatch.setattr(KnownModel, "read", noted)
    with Shelf.read({"other": str(other)}, OPTIONS) as shelf:
        shelf.open_first()
        assert shelf.llm is not None
        assert shelf.llm.tokenizer is shelf.known("other").tokenizer
    assert reads == [other]
