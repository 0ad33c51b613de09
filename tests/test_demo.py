from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from cases import DEMO
from checkpoints import tiny_config
from typer.testing import CliRunner

from penstock import LLM, demo, demo_layers, machine
from penstock.cli import app
from penstock.errors import MemoryCeilingError, PenstockError


def test_streamed_and_resident_are_identical() -> None:
    streamed, resident = (demo.complete(share, lambda piece: None) for share in (demo.STREAMED, demo.RESIDENT))
    assert streamed.same_bits(resident)
    weights = (DEMO / "model.safetensors").stat().st_size
    stats = streamed.pieces[-1].stats
    assert stats.bytes_read > 0.5 * weights * stats.passes
    assert resident.pieces[-1].stats.bytes_read < weights


def test_a_difference_is_seen() -> None:
    run = demo.complete(demo.RESIDENT, lambda piece: None)
    logits = run.logits.copy()
    logits.view("u4")[-1, -1] ^= 1
    assert not run.same_bits(demo.Run(run.pieces, logits))
    assert not run.same_bits(demo.Run(run.pieces[:-1], run.logits))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demo makes its layers; tiny ones."""
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "not" / "there"))
    monkeypatch.setattr(demo_layers, "layers_config", lambda: tiny_config(vocab_size=demo_layers.VOCABULARY))
    monkeypatch.setattr(demo_layers, "BOTH_SECONDS", 0.0)
    return tmp_path


def invoke() -> str:
    """What `penstock demo` prints, with every run of blanks as one."""
    result = CliRunner().invoke(app, ["demo"], catch_exceptions=False)
    assert result.exit_code == 0
    return re.sub(r"\s+", " ", result.output)


@pytest.fixture
def second_point(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command goes on to its second point at once."""
    monkeypatch.setattr(sys.modules["penstock.cli.demo"], "_compare_bits", lambda console: None)
    return home


class TestCommand:
    def test_all_of_it(self, home: Path) -> None:
        said = invoke()
        assert "identical: every token" in said
        assert re.search(r"a file a layer, loaded, then run: [\d.]+ s a layer, [\d.]+ .B/s", said)
        assert re.search(r"the same bytes, streamed: [\d.]+ s a layer, [\d.]+ .B/s", said)
        assert re.search(r"Your disk: [\d.]+ .B/s; [\d.]+ GiB free: the 8B would .* s a token.* \(extrapolated\)", said)
        assert list(home.iterdir()) == []

    @pytest.mark.parametrize(
        ("free", "words"),
        [
            (2 << 30, r"2\.0 GiB free: the 8B would take \d+ s a token \(extrapolated\)\."),
            (64 << 30, r"64\.0 GiB free: the 8B would fit in and take [\d.]+ s a token, or, in 2 GiB, \d+ s a token"),
            (1 << 20, r"0\.0 GiB free: the 8B would need more memory than that\."),
        ],
    )
    @pytest.mark.usefixtures("second_point")
    def test_memory_that_is_free(self, monkeypatch: pytest.MonkeyPatch, free: int, words: str) -> None:
        timing = demo_layers.Timing(436_000_000, 0.8)
        monkeypatch.setattr(demo_layers, "time_both", lambda path: (timing, timing))
        monkeypatch.setattr(machine, "available_bytes", lambda: free)
        said = invoke()
        assert "the same bytes, streamed: 0.80 s a layer, 545 MB/s" in said
        assert re.search(f"Your disk: 545 MB/s; {words}", said)

    def test_no_room_for_the_layers(self, second_point: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**10, 10**10, 10**9))
        assert f"Left out: {second_point} has 1.0 GB of disk free, and two layers need 2.5 GB." in invoke()

    def test_a_disk_that_is_too_slow(self, second_point: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo_layers, "MAKE_SECONDS", 0.0)
        assert "Left out: Making layers would take more than 0 s on this disk." in invoke()
        assert list(second_point.iterdir()) == []


