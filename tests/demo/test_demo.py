from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from helpers.cases import DEMO
from helpers.checkpoints import tiny_config
from helpers.thorough import quick
from penstock import LLM
from penstock.cli import app, demonstration
from penstock.demo import layers as demo_layers
from penstock.demo import steps as demo
from penstock.demo import timing as demo_timing
from penstock.demo.timing import Timing, Timings
from penstock.errors import ChecksumError, MemoryCeilingError, PenstockError
from penstock.safetensors_header import read_header
from penstock.stages.rates import ComputeSpeed
from penstock.system import machine
from penstock.system.machine import Footprint


@pytest.fixture(scope="module")
def sound_copy() -> Iterator[Path]:
    """The demo model packed."""
    with demo.packed_copy() as path:
        yield path


@pytest.fixture
def copy(sound_copy: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(sound_copy, tmp_path / "packed"))


@pytest.mark.parametrize("tokens", quick([24], [24, demo.PARAMS.max_tokens]))
def test_streamed_resident_and_packed_are_identical(
    sound_copy: Path, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "PARAMS", replace(demo.PARAMS, max_tokens=tokens))
    streamed, resident = (demo.complete(DEMO, share) for share in (demo.STREAMED, demo.RESIDENT))
    packed = demo.complete(sound_copy, demo.STREAMED)
    guessed = demo.complete(sound_copy, demo.GUESSING, guesses=True)
    assert all(streamed.same_bits(run) for run in (resident, packed, guessed))
    assert guessed.pieces[-1].stats.tokens_per_pass > 1
    assert guessed.pieces[-1].stats.guesses.drafter_right["coarse"] > 0
    weights = (DEMO / "model.safetensors").stat().st_size
    stats = streamed.pieces[-1].stats
    assert stats.bytes_read > 0.5 * weights * stats.passes
    assert resident.pieces[-1].stats.bytes_read < weights
    assert 0.6 * stats.bytes_read < packed.pieces[-1].stats.bytes_read < 0.75 * stats.bytes_read


def test_a_difference_is_seen() -> None:
    run = demo.complete(DEMO, demo.RESIDENT)
    logits = run.logits.copy()
    logits.view("u4")[-1, -1] ^= 1
    assert not run.same_bits(demo.Run(run.pieces, logits))
    assert not run.same_bits(demo.Run(run.pieces[:-1], run.logits))


