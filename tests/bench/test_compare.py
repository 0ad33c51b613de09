from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import compare
import measure
import numpy as np
import pytest
import timing
from checkpoint import read_tensors
from compare import Comparison, parse, setting_of
from contestants import PENSTOCK, Peer, penstock_command
from gguf_file import contents, gguf_name, interleave, rope_divisors
from limit import Limits, Report, exit_on_signals
from measure import Setting, result_of
from results import Result, ratio, save
from rich.console import Console
from show_results import COLUMNS, cells, plot, show

from helpers.cases import DEMO
from helpers.family_reading import rope_frequencies
from helpers.reference import read_weights
from helpers.reference import rotate as rotate_halves
from penstock.errors import UsageError

FAKE_PEER = """
import json, pathlib, sys
action, model, copy = sys.argv[1:4]
copy = pathlib.Path(copy)
if action == "prepare":
    copy.mkdir()
    (copy / "weights").write_text("w")
else:
    seconds = {"open_seconds": 0.5, "seconds_per_token": [9, 4, 6, 5]}
    print(json.dumps({"version": "1.0", "found": copy.exists(), **seconds}))
"""
FAKE_PENSTOCK = "import json; print(json.dumps({'open_seconds': 1.0, 'seconds_per_pass': [3.0, 2.0, 2.5, 3.0]}))"
PEER = Peer("fake", "", ("json",), "pip install fake", "--fake-python")


def peer(tmp_path: Path, program: str = FAKE_PEER, modules: tuple[str, ...] = ("json",)) -> Peer:
    (tmp_path / "peer.py").write_text(program)
    return replace(PEER, script=str(tmp_path / "peer.py"), modules=modules)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "scratch").mkdir()
    return Setting(tmp_path / "model", None, tmp_path / "scratch", "8:0", 10**6, 3 << 30, 4 << 30, 2, 3, 60.0)


@pytest.fixture
def caps(monkeypatch: pytest.MonkeyPatch) -> list[Limits]:
    """Commands run without limits; the limits that they would have had."""
    caps: list[Limits] = []

    def run(command: list[str], limits: Limits, *, stdout: Any, stderr: Any = None, timeout: float) -> Report:
        caps.append(limits)
        result = subprocess.run(command, stdout=stdout, stderr=stderr, timeout=timeout)
        return Report(result.returncode, 1 << 30, 0, 1.0)

    monkeypatch.setattr(measure, "run_limited", run)
    monkeypatch.setattr(measure, "probe", lambda _: 5e8)
    monkeypatch.setattr(compare, "SPARE_BYTES", 0)
    monkeypatch.setattr(compare, "penstock_command", lambda *_: [sys.executable, "-c", FAKE_PENSTOCK])
    return caps


def comparison(setting: Setting, out: Path | None = None) -> Comparison:
    return Comparison(setting, out, Console(quiet=True))


def names(results: list[Result]) -> list[str]:
    return [result.contestant for result in results]


