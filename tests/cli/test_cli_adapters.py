"""--adapter on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.adapters import LoraCase
from helpers.cases import DEMO
from penstock import LLM, SamplingParams
from penstock.batch.run import BatchSettings
from penstock.cli.opening import opening
from penstock.options import OpenOptions

PROMPT = "def add(a, b):"
RAW = ("--raw", PROMPT, "--temperature", "0", "--max-tokens", "8")


def penstock(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *arguments]
    return subprocess.run(command, input="", capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapters") / "style"
    return LoraCase(parts=("q_proj", "down_proj")).write(path, DEMO, size=3)


@pytest.fixture(scope="module")
def answers(style: Path) -> dict[str | None, str]:
    params = SamplingParams(temperature=0, max_tokens=8)
    with LLM.open("demo", adapters=[style]) as llm:
        return {name: llm.generate([PROMPT], params, adapter=name)[0].text for name in ("style", None)}


def test_run(style: Path, answers: dict[str | None, str]) -> None:
    assert answers["style"] != answers[None]
    result = penstock("run", "demo", *RAW, "--adapter", str(style))
    assert (result.stdout, result.stderr) == (answers["style"] + "\n", "")
    assert penstock("run", "demo", *RAW).stdout == answers[None] + "\n"


def test_run_takes_one(style: Path) -> None:
    result = penstock("run", "demo", *RAW, "--adapter", str(style), "--adapter", f"other={style}")
    assert result.returncode == 2
    assert result.stderr == (
        "error: Only one adapter can be used here.\nLeave one --adapter; batch and serve take several.\n"
    )


def test_a_session_knows_it(style: Path, tmp_path: Path, answers: dict[str | None, str]) -> None:
    talk = ("run", "demo", *RAW, "--session", str(tmp_path / "talk"))
    assert penstock(*talk, "--adapter", str(style)).stdout == answers["style"] + "\n"
    refused = penstock(*talk)
    assert refused.returncode == 1
    assert "was made with an adapter" in refused.stderr


def test_a_broken_one(tmp_path: Path) -> None:
    result = penstock("run", "demo", *RAW, "--adapter", str(tmp_path))
    assert result.returncode == 1
    assert result.stderr == (
        f"error: {tmp_path} has no adapter_config.json\nGive the directory of an adapter as PEFT saves it.\n"
    )


def test_bench(style: Path) -> None:
    short = ("bench", "demo", "--passes", "2", "--json")
    result = penstock(*short, "--adapter", str(style))
    assert json.loads(result.stdout)["batch"] == 1
    assert penstock(*short, "--adapter", str(style), "--adapter", f"a={style}").returncode == 2
    refused = penstock("bench", "demo", "--speculate", "--random", "--adapter", str(style))
    assert refused.stderr.startswith("error: --adapter has no meaning here.")


@pytest.mark.parametrize("model", ["demo", "llama-3.2-1b"])
def test_plan(style: Path, model: str, tmp_path: Path) -> None:
    if model != "demo":
        result = penstock("plan", model, "--adapter", str(style))
        assert result.returncode == 1
        assert "Use it with the model that it was trained for." in result.stderr
        return
    nbytes = json.loads(penstock("plan", model, "--adapter", str(style), "--json").stdout)["memory"]["adapters"]
    assert nbytes == pytest.approx((style / "adapter_model.safetensors").stat().st_size, rel=0.05)
    lines = penstock("plan", model, "--adapter", str(style)).stdout.splitlines()
    assert any(line.split()[:1] == ["adapters"] for line in lines)
    assert not any("adapters" in line for line in penstock("plan", model).stdout.splitlines())


def test_batch(style: Path, tmp_path: Path, answers: dict[str | None, str]) -> None:
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/completions"}
        | {"body": {"model": name, "prompt": PROMPT, "max_tokens": 8, "temperature": 0}}
        for name in ("demo", "mine")
    ]
    (tmp_path / "in").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = penstock("batch", "demo", str(tmp_path / "in"), str(tmp_path / "out"), "--adapter", f"mine={style}", "-q")
    assert (result.stdout, result.stderr) == ("", "")
    records = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    texts = [record["response"]["body"]["choices"][0]["text"] for record in records]
    assert texts == [answers[None], answers["style"]]


def test_serve_wants_other_names(style: Path) -> None:
    pytest.importorskip("uvicorn")
    result = penstock("serve", "demo", "--port", "0", "--adapter", f"demo={style}")
    assert result.returncode == 2
    assert result.stderr.startswith("error: An adapter is called 'demo', as the model is.")


def test_settings_have_them() -> None:
    options = OpenOptions(adapters=("a=x", "b=y"))
    settings = BatchSettings(model="demo", source=Path("in"), out=Path("out"), **opening(options))
    assert settings.adapters == ("a=x", "b=y")
