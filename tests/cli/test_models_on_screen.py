"""`penstock list`, `show` and `rm`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import in_process
from helpers.adapters import LoraCase
from helpers.cases import CASES, DEMO
from helpers.on_terminal import OnTerminal
from penstock import LLM, SamplingParams
from penstock.checkpoints.store import find_model
from penstock.packing.pack import pack


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "packed"
    pack(find_model("demo"), path)
    return path


@pytest.fixture
def store(tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a packed model, one that is not finished, and one that does not run; and an empty cache."""
    home = tmp_path / "a [b]home[/b]"
    monkeypatch.setenv("PENSTOCK_HOME", str(home))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    models = home / "models"
    (models / "owner" / "begun" / ".penstock").mkdir(parents=True)
    (models / "owner" / "odd").mkdir()
    (models / "owner" / "odd" / "config.json").write_text('{"model_type": "[b]bert[/b]"}')
    (models / "owner" / "packed").mkdir()
    for file in packed.iterdir():
        os.link(file, models / "owner" / "packed" / file.name)
    return models


class TestList:
    def test_none(self, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "none"))
        assert in_process.penstock("list").stdout.startswith("No models here yet. `penstock pull ")
        assert json.loads(in_process.penstock("list", "--json").stdout) == []

    def test_lines_stay_whole(self, store: Path) -> None:
        result = in_process.penstock("list")
        heading, begun, odd, packed, *problems = result.stdout.splitlines()
        assert heading.split() == ["name", "family", "weights", "on", "disk", "form", "where", "changed"]
        assert begun.split()[:4] == ["owner/begun", "0.0", "MB", "see"]
        assert odd.split()[0] == "owner/odd"
        assert packed.split()[:7] == ["owner/packed", "llama", "6.62", "M", *packed.split()[4:6], "packed"]
        assert problems == [
            "owner/begun: unfinished; `penstock pull owner/begun` goes on",
            f"owner/odd: {store / 'owner' / 'odd' / 'config.json'}: the model_type is '[b]bert[/b]'",
        ]
        assert (result.returncode, result.stderr) == (0, "")

    def test_json(self, store: Path, packed: Path) -> None:
        begun, odd, one = json.loads(in_process.penstock("list", "--json").stdout)
        assert begun["problem"].startswith("unfinished")
        assert odd["problem"].endswith("'[b]bert[/b]'")
        nbytes = sum(file.stat().st_size for file in packed.iterdir())
        expected = {"name": "owner/packed", "path": str(store / "owner" / "packed"), "where": "store", "problem": None}
        expected |= {"bytes": nbytes, "family": "llama", "parameters": 6_622_464, "packed": True, "tuned": False}
        assert {key: value for key, value in one.items() if key != "modified"} == expected

    def test_the_cache_of_the_hub(self, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        snapshot = CASES["gqa-4"].write(tmp_path / "cache" / "models--big--model" / "snapshots" / "0")
        monkeypatch.setattr(
            "huggingface_hub.try_to_load_from_cache",
            lambda name, file: str(snapshot / file) if name == "big/model" else None,
        )
        *_, last = json.loads(in_process.penstock("list", "--json").stdout)
        assert (last["name"], last["where"], last["packed"]) == ("big/model", "Hugging Face cache", False)
        refused = in_process.penstock("rm", "big/model", "--yes")
        assert refused.returncode == 2
        assert "is in the Hugging Face cache, where other programs may use it." in refused.stderr

    @pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read everything")
    def test_one_that_may_not_be_read(self, store: Path) -> None:
        (store / "owner" / "packed" / "config.json").unlink()
        (store / "owner" / "packed" / "config.json").touch(mode=0)
        result = in_process.penstock("list")
        assert (result.returncode, result.stderr) == (0, "")
        assert "owner/packed: " in result.stdout


class TestShow:
    def test_lines(self) -> None:
        result = in_process.penstock("show", "demo")
        assert (result.returncode, result.stderr) == (0, "")
        lines = dict(line.split("  ", 1) for line in result.stdout.splitlines())
        told = {name: text.strip() for name, text in lines.items()}
        assert told["family"] == "llama, 6.62 M weights"
        assert told["layers"] == "6, hidden size 256; 8 heads of 32, 2 of keys and values"
        assert told["tensors"] == "57 BF16, in 1 file, 13.2 MB"
        assert told["packed"] == "no (raw)"
        assert told["chat template"] == "yes"
        assert told["drawn by default"] == "greedy; stops at token 1, 4"

    def test_json(self, store: Path) -> None:
        told = json.loads(in_process.penstock("show", "owner/packed", "--json").stdout)
        assert (told["form"], told["tuned"], told["chat_template"]) == ("packed", False, True)
        assert 0.6 < told["packed_ratio"] < 0.75
        assert told["kv_bytes_per_token"] == {"bf16": 2 * 6 * 2 * 32 * 2, "f32": 2 * 6 * 2 * 32 * 4}
        assert "not tuned (`penstock tune` makes" in in_process.penstock("show", "owner/packed").stdout

    def test_without_a_tokenizer_and_with_sampling(self, tmp_path: Path) -> None:
        path = CASES["gqa-4"].write(tmp_path / "[b]x[/b]")
        (path / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6, "top_p": 0.9}')
        shown = in_process.penstock("show", path).stdout
        assert f"  {path}\n" in shown
        assert "no, and no tokenizer" in shown
        assert "temperature 0.6, top-p 0.9" in shown

    def test_adapters(self, tmp_path: Path) -> None:
        adapter = LoraCase(parts=("q_proj", "down_proj")).write(tmp_path / "mine", DEMO, size=3)
        assert "mine fits: rank " in in_process.penstock("show", "demo", "--adapter", adapter).stdout
        refused = in_process.penstock("show", CASES["gqa-4"].write(tmp_path / "model"), "--adapter", adapter)
        assert (refused.returncode, refused.stdout) == (1, "")


class TestRm:
    def test_with_yes(self, store: Path) -> None:
        result = in_process.penstock("rm", "owner/packed", "owner/begun/", "owner/packed", "--yes")
        assert (result.returncode, result.stderr) == (0, "")
        assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
            "owner/packed is gone",
            "owner/begun is gone",
        ]
        assert in_process.penstock("rm", "owner/odd", "-y").returncode == 0
        assert [path.name for path in store.rglob("*")] == []  # the owner's folder is gone too
        assert [path.name for path in store.parent.iterdir()] == ["models"]

    def test_nobody_to_ask(self, store: Path) -> None:
        result = in_process.penstock("rm", "owner/packed")
        assert result.returncode == 2
        assert result.stderr.endswith("\nGive --yes to delete without asking.\n")
        assert (store / "owner" / "packed" / "config.json").exists()

    @pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
    @pytest.mark.parametrize(("answer", "code"), [("y\r", 0), ("\r", 1), ("\x04", 1)])
    def test_on_a_terminal(self, store: Path, answer: str, code: int) -> None:
        with OnTerminal("rm", "owner/packed", "owner/begun") as terminal:
            terminal.wait_for(lambda raw: "Delete these 2? [y/N]" in raw)
            terminal.type(answer)
            assert terminal.end() == code
        assert (store / "owner" / "packed").exists() == (store / "owner" / "begun").exists() == bool(code)

    @pytest.mark.parametrize(
        ("name", "code", "words"),
        [
            ("demo", 2, "The demo model is a part of Penstock."),
            ("owner/none", 1, "no such directory, and no model of this name"),
            ("../models/owner/packed", 2, "not a model in Penstock's store"),
            ("owner", 2, "not a model in Penstock's store"),
            ("{store}/owner/packed", 2, "not a model in Penstock's store"),
        ],
    )
    def test_what_is_not_its_to_delete(self, store: Path, name: str, code: int, words: str) -> None:
        result = in_process.penstock("rm", "owner/begun", name.format(store=store), "--yes")
        assert result.returncode == code
        assert words in result.stderr
        assert (store / "owner" / "packed").exists()
        assert (store / "owner" / "begun").exists()  # all or nothing

    def test_what_is_in_use(self, store: Path) -> None:
        with LLM.open("owner/packed", draft="none") as llm:
            llm.generate(["x"], SamplingParams(max_tokens=1))
            result = in_process.penstock("rm", "owner/packed", "--yes")
        assert result.returncode == 2
        assert "owner/packed is in use by python" in result.stderr
        assert f"(process {os.getpid()})." in result.stderr

    def test_a_link_leaves_what_it_leads_to(self, store: Path, packed: Path) -> None:
        (store / "owner" / "linked").symlink_to(packed)
        result = in_process.penstock("rm", "owner/linked", "--yes")
        assert result.stdout == "owner/linked is gone: only a link to it was here\n"
        assert (packed / "config.json").exists()
        assert not (store / "owner" / "linked").is_symlink()

    def test_killed_in_between(self, store: Path) -> None:
        """What is left has no name, and goes with the next one that is removed."""
        code = (
            "import os, shutil, sys; shutil.rmtree = lambda path: os._exit(9); sys.argv = ['penstock', 'rm',"
            " 'owner/packed', '--yes']; from penstock.cli import main; main()"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
        assert not (store / "owner" / "packed").exists()
        assert [path.name[:8] for path in store.parent.iterdir() if path != store] == ["removed-"]
        assert "owner/packed" not in in_process.penstock("list").stdout
        assert in_process.penstock("run", "owner/packed", "x").returncode == 1
        assert in_process.penstock("rm", "owner/odd", "--yes").returncode == 0
        assert [path.name for path in store.parent.iterdir()] == ["models"]