class TestRuns:
    def test_penstock_runs_beside_each_peer(self, setting: Setting, caps: list[Limits], tmp_path: Path) -> None:
        runs = comparison(setting)
        one = peer(tmp_path)
        runs.run({one: sys.executable, replace(one, name="other"): sys.executable})
        assert names(runs.results) == [PENSTOCK, "fake", PENSTOCK, "other", PENSTOCK]
        assert [cap.memory for cap in caps] == [3 << 30, 4 << 30, 3 << 30, 4 << 30, 3 << 30]
        assert {(cap.read, cap.device) for cap in caps} == {(10**6, "8:0")}

    @pytest.mark.usefixtures("caps")
    def test_what_is_recorded(self, setting: Setting, tmp_path: Path) -> None:
        runs = comparison(setting, tmp_path / "out.json")
        runs.run({peer(tmp_path): sys.executable})
        result = runs.results[1]
        assert (result.version, result.open_seconds, result.first_seconds, result.median_seconds) == ("1.0", 0.5, 9, 5)
        assert (result.peak_bytes, result.memory_cap_bytes) == (1 << 30, 4 << 30)
        assert result.disk_bytes_per_second == 5e8
        assert result.details["found"] is True
        assert result.prepare_seconds is not None
        saved = json.loads((tmp_path / "out.json").read_text())
        assert saved["results"][1]["ratio_to_penstock"] == 2.0
        assert (saved["weight_bytes"], saved["read_cap_bytes_per_second"], saved["model"]) == (1000, 10**6, "model")

    @pytest.mark.usefixtures("caps")
    def test_the_copy_is_gone_afterwards(self, setting: Setting, tmp_path: Path) -> None:
        comparison(setting).run({peer(tmp_path): sys.executable})
        assert not list(setting.scratch.iterdir())

    @pytest.mark.usefixtures("caps")
    def test_a_missing_peer_is_listed(self, setting: Setting, tmp_path: Path) -> None:
        runs = comparison(setting)
        runs.run({peer(tmp_path, modules=("json", "no_such_module")): sys.executable})
        assert names(runs.results) == ["fake", PENSTOCK]
        assert runs.results[0].note == (
            "missing: ModuleNotFoundError: No module named 'no_such_module'; "
            "pip install fake, and name that Python: --fake-python"
        )

    def test_a_missing_python(self) -> None:
        note = PEER.missing("/no/python")
        assert note == "/no/python: No such file or directory; pip install fake, and name that Python: --fake-python"

    @pytest.mark.usefixtures("caps")
    def test_no_room_for_a_copy(self, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compare, "SPARE_BYTES", 10**18)
        runs = comparison(setting)
        runs.run({peer(tmp_path): sys.executable})
        assert runs.results[0].note.startswith("needs 1000000000.0 GB for its copy; ")
        assert names(runs.results) == ["fake", PENSTOCK]

    @pytest.mark.usefixtures("caps")
    def test_a_copy_that_fails(self, setting: Setting, tmp_path: Path) -> None:
        runs = comparison(setting)
        program = "import pathlib, sys; pathlib.Path(sys.argv[3]).mkdir(); sys.exit('disk full')"
        runs.run({peer(tmp_path, program): sys.executable})
        assert runs.results[0].note == "made no copy: disk full"
        assert not list(setting.scratch.iterdir())

    @pytest.mark.usefixtures("caps")
    def test_a_crash_keeps_what_was_measured(
        self, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limited: Callable[..., Report] = measure.run_limited

        def run(command: list[str], *args: Any, **options: Any) -> Report:
            if "run" in command:
                raise KeyboardInterrupt
            return limited(command, *args, **options)

        monkeypatch.setattr(measure, "run_limited", run)
        with pytest.raises(KeyboardInterrupt):
            comparison(setting, tmp_path / "out.json").run({peer(tmp_path): sys.executable})
        assert [run["contestant"] for run in json.loads((tmp_path / "out.json").read_text())["results"]] == [PENSTOCK]
        assert not list(setting.scratch.iterdir())

    def test_penstock_command(self) -> None:
        options = {"passes": 4, "prompt-tokens": 16, "memory": 3 << 30, "threads": 2}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command = penstock_command(Path("model"), 3 << 30, 2, 3)
        assert command == [sys.executable, "-m", "penstock", "bench", "model", *words, "--json"]


class TestResultOf:
    @pytest.mark.parametrize(
        ("report", "output", "errors", "note"),
        [
            (Report(-9, 5, 1, 1.0), "", "noise\n", "killed for memory: noise"),
            (Report(-11, 5, 0, 1.0), "", "", "killed: it said nothing"),
            (Report(2, 5, 0, 1.0), "", "first\n╭─╮\n│ no such option │\n╰─╯\n", "exited with 2: no such option"),
            (Report(-9, 5, 0, 61.0, timed_out=True), "", "", "stopped after 61 s (--timeout)"),
            (Report(0, 5, 0, 1.0), '{"open_seconds": 1}', "", "printed no result (KeyError('seconds_per_token'))"),
            (Report(0, 5, 0, 1.0), "[]", "", None),
            (Report(0, 5, 0, 1.0), "loading", "", None),
        ],
    )
    def test_failures(self, report: Report, output: str, errors: str, note: str | None) -> None:
        result = result_of("fake", report, output, errors)
        assert result.note == note if note else result.note.startswith("printed no result")
        assert result.median_seconds is None
        assert result.peak_bytes == 5

    def test_one_token_has_no_median(self) -> None:
        result = result_of("fake", Report(0, 5, 0, 1.0), '{"open_seconds": 1, "seconds_per_token": [2]}', "")
        assert (result.first_seconds, result.median_seconds, result.note) == (2, None, "")


def test_the_probe_reads_the_models_files(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def run(command: list[str], limits: Limits, *, stdout: Any, timeout: float) -> Report:
        commands.append((command, limits))
        subprocess.run([*command, "--bytes", "3000"], stdout=stdout, timeout=timeout, check=True)
        return Report(0, 1, 0, 1.0)

    monkeypatch.setattr(measure, "run_limited", run)
    speed = measure.probe(setting)
    assert speed is not None
    assert speed > 0
    assert commands[0][0][-1] == str(setting.model / "model.safetensors")
    assert commands[0][1] == Limits(None, 10**6, "8:0")


def run_of(name: str, *seconds: float) -> Result:
    return Result(name, seconds_per_token=list(seconds))


class TestRatio:
    RUNS = (
        run_of(PENSTOCK, 9, 2),
        run_of("a", 9, 9),
        run_of(PENSTOCK, 9, 4),
        Result("missing", note="missing"),
        Result(PENSTOCK, note="killed"),
        run_of("b", 9, 10),
        run_of(PENSTOCK, 9, 6),
    )

    @pytest.mark.parametrize(("index", "expected"), [(0, None), (1, 3.0), (3, None), (4, None), (5, 2.0), (6, None)])
    def test_to_the_neighbours(self, index: int, expected: float | None) -> None:
        assert ratio(list(self.RUNS), index) == expected

    def test_one_neighbour(self) -> None:
        assert ratio([run_of("a", 9, 9), run_of(PENSTOCK, 9, 3)], 0) == 3.0

    def test_no_neighbour(self) -> None:
        assert ratio([run_of("a", 9, 9)], 0) is None

    def test_table(self) -> None:
        assert dict(zip(COLUMNS, cells(list(self.RUNS), 1), strict=True)) == {
            "open s": "-",
            "first token s": "9.00",
            "s a token": "9.00",
            "times Penstock": "3.00",
            "peak MiB": "-",
            "of MiB": "-",
            "disk MB/s": "-",
        }
        out = StringIO()
        show(list(self.RUNS), Console(file=out, width=120))
        text = out.getvalue()
        assert "missing: missing" in text
        assert "Penstock: killed" in text

    def test_plot(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        plot(list(self.RUNS), "title", tmp_path / "plot.png")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")

    def test_a_failing_write_keeps_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save(tmp_path / "out.json", list(self.RUNS), {})
        before = (tmp_path / "out.json").read_text()

        def fail(*_: Any) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(Path, "write_text", fail)
        with pytest.raises(OSError, match="disk full"):
            save(tmp_path / "out.json", [], {})
        assert (tmp_path / "out.json").read_text() == before


class TestOptions:
    def args(self, setting: Setting, *words: str) -> argparse.Namespace:
        return parse([str(setting.model), "--work", str(setting.scratch), *words])

    def fails(self, args: argparse.Namespace, problem: str, remedy: str) -> None:
        with pytest.raises(UsageError) as caught:
            setting_of(args, args.work)
        assert (caught.value.problem, caught.value.remedy) == (problem, remedy)

    def test_peers_share_the_cap_unless_told(self, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compare, "whole_disk", lambda _: "8:0")
        parsed = setting_of(self.args(setting, "--read", "524MB", "--memory", "3GiB"), setting.scratch)
        assert (parsed.memory, parsed.peer_memory) == (3 << 30, 3 << 30)
        assert (parsed.read, parsed.device) == (524_000_000, "8:0")
        parsed = setting_of(self.args(setting, "--peer-memory", "4GiB"), setting.scratch)
        assert (parsed.peer_memory, parsed.read, parsed.device) == (4 << 30, None, "")

    def test_not_a_checkpoint(self, setting: Setting) -> None:
        args = self.args(setting)
        args.model = setting.scratch
        self.fails(args, f"{setting.scratch} holds no *.safetensors.", "Name a checkpoint's directory.")

    def test_no_tokens(self, setting: Setting) -> None:
        self.fails(self.args(setting, "--tokens", "0"), "--tokens 0 leaves nothing to measure.", "Ask for at least 1.")

    def test_model_and_copies_on_two_disks(self, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compare, "whole_disk", lambda path: str(path))
        problem = (
            f"{setting.scratch} is not on the disk of {setting.model}, "
            "so the cap on reads would hold for one of them alone."
        )
        self.fails(self.args(setting, "--read", "1MB"), problem, "Give a --work directory on the same disk.")
        args = self.args(setting, "--read", "1MB", "--disk", "/dev/sda")
        assert setting_of(args, setting.scratch).device == "/dev/sda"

    def test_unknown_peers(self, setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            self.args(setting, "--peers", "vllm")
        assert "invalid choice: 'vllm'" in capsys.readouterr().err

    def test_signals_unwind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        handlers: dict[int, Callable[[int, object], None]] = {}
        monkeypatch.setattr(signal, "signal", lambda number, handler: handlers.update({number: handler}))
        exit_on_signals()
        with pytest.raises(SystemExit) as caught:
            handlers[signal.SIGTERM](signal.SIGTERM, None)
        assert caught.value.code == 128 + signal.SIGTERM


class TestTiming:
    def test_each_token_is_timed(self) -> None:
        text = timing.measure("fake", "1.0", lambda: lambda count: iter(range(count)), 4)
        result = json.loads(text)
        assert (result["peer"], result["version"], result["tokens"]) == ("fake", "1.0", [0, 1, 2, 3])
        assert len(result["seconds_per_token"]) == 4
        assert result["median_seconds_per_token"] == np.median(result["seconds_per_token"][1:])

    def test_only_the_result_is_on_standard_output(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def open_copy(model: Path, copy: Path, threads: int) -> Callable[[int], Iterator[int]]:
            print("noise", model, copy, threads)
            return lambda count: iter(range(count))

        monkeypatch.setattr(sys, "argv", ["peer", "run", "m", str(tmp_path / "c"), "--tokens", "1", "--threads", "3"])
        timing.main("fake", "1.0", lambda *_: None, open_copy)
        out, err = capsys.readouterr()
        assert json.loads(out)["tokens"] == [0, 1]
        assert err == f"noise m {tmp_path / 'c'} 3\n"


class TestGguf:
    CONFIG = json.loads((DEMO / "config.json").read_text())

    def test_names(self) -> None:
        assert gguf_name("model.embed_tokens.weight") == "token_embd.weight"
        assert gguf_name("lm_head.weight") == "output.weight"
        assert gguf_name("model.layers.12.self_attn.o_proj.weight") == "blk.12.attn_output.weight"
        assert gguf_name("model.layers.0.post_attention_layernorm.weight") == "blk.0.ffn_norm.weight"
        with pytest.raises(KeyError):
            gguf_name("model.layers.0.mlp.gate_proj.bias")

    def test_every_tensor_has_a_name_of_its_own(self) -> None:
        tensors = read_tensors(DEMO)
        assert len({gguf_name(name) for name in tensors}) == len(tensors)

    def test_interleaved_rows_make_the_same_rotation(self) -> None:
        heads, dim = 3, 8
        rng = np.random.default_rng(0)
        w, x, angles = rng.normal(size=(heads * dim, 5)), rng.normal(size=5), rng.normal(size=(1, dim // 2))
        ours = rotate_halves((w @ x).reshape(1, heads, dim), angles)[0]
        pairs = (interleave(w, heads) @ x).reshape(heads, dim // 2, 2)
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles[0])
        np.testing.assert_allclose(np.concatenate((turned.real, turned.imag), axis=-1), ours, rtol=1e-12, atol=1e-12)

    def test_divisors_give_the_scaled_frequencies(self) -> None:
        config = self.CONFIG
        plain = config["rope_theta"] ** (-np.arange(0, config["head_dim"], 2) / config["head_dim"])
        divisors = rope_divisors(config)
        assert divisors is not None
        scaled, _ = rope_frequencies(config["rope_scaling"], config, config["head_dim"])
        np.testing.assert_allclose(plain / divisors, scaled, rtol=1e-5)
        assert rope_divisors({**config, "rope_scaling": None}) is None

    def test_values_are_the_checkpoints(self) -> None:
        tensors, values = read_tensors(DEMO), read_weights(DEMO)
        assert tensors.keys() == values.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor.floats(), values[name])

    def test_contents(self) -> None:
        tensors = read_tensors(DEMO)
        norm, q, up = (f"model.layers.0.{n}.weight" for n in ("input_layernorm", "self_attn.q_proj", "mlp.up_proj"))
        assert contents(norm, tensors[norm], self.CONFIG).dtype == np.float32
        assert np.array_equal(contents(up, tensors[up], self.CONFIG), tensors[up].words())
        permuted = contents(q, tensors[q], self.CONFIG)
        assert permuted.dtype == np.uint16
        half = self.CONFIG["head_dim"] // 2
        assert np.array_equal(permuted[1], tensors[q].words()[half])
