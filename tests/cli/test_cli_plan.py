from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from helpers.cases import CASES
from helpers.hub_server import serve
from penstock import LLM, cli
from penstock.checkpoints.store import find_model
from penstock.cli.plan_guesses import verdict
from penstock.forecast import outlook
from penstock.forecast.guess_plan import Guesses
from penstock.packing.pack import pack
from penstock.stages.probe import DraftSpeed, measure_disk
from penstock.stages.rates import ComputeSpeed
from penstock.synth.shapes import SHAPES
from penstock.system import machine
from penstock.weights.sizes import StoredSize

SHARES = ("process", "scratch", "ring", "allowance", "kv", "activations", "resident")
MIB = 1 << 20


class Terminal:
    """The command line within this process, with short measurements."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        monkeypatch.setattr(outlook, "PROBE_BYTES", 4 * MIB)
        monkeypatch.setattr(outlook, "PROBE_FILE_BYTES", MIB)
        monkeypatch.setattr(outlook, "measure_compute", lambda *_, **__: ComputeSpeed(20e9, 100e9, 10e9, 80e9, 15e9))
        monkeypatch.setattr(outlook, "measure_drafting", lambda *_, **__: DraftSpeed(40e9, 20e9, 30e9, 15e9))
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
        monkeypatch.setenv("PENSTOCK_HOME", str(store))
        monkeypatch.setenv("COLUMNS", "120")

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["penstock", "plan", *arguments])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        output = self._capsys.readouterr()
        return int(exited.value.code or 0), output.out, output.err

    def json(self, *arguments: str) -> dict[str, Any]:
        code, out, err = self(*arguments, "--json")
        assert (code, err) == (0, "")
        said: dict[str, Any] = json.loads(out)
        return said


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "home" / "store"


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, store: Path) -> Terminal:
    return Terminal(capsys, monkeypatch, store)


class TestModelsThatAreHere:
    def test_shares_of_the_ceiling(self, plan: Terminal) -> None:
        said = plan.json("demo", "--memory", "4GiB", "--threads", "1")
        memory = said["memory"]
        assert memory["ceiling"] == 4 << 30
        assert sum(memory[name] for name in SHARES) <= memory["ceiling"]
        with LLM.open("demo", memory="4GiB") as llm:
            assert (memory["resident"], memory["streamed"]) == (llm.weights.pass_bytes, 0)
            assert said["context"] == min(2048, llm.context)
        assert 0 <= memory["tokenizer"] < memory["process"]
        assert (said["basis"], said["threads"]) == ("the model's own files", 1)
        assert said["seconds_per_token"] == said["token"]["seconds"] == memory["resident"] / 20e9

    def test_the_disk_is_measured_with_the_models_files(
        self, plan: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        asked = []

        def measured(paths: Any, *arguments: Any, **options: Any) -> Any:
            asked.append([path.name for path in paths])
            return measure_disk(paths, *arguments, **options)

        monkeypatch.setattr(outlook, "measure_disk", measured)
        said = plan.json(str(CASES["shards"].write(tmp_path / "model")))
        assert asked == [[f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]]
        assert said["disk_basis"] == "direct reads of the model's own files"
        assert said["disk_bytes_per_second"] > 0

    def test_prompts(self, plan: Terminal, tmp_path: Path) -> None:
        path = str(CASES["gqa-4"].write(tmp_path))  # of 512 positions
        assert [*plan.json(path)["first_token"]] == ["16", "512", "4096"]
        said = plan.json(path, "--prompt-tokens", "100", "--prompt-tokens", "600")
        assert said["first_token"]["100"]["passes"] == 1
        assert said["first_token"]["600"] is None

    def test_context_and_type_of_the_cache(self, plan: Terminal, tmp_path: Path) -> None:
        path = str(CASES["gqa-4"].write(tmp_path))
        small, large, wide = (
            plan.json(path, *options)["memory"]["kv"]
            for options in (("--context", "32"), ("--context", "320"), ("--context", "32", "--kv-dtype", "f32"))
        )
        assert (large, wide) == (10 * small, 2 * small)

    def test_tables(self, plan: Terminal) -> None:
        code, out, err = plan("demo", "--memory", "4GiB", "--prompt-tokens", "9")
        assert (code, err) == (0, "")
        for words in ("the ceiling", "4,096", "tokenizer", "keys and values of", "a further token", "after 9 tokens"):
            assert words in out
        assert "GB/s" in out
        assert "The sizes rest on the model's own files" in out

    def test_brackets_in_paths(self, plan: Terminal, tmp_path: Path) -> None:
        path = CASES["gqa-4"].write(tmp_path / "[b]x[/b]")
        code, out, _ = plan(str(path))
        assert code == 0
        assert "[b]x[/b]" in out.replace("\n", "")


class TestModelsThatAreNot:
    def test_brackets_in_the_stores_path(self, plan: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "[b]x[/b]").mkdir(parents=True)
        monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "[b]x[/b]"))
        monkeypatch.setenv("COLUMNS", "400")
        code, out, _ = plan("smollm2-135m", "--memory", "4GiB")
        assert code == 0
        assert f"random numbers in {tmp_path / '[b]x[/b]'}" in out

    @pytest.mark.parametrize("name", ["llama-3.1-8b", "Llama-3.1-8B"])
    def test_a_shape_by_name(self, plan: Terminal, store: Path, name: str) -> None:
        said = plan.json(name, "--memory", "3GiB")
        memory = said["memory"]
        assert sum(memory[share] for share in SHARES) == memory["ceiling"] == 3 << 30
        assert memory["resident"] + memory["streamed"] == 15_009_316_864
        assert 45e6 < memory["tokenizer"] < 60e6
        assert said["token"]["bytes_read"] == memory["streamed"]
        assert said["first_token"]["16"]["bytes_read"] == 15_009_316_864
        assert said["basis"] == "the shape llama-3.1-8b as published; the tokenizer is estimated"
        assert str(store.parent.parent) in said["disk_basis"]

    def test_nothing_stays_on_the_disk(self, plan: Terminal, tmp_path: Path) -> None:
        plan.json("smollm2-135m", "--memory", "4GiB")
        assert list(tmp_path.iterdir()) == []

    def test_room_for_a_long_context(self, plan: Terminal) -> None:
        most = plan.json("llama-3.1-8b", "--memory", "4GiB")["most_context"]
        assert plan.json("llama-3.1-8b", "--memory", "4GiB", "--context", str(most - 64))["context"] == most - 64
        code, _, err = plan("llama-3.1-8b", "--memory", "4GiB", "--context", str(most + 2048))
        assert code == 2
        assert "The least that works is" in err

    @pytest.mark.thorough
    def test_the_hub(self, store: Path) -> None:
        with serve({"owner/model": dict(SHAPES["llama-3.2-1b"])}) as hub:
            command = [sys.executable, "-m", "penstock", "plan", "owner/model", "--memory", "1GiB", "--json"]
            environment = hub.environment | {"PENSTOCK_HOME": str(store), "HF_HOME": str(store.parent / "hf")}
            result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert (result.stderr, result.returncode) == ("", 0)
        said = json.loads(result.stdout)
        assert said["basis"] == "config.json of owner/model on the Hub; the tokenizer is estimated"
        assert said["memory"]["resident"] + said["memory"]["streamed"] == 2_471_493_632
        assert not store.exists()

    def test_a_hub_cache_that_has_only_the_config(
        self, plan: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outlook, "find_model", lambda model: tmp_path)
        monkeypatch.setattr(outlook, "repo_config", lambda repo: dict(SHAPES["smollm2-135m"]))
        assert plan.json("owner/model")["basis"].startswith("config.json of owner/model on the Hub")


class TestForms:
    def test_side_by_side(self, plan: Terminal) -> None:
        code, out, err = plan("llama-3.1-8b", "--memory", "3GiB", "--prompt-tokens", "9")
        assert (code, err) == (0, "")
        lines = [" ".join(line.split()) for line in out.splitlines()]
        assert "raw packed, estimated" in lines
        assert "weights of a pass 15.01 GB 10.10 GB" in lines
        for words in ("that stay in memory", "read in every pass", "a further token", "the first, after 9 tokens"):
            assert any(line.startswith(words) for line in lines[lines.index("raw packed, estimated") :])
        assert "`penstock pull REPO` packs it losslessly while it downloads, `penstock pack SRC OUT` when" in out

    def test_on_the_hub(self, plan: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outlook, "repo_config", lambda repo: dict(SHAPES["smollm2-135m"]))
        assert "`penstock pull owner/model` packs it" in plan("owner/model", "--memory", "4GiB")[1]

    def test_here_and_packed(self, plan: Terminal, tmp_path: Path) -> None:
        _, out, _ = plan("demo", "--memory", "4GiB")
        assert "raw, as it is  packed, estimated" in out
        assert "`penstock pack demo OUT` packs it, losslessly." in out
        pack(find_model("demo"), tmp_path / "a model")
        _, out, _ = plan(str(tmp_path / "a model"), "--memory", "4GiB")
        assert "raw  packed, as it is" in out
        assert "Forecast: packed, as it is" in out
        assert f"`penstock unpack '{tmp_path / 'a model'}' OUT` gives the" in out.replace("\n", " ")

    def test_nothing_to_pack(self, plan: Terminal, tmp_path: Path) -> None:
        _, out, _ = plan(str(CASES["f16"].write(tmp_path)))
        assert "Packing gains nothing here: only matrices of 65,536 or more BF16 weights are packed." in out
        for words in ("Raw and packed", "penstock pack", "many rows, packed"):
            assert words not in out

    def test_one_form_does_not_fit(self, plan: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outlook, "packed_size", lambda matrices: StoredSize(10**6, 10**6, 10**6, chunk=1 << 40))
        _, out, _ = plan("demo", "--memory", "4GiB")
        [line] = [line for line in out.splitlines() if "weights of a pass" in line]
        assert line.split()[-3:] == ["does", "not", "fit"]


class TestGuesses:
    @pytest.fixture(autouse=True)
    def process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Other tests have brought who knows what into this one."""
        monkeypatch.setattr(machine, "footprint", lambda: machine.Footprint(100 * MIB, 50 * MIB))

    def test_a_shape_with_a_draft(self, plan: Terminal) -> None:
        code, out, err = plan("llama-3.1-8b", "--memory", "4GiB", "--context", "512", "--draft", "Llama-3.2-1B")
        assert (code, err) == (0, "")
        lines = [" ".join(line.split()) for line in out.splitlines()]
        assert "What guessing takes: raw, with Llama-3.2-1B" in lines
        assert "What guessing takes: packed, estimated" in lines
        assert "What guessing takes: packed, estimated, with Llama-3.2-1B" in lines
        assert any(line.startswith("the draft's weights") and "4 bits a weight" in line for line in lines)
        assert any(line.startswith("coarse weights 2.81 GB") and line.endswith("all layers guess") for line in lines)
        for form in ("raw", "packed, estimated"):
            title = f"Forecast with guesses: {form}; the chances of a first, second, third guess are assumed"
            table = lines[lines.index(title) + 1 : lines.index(title) + 7]
            assert any(line.startswith("0.70, 0.12, 0.05 the draft") for line in table)
            assert any(line.startswith("0.85, 0.06, 0.02 the draft") for line in table)
            assert any(line.startswith("without guesses 1.00") for line in table)
        assert sum(line.startswith("The draft Llama-3.2-1B ") for line in lines) == 2
        assert "How often guesses are right is assumed here, not measured" in out

    def test_layers_that_are_left_out(self, plan: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        said = {plan("llama-3.1-8b", "--memory", f"{mib}MiB", "--context", "512")[1] for mib in (2000, 3000)}
        words = ("too little of them stays in memory to guess with", "of 32 layers guess")
        assert all(any(word in out for out in said) for word in words)

    def test_a_raw_model_has_nothing_to_guess_with(self, plan: Terminal, tmp_path: Path) -> None:
        _, out, _ = plan(str(CASES["f16"].write(tmp_path)))
        assert "guessing" not in out

    def test_a_draft_that_does_not_fit(self, plan: Terminal) -> None:
        _, out, _ = plan("llama-3.1-8b", "--memory", "700MiB", "--context", "64", "--draft", "llama-3.2-1b")
        assert out.count("The draft llama-3.2-1b does not fit under the ceiling.") == 2

    @pytest.mark.parametrize(
        ("pays", "words"),
        [
            ((True, True), "The draft x pays, under either assumption."),
            ((False, False), "The draft x does not pay, under either assumption: its memory brings more as room for"),
            ((False, True), "The draft x pays only where it is right as often as 0.85, 0.06, 0.02."),
        ],
    )
    def test_verdicts(self, plan: Terminal, pays: tuple[bool, ...], words: str) -> None:
        fits: Any = object()
        assert verdict(Guesses(None, fits, "x", pays)).startswith(words)

    def test_json(self, plan: Terminal) -> None:
        said = plan.json("llama-3.1-8b", "--memory", "4GiB", "--context", "512", "--draft", "llama-3.2-1b")
        assert said["guesses"] == said["raw"]["guesses"]
        packed = said["packed"]["guesses"]
        assert packed["own"]["tier_layers"] == packed["own"]["layers"] == 32
        assert [forecast["drafter"] for forecast in packed["own"]["forecasts"]] == ["coarse", "coarse"]
        assert packed["drafted"]["draft_form"] == "4 bits"
        assert said["draft_weights_per_second"]["coarse_row"] == 40e9

    def test_none(self, plan: Terminal) -> None:
        assert plan.json("demo", "--draft", "none")["guesses"] is None
        assert "What guessing takes" not in plan("demo", "--draft", "none")[1]


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (("no-such-model",), 1, "Shapes are known by name too: llama-3.1-8b, "),
            (("llama-3.1-8b", "--memory", "90MiB"), 2, "The least that works is"),
            (("demo", "--memory", "9MiB"), 2, "The least that works is"),
            (("demo", "--memory", "lots"), 2, "'lots' is not a size"),
            (("demo", "--context", "1"), 2, "A context of 1 is out of range"),
            (("smollm2-135m", "--context", "8193"), 2, "the model was trained for 8192 positions"),
            (("demo", "--kv-dtype", "int8"), 2, "kv_dtype='int8'"),
            (("smollm2-135m", "--kv-dtype", "int8"), 2, "kv_dtype='int8'"),
            (("demo", "--prompt-tokens", "0"), 2, "A prompt has at least one token."),
            (("demo", "--draft", "smollm2-135m"), 2, "has a vocabulary of 49152 tokens, and the model has 4096"),
            (("demo", "--draft", "no-such-model"), 1, "no-such-model: no such directory"),
            (("demo", "--threads", "0"), 2, "0 threads: a whole number from 1"),
        ],
    )
    def test_one_message(
        self, plan: Terminal, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
    ) -> None:
        result = plan(*arguments)
        assert (result[0], result[1]) == (code, "")
        assert result[2].startswith("error: ")
        assert words in result[2]
        assert list(tmp_path.iterdir()) == []

    def test_a_config_that_is_no_llamas(self, plan: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outlook, "repo_config", lambda repo: {"model_type": "mamba"})
        code, _, err = plan("owner/mamba")
        assert code == 1
        assert "config.json of owner/mamba on the Hub: the model_type is 'mamba'" in err
