from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import loading
import numpy as np
import pytest
from checkpoint import read_tensors
from limit import Limits, Report
from loading import FOLDER, WAYS, Setting, part_of, split, streamed_bytes, ways

from helpers.cases import DEMO
from penstock.errors import PenstockError


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.layers.3.mlp.up_proj.weight", ("layers3", "mlp.up_proj.weight")),
        ("model.embed_tokens.weight", ("embed_tokens", "weight")),
        ("model.norm.weight", ("norm", "weight")),
        ("lm_head.weight", ("lm_head", "weight")),
    ],
)
def test_parts(name: str, part: tuple[str, str]) -> None:
    assert part_of(name) == part


class TestCopy:
    def test_the_first_layers_one_file_each(self, tmp_path: Path) -> None:
        split(DEMO, tmp_path / "copy", 2)
        files = {file.stem for file in (tmp_path / "copy" / FOLDER).iterdir()}
        assert files == {"embed_tokens", "layers0", "layers1", "norm", "lm_head"}
        assert json.loads((tmp_path / "copy/config.json").read_text())["num_hidden_layers"] == 2
        whole = {"/".join(part_of(name)): tensor.words() for name, tensor in read_tensors(DEMO).items()}
        for file in (tmp_path / "copy" / FOLDER).iterdir():
            (tmp_path / file.stem).mkdir()
            file.rename(tmp_path / file.stem / file.name)
            for name, tensor in read_tensors(tmp_path / file.stem).items():
                assert np.array_equal(tensor.words(), whole[f"{file.stem}/{name}"])

    def test_bytes_of_a_token(self, tmp_path: Path) -> None:
        (tmp_path / FOLDER).mkdir()
        for name, size in {"embed_tokens": 10, "layers0": 3, "lm_head": 10}.items():
            (tmp_path / FOLDER / f"{name}.safetensors").write_bytes(bytes(size))
        assert streamed_bytes(tmp_path) == 13
        (tmp_path / FOLDER / "lm_head.safetensors").unlink()
        assert streamed_bytes(tmp_path) == 13  # the embedding is the head


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Limits]]:
    """Scripts that were run, and under which limits; each prints a result, but one that is named "fails"."""
    calls: list[tuple[str, Limits]] = []

    def run(command: list[str], limits: Limits, *, stdout: Any, stderr: Any) -> Report:
        name = Path(command[1]).name
        calls.append((name, limits))
        stdout.write(json.dumps({"seconds_per_token": [9, 1, 2]}).encode())
        stderr.write(b"no torch here\n")
        return Report(int(name == "fails"), None, 0, 1.0)

    monkeypatch.setattr(loading, "run_limited", run)
    return calls


class TestRuns:
    def test_by_turns_without_the_first_token(self, calls: list[tuple[str, Limits]], tmp_path: Path) -> None:
        limits = Limits(1 << 30, 10**6, "8:0")
        assert ways(Setting("python", tmp_path, limits), 2, 2) == {name: [1, 2, 1, 2] for name in WAYS}
        assert calls == [(script, limits) for script in WAYS.values()] * 2

    def test_one_file_alone_has_all_the_memory(self, calls: list[tuple[str, Limits]], tmp_path: Path) -> None:
        Setting("python", tmp_path, Limits(1 << 30, 10**6, "8:0")).run("load_file.py", memory=False)
        assert calls == [("load_file.py", Limits(None, 10**6, "8:0"))]

    @pytest.mark.usefixtures("calls")
    def test_a_failure(self, tmp_path: Path) -> None:
        with pytest.raises(PenstockError, match="fails ended with status 1: no torch here"):
            Setting("python", tmp_path, Limits(None, None, "")).run("fails")