class TestLayers:
    def test_their_size_is_the_true_one(self) -> None:
        config = demo_layers.layers_config()
        sizes = {key: config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")}
        assert sizes == {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
        assert config["num_hidden_layers"] == 2

    def test_each_is_a_file_and_all_are_deleted(self, home: Path) -> None:
        told: list[tuple[int, int]] = []
        with demo_layers.made_layers(home, demo_layers.layers_config(), lambda *now: told.append(now)) as path:
            assert path.is_relative_to(home)
            with LLM.open(path) as llm:
                assert llm.config.num_hidden_layers == 2
                places = {name: info.path for name, info in llm.weights.tensors.items()}
        for layer in (0, 1):
            assert len({path for name, path in places.items() if f".layers.{layer}." in name}) == 1
        assert len(set(places.values())) == 2
        assert told[-1][0] == told[-1][1]
        assert list(home.iterdir()) == []

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_they_are_deleted_after_an_error(self, home: Path, error: type[BaseException]) -> None:
        with pytest.raises(error), demo_layers.made_layers(home, demo_layers.layers_config()):
            raise error
        assert list(home.iterdir()) == []

    def test_they_are_deleted_when_made_in_part(self, home: Path) -> None:
        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), demo_layers.made_layers(home, demo_layers.layers_config(), stop):
            pass
        assert list(home.iterdir()) == []

    def test_termination_counts_as_an_interrupt(self, home: Path) -> None:
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), demo_layers.made_layers(home, demo_layers.layers_config()):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is before
        assert list(home.iterdir()) == []

    def test_fewer_on_a_slow_disk(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make, limits = demo_layers._make, iter([0.0, 60.0])

        def make_slowly(*arguments: Any) -> None:
            monkeypatch.setattr(demo_layers, "MAKE_SECONDS", next(limits))
            make(*arguments)

        monkeypatch.setattr(demo_layers, "_make", make_slowly)
        with demo_layers.made_layers(home, demo_layers.layers_config()) as path, LLM.open(path) as llm:
            assert llm.config.num_hidden_layers == 1

    def test_a_place_that_cannot_be_written(self, home: Path) -> None:
        with (
            pytest.raises(PenstockError, match="cannot be written") as caught,
            demo_layers.made_layers(home / "missing", demo_layers.layers_config()),
        ):
            pass
        assert "PENSTOCK_HOME" in caught.value.remedy

    def test_both_ways_count_the_same_bytes(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo_layers, "BOTH_SECONDS", 60.0)
        with demo_layers.made_layers(home, demo_layers.layers_config()) as path:
            loaded, streamed = demo_layers.time_both(path)
        matrices = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
        beside = 2 * 2 * demo_layers.VOCABULARY * 32 + 4096  # embedding, head, norms, headers
        for timing in (loaded, streamed):
            assert matrices <= timing.layer_bytes <= matrices + beside
            assert timing.seconds > 0
            assert timing.bytes_per_second == timing.layer_bytes / timing.seconds


class TestForecast:
    def test_the_disk_decides(self) -> None:
        timing = demo_layers.Timing(436_000_000, 0.83)
        token = demo_layers.forecast(timing, 2 << 30)
        assert token.bound == "disk"
        assert token.seconds == pytest.approx(token.bytes_read / timing.bytes_per_second)
        assert 12e9 < token.bytes_read < 14e9
        assert demo_layers.forecast(timing, 4 << 30).bytes_read < token.bytes_read

    def test_nothing_is_read_where_all_fits(self) -> None:
        assert demo_layers.forecast(demo_layers.Timing(436_000_000, 0.83), 64 << 30).bytes_read == 0

    def test_too_little_memory(self) -> None:
        with pytest.raises(MemoryCeilingError, match="too small"):
            demo_layers.forecast(demo_layers.Timing(436_000_000, 0.83), 1 << 20)
