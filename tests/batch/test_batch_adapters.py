"""Batches whose requests name adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.adapters import LoraCase
from helpers.batches import Ending, ask, by_id, run_batch, write_requests
from helpers.http_siege import write_model
from penstock.batch.run import Summary
from penstock.errors import UsageError

NAMES = ("model", "one", "two")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    write_model(path)
    for seed, name in enumerate(NAMES[1:]):
        LoraCase().write(path.parent / name, path, seed)
    return path


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    asked = [ask(f"{name} {n}", model=name, max_tokens=5 + n, ignore_eos=True) for n in range(2) for name in NAMES]
    return write_requests(tmp_path / "in.jsonl", asked)


def run(model: Path, source: Path, out: Path, *names: str, **settings: Any) -> Summary:
    given = tuple(name if "=" in name else str(model.parent / name) for name in names)
    return run_batch(source, out, model=str(model), adapters=given, **settings)


def texts(out: Path) -> dict[str | None, str]:
    return {one: record["response"]["body"]["choices"][0]["text"] for one, record in by_id(out).items()}


def test_each_line_through_its_own(model: Path, requests: Path, tmp_path: Path) -> None:
    run(model, requests, tmp_path / "out", "one", "two")
    bodies = {one: record["response"]["body"] for one, record in by_id(tmp_path / "out").items()}
    assert all(body["model"] == str(one).split()[0] for one, body in bodies.items())
    found = texts(tmp_path / "out")
    assert len({found[f"{name} 1"] for name in NAMES}) == 3
    run(model, requests, tmp_path / "plain")  # where no adapter is open, names say nothing
    plain = texts(tmp_path / "plain")
    assert {plain[f"{name} 0"] for name in NAMES} == {found["model 0"]}


def test_names_that_nothing_has(model: Path, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", [ask("a", model="three"), ask("b", model="one")])
    assert run(model, source, tmp_path / "out", "one").failed == 1
    error = by_id(tmp_path / "out")["a"]["response"]["body"]["error"]
    assert error["code"] == "model_not_found"
    assert error["message"] == "The model 'three' is not served here. Ask for 'model', 'one', or leave `model` out."


def test_it_goes_on_with_the_same_ones_only(model: Path, requests: Path, tmp_path: Path) -> None:
    run(model, requests, tmp_path / "whole", "one", "two")
    with pytest.raises(KeyboardInterrupt):
        run(model, requests, tmp_path / "out", "one", "two", watcher=Ending(3, KeyboardInterrupt))
    for names in (("one",), (), ("two", f"one={model.parent / 'two'}")):
        with pytest.raises(UsageError, match="begun with another model, or other adapters"):
            run(model, requests, tmp_path / "out", *names)
    run(model, requests, tmp_path / "out", "one", "two")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_the_name_of_the_model(model: Path, requests: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is called 'model', as the model is"):
        run_batch(requests, tmp_path / "out", model=str(model), adapters=(f"model={model.parent / 'one'}",))