class TestDamage:
    def test_the_copy_is_deleted(self) -> None:
        with demo.packed_copy() as path:
            assert (path / "model.safetensors").stat().st_size < 0.72 * (DEMO / "model.safetensors").stat().st_size
        assert not path.parent.exists()

    def test_no_place_for_a_copy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", "/no/such/directory")
        with pytest.raises(PenstockError) as caught, demo.packed_copy():
            pass
        assert caught.value.problem == "No temporary directory can be made: No such file or directory."
        assert caught.value.remedy == "Let TMPDIR name a directory that you may write to."

    @pytest.mark.parametrize("seed", quick(3, range(8)))
    def test_one_bit(self, sound_copy: Path, copy: Path, seed: int) -> None:
        flipped = demo.flip_a_bit(copy, Random(seed))
        assert flipped.file == copy / "model.safetensors"
        before, after = (np.fromfile(path / "model.safetensors", np.uint8) for path in (sound_copy, copy))
        [place] = np.flatnonzero(before != after)
        assert (place, before[place] ^ after[place]) == (flipped.offset, 1 << flipped.bit)
        stream = read_header(copy / "model.safetensors").tensors[f"{flipped.tensor}.{flipped.tier}"]
        assert stream.begin <= flipped.offset < stream.end
        error = demo.refusal(copy)
        assert isinstance(error, ChecksumError)
        for words in (str(flipped.file), flipped.tensor, "offset"):
            assert words in error.problem

    def test_both_tiers_are_hit(self, copy: Path) -> None:
        random = Random(0)
        assert {demo.flip_a_bit(copy, random).tier for _ in range(20)} == {"coarse", "fine"}

    def test_a_sound_copy_is_not_refused(self, sound_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo, "PARAMS", replace(demo.PARAMS, max_tokens=8))
        assert demo.refusal(sound_copy) is None

    def test_a_refusal_that_comes_too_late_is_none(self, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def complete(path: Path, share: float, on_piece: Callable[[Any], None]) -> None:
            on_piece(object())
            raise ChecksumError("no", "yes")

        monkeypatch.setattr(demo, "complete", complete)
        assert demo.refusal(copy) is None


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demo makes its layers; tiny ones."""
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "not" / "there"))
    monkeypatch.setattr(demo_layers, "layers_config", lambda: tiny_config(vocab_size=demo_layers.VOCABULARY))
    monkeypatch.setattr(demo_timing, "ALL_SECONDS", 0.0)
    return tmp_path


def invoke() -> str:
    """What `penstock demo` prints, with every run of blanks as one."""
    result = CliRunner().invoke(app, ["demo"], catch_exceptions=False)
    assert result.exit_code == 0
    return re.sub(r"\s+", " ", result.output)


@pytest.fixture
def third_point(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command goes on to its third point at once."""
    monkeypatch.setattr(demonstration, "compare_bits", lambda console, packed: None)
    monkeypatch.setattr(demonstration, "find_damage", lambda console, packed: None)
    return home


TIMINGS = Timings(loaded=Timing(436_000_000, 0.83), streamed=Timing(436_000_000, 0.8), packed=Timing(293_000_000, 0.54))
COMPUTE = ComputeSpeed(20e9, 100e9, 13e9, 90e9, 15e9)


class TestCommand:
    @pytest.mark.thorough
    def test_all_of_it(self, home: Path) -> None:
        said = invoke()
        assert [point in said for point in ("1. A small model", "2. In the packed copy", "3. Layers")] == [True] * 3
        assert "identical: every token" in said
        assert re.search(r"Packed, the weights take 0\.[67]\d\d of the bytes", said)
        assert re.search(
            r"bit \d of byte [\d,]+ of model.safetensors, in the (coarse|fine) tier of (model|lm_head)\.", said
        )
        assert re.search(r"error: .*model.safetensors: tensor .* the checksum does not match", said)
        assert "refused: not a single token came of it." in said
        assert re.search(r"a file a layer, loaded, then run: [\d.]+ s a layer, [\d.]+ .B/s", said)
        assert re.search(r"the same bytes, streamed: [\d.]+ s a layer, [\d.]+ .B/s", said)
        assert re.search(r"the same weights, packed: [\d.]+ s a layer, [\d.]+ .B/s", said)
        assert re.search(
            r"Your disk: [\d.]+ .B/s; [\d.]+ GiB free: the 8B would .* packed, .* raw.* \(extrapolated\)", said
        )
        assert list(home.iterdir()) == []

    @pytest.mark.parametrize(
        ("free", "words"),
        [
            (2 << 30, r"2\.0 GiB free: the 8B would take 15 s a token packed, 24 s raw \(extrapolated\)\."),
            (
                13 << 30,
                r"13\.0 GiB free: the 8B would fit in packed and take 0\.8 s a token packed, [\d.]+ s raw, "
                r"or, in 2 GiB, 15 s a token packed, 24 s raw \(extrapolated\)\.",
            ),
            (
                64 << 30,
                r"64\.0 GiB free: the 8B would fit in and take 0\.8 s a token packed, 0\.8 s raw, or, in 2 GiB, 15 s",
            ),
            (1 << 20, r"0\.0 GiB free: the 8B would need more memory than that\."),
        ],
    )
    @pytest.mark.usefixtures("third_point")
    def test_memory_that_is_free(self, monkeypatch: pytest.MonkeyPatch, free: int, words: str) -> None:
        monkeypatch.setattr(machine, "footprint", lambda: Footprint(150 << 20, 0))
        monkeypatch.setattr(demonstration, "measure_compute", lambda kernels: COMPUTE)
        monkeypatch.setattr(demo_timing, "time_all", lambda layers: TIMINGS)
        monkeypatch.setattr(machine, "available_bytes", lambda: free)
        said = invoke()
        assert "the same bytes, streamed: 0.80 s a layer, 545 MB/s" in said
        assert "the same weights, packed: 0.54 s a layer, 543 MB/s" in said
        assert re.search(f"Your disk: 545 MB/s; {words}", said)

    @pytest.mark.usefixtures("home")
    def test_different_bits_are_a_defect(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo, "PARAMS", replace(demo.PARAMS, max_tokens=8))
        monkeypatch.setattr(demo.Run, "same_bits", lambda self, other: False)
        result = CliRunner().invoke(app, ["demo"])
        assert result.exit_code == 1
        assert "different: this is a defect, please report it." in result.output

    @pytest.mark.usefixtures("home")
    def test_damage_that_nobody_sees_is_a_defect(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demonstration, "compare_bits", lambda console, packed: None)
        monkeypatch.setattr(demo, "refusal", lambda path: None)
        result = CliRunner().invoke(app, ["demo"])
        assert result.exit_code == 1
        assert "not noticed: this is a defect, please report it." in result.output

    def test_no_room_for_the_layers(self, third_point: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
        assert f"Left out: {third_point} has 1.0 GB of disk free, and two layers need 3.0 GB." in invoke()

    def test_a_disk_that_is_too_slow(self, third_point: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo_layers, "MAKE_SECONDS", 0.0)
        assert "Left out: Making layers would take more than 0 s on this disk." in invoke()
        assert list(third_point.iterdir()) == []


class TestLayers:
    def test_their_size_is_the_true_one(self) -> None:
        config = demo_layers.layers_config()
        sizes = {key: config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")}
        assert sizes == {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
        assert config["num_hidden_layers"] == 2

    def test_each_is_a_file_and_all_are_deleted(self, home: Path) -> None:
        told: list[tuple[str, int, int]] = []
        with demo_layers.made_layers(home, demo_layers.layers_config(), lambda *now: told.append(now)) as layers:
            assert layers.raw.is_relative_to(home)
            assert layers.packed.is_relative_to(home)
            for path in (layers.raw, layers.packed):
                with LLM.open(path) as llm:
                    assert llm.config.num_hidden_layers == 2
                    places = {name: info.path for name, info in llm.weights.tensors.items()}
                for layer in (0, 1):
                    assert len({path for name, path in places.items() if f".layers.{layer}." in name}) == 1
                assert len(set(places.values())) == 2
        assert {doing for doing, _, _ in told} == {"making layers", "packing them"}
        assert all(done <= total for _, done, total in told)
        assert told[-1][1] == told[-1][2]
        assert list(home.iterdir()) == []

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_they_are_deleted_after_an_error(self, home: Path, error: type[BaseException]) -> None:
        with pytest.raises(error), demo_layers.made_layers(home, demo_layers.layers_config()):
            raise error
        assert list(home.iterdir()) == []

    def test_they_are_deleted_when_made_in_part(self, home: Path) -> None:
        def stop(doing: str, done: int, total: int) -> None:
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

    @pytest.mark.parametrize(("limit", "step"), [("MAKE_SECONDS", "make"), ("PACK_SECONDS", "pack_layers")])
    def test_fewer_on_a_slow_disk(self, home: Path, monkeypatch: pytest.MonkeyPatch, limit: str, step: str) -> None:
        do, limits = getattr(demo_layers, step), iter([0.0, 60.0])

        def do_slowly(*arguments: Any) -> None:
            monkeypatch.setattr(demo_layers, limit, next(limits))
            do(*arguments)

        monkeypatch.setattr(demo_layers, step, do_slowly)
        with demo_layers.made_layers(home, demo_layers.layers_config()) as layers:
            assert len(list(layers.raw.parent.iterdir())) == 2
            for path in (layers.raw, layers.packed):
                with LLM.open(path) as llm:
                    assert llm.config.num_hidden_layers == 1

    def test_a_place_that_cannot_be_written(self, home: Path) -> None:
        with (
            pytest.raises(PenstockError, match="cannot be written") as caught,
            demo_layers.made_layers(home / "missing", demo_layers.layers_config()),
        ):
            pass
        assert "PENSTOCK_HOME" in caught.value.remedy

    def test_all_ways_count_the_same_weights(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo_timing, "ALL_SECONDS", 60.0)
        config = tiny_config(hidden_size=256, intermediate_size=512, vocab_size=demo_layers.VOCABULARY)
        with demo_layers.made_layers(home, config) as layers:
            timings = demo_timing.time_all(layers)
        matrices = 2 * (2 * 256 * 32 + 2 * 256 * 16 + 3 * 256 * 512)
        beside = 2 * 2 * demo_layers.VOCABULARY * 256 + 4096  # embedding, head, norms, headers
        for timing in (timings.loaded, timings.streamed):
            assert matrices <= timing.layer_bytes <= matrices + beside
        assert timings.packed.layer_bytes / timings.streamed.layer_bytes == pytest.approx(0.72, abs=0.03)
        for timing in (timings.loaded, timings.streamed, timings.packed):
            assert timing.seconds > 0
            assert timing.bytes_per_second == timing.layer_bytes / timing.seconds


class TestForecast:
    def test_the_disk_decides(self) -> None:
        tokens = demo_timing.forecast(TIMINGS, 2 << 30, COMPUTE)
        for token, timing in ((tokens.raw, TIMINGS.streamed), (tokens.packed, TIMINGS.packed)):
            assert token.disk_seconds >= token.compute_seconds
            assert token.seconds == pytest.approx(token.bytes_read / timing.bytes_per_second)
        assert 12e9 < tokens.raw.bytes_read < 14e9
        ratio = TIMINGS.packed.layer_bytes / TIMINGS.streamed.layer_bytes
        saved = tokens.raw.bytes_read - tokens.packed.bytes_read
        assert saved == pytest.approx((1 - ratio) * 15_009_316_864, rel=0.01)
        assert demo_timing.forecast(TIMINGS, 4 << 30, COMPUTE).packed.bytes_read < tokens.packed.bytes_read

    def test_nothing_is_read_where_all_fits(self) -> None:
        tokens = demo_timing.forecast(TIMINGS, 64 << 30, COMPUTE)
        assert (tokens.raw.bytes_read, tokens.packed.bytes_read) == (0, 0)
        assert tokens.raw.seconds == 15_009_316_864 / COMPUTE.row_bytes_per_second
        # In indexed rows, 12.2 bits a weight and some room.
        indexed = tokens.packed.seconds * COMPUTE.indexed_row_bytes_per_second
        assert indexed == pytest.approx(15_009_316_864 * 12.2 / 16 * 1.03, rel=0.01)

    def test_too_little_memory(self) -> None:
        with pytest.raises(MemoryCeilingError, match="too small"):
            demo_timing.forecast(TIMINGS, 1 << 20, COMPUTE)
