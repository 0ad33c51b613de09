from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lossless
import numpy as np
import pytest
import run_codec
from checkpoint import Tensor, read_tensors
from lossless import chunks_of_a_pass, heading, line, run, save_samples, spread
from run_codec import Gzip, Penstock, measure
from safetensors_file import write

from penstock.safetensors_header import read_header


def tensor(*shape: int, dtype: str = "BF16") -> Tensor:
    return Tensor(Path("model.safetensors"), dtype, shape, 8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (64, 512), "model.norm.weight": (512,), "lm_head.weight": (4096, 512)}
    folder = tmp_path / "model"
    folder.mkdir()
    arrays = (rng.standard_normal(shape, np.float32).view(np.uint32) >> 16 for shape in shapes.values())
    write(folder / "model.safetensors", "BF16", shapes, (array.astype(np.uint16) for array in arrays))
    return folder


class TestSample:
    def test_the_file_is_sound(self, model: Path) -> None:
        header = read_header(model / "model.safetensors")
        assert {name: info.shape for name, info in header.tensors.items()}["lm_head.weight"] == (4096, 512)

    def test_what_a_pass_reads_whole(self) -> None:
        tensors = {"a": tensor(300, 4096), "model.embed_tokens.weight": tensor(300, 4096), "norm": tensor(4096)}
        tensors |= {"lm_head.weight": tensor(128, 4096), "f32": tensor(128, 4096, dtype="F32")}
        found = [(chunk.tensor, chunk.begin, chunk.end) for chunk in chunks_of_a_pass(tensors)]
        assert found == [(tensors["a"], 0, 128), (tensors["a"], 128, 256), (tensors["lm_head.weight"], 0, 128)]

    def test_an_embedding_that_is_the_head(self) -> None:
        [chunk] = chunks_of_a_pass({"model.embed_tokens.weight": tensor(128, 4096)})
        assert chunk.shape == (128, 4096)

    def test_chunks_are_spread_evenly(self) -> None:
        chunks = list(chunks_of_a_pass({"lm_head.weight": tensor(128 * 10, 4096)}))
        assert [chunk.begin // 128 for chunk in spread(chunks, 3 << 20)] == [0, 3, 6]
        assert spread(chunks, 1) == chunks[:1]
        assert spread(chunks, 1 << 40) == chunks

    def test_samples_of_the_model_and_of_the_histogram(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "samples").mkdir()
        samples = save_samples(model, tmp_path / "samples", 2 << 20)
        assert list(samples) == ["model", "histogram"]
        whole = read_tensors(model)["lm_head.weight"].words()
        taken = read_tensors(samples["model"])
        assert np.array_equal(taken["chunk0"].words(), whole[:1024])
        drawn = read_tensors(samples["histogram"])
        assert [t.shape for t in drawn.values()] == [t.shape for t in taken.values()]

    def test_no_matrices(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=r"holds no matrices of BF16 weights"):
            save_samples(tmp_path, tmp_path, 1 << 20)


def chunks(count: int = 3) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(64, 1024)).astype(np.float32).view(np.uint32).__rshift__(16).astype(np.uint16)] * count


class TestCodes:
    @pytest.mark.parametrize("code", [Gzip(), Penstock()])
    def test_weights_come_back(self, code: Any) -> None:
        result = measure(code, chunks(), threads=2, seconds=60, rounds=2)
        assert (result.nbytes, result.threads) == (3 * 64 * 1024 * 2, 2)
        assert 0.6 < result.packed_bytes / result.nbytes < 0.9

    def test_no_more_than_the_time_allows(self) -> None:
        result = measure(Gzip(), chunks(9), threads=1, seconds=0, rounds=2)
        assert result.nbytes == 4 * 64 * 1024 * 2

    def test_other_weights_are_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Gzip, "unpack", lambda self, packed, out: None)
        with pytest.raises(ValueError, match="gzip -9 gave other weights back"):
            measure(Gzip(), chunks(), threads=1, seconds=60, rounds=1)

    def test_chunks_for_a_code_with_threads_of_its_own(self, model: Path) -> None:
        shapes = {f"chunk{index}": (2, 8) for index in range(5)}
        arrays = [np.full((2, 8), index, np.uint16) for index in range(5)]
        write(model / "model.safetensors", "BF16", shapes, arrays)
        joined = run_codec.load(model, at_once=4)
        assert [chunk.shape for chunk in joined] == [(1, 64), (1, 16)]
        assert sorted(np.concatenate(joined, axis=1)[0].tolist()) == sorted(np.concatenate(arrays).reshape(-1).tolist())


class TestReport:
    def test_a_process_measures(self, model: Path) -> None:
        result = run("gzip-9", sys.executable, model, 1, 5)
        assert isinstance(result, dict)
        assert result["name"] == "gzip -9"

    def test_a_missing_code(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lossless, "PEERS", model)
        text = run("gzip-9", sys.executable, model, 1, 5)
        assert isinstance(text, str)
        assert text.startswith("gzip-9 is left out: ")

    def test_a_line(self) -> None:
        result = {"name": "gzip -9", "version": "zlib 1", "nbytes": 2 * 10**9, "packed_bytes": 15 * 10**8}
        runs = [{**result, "pack_seconds": 100.0, "unpack_seconds": 10.0}] * 2
        text = line("synth", runs)
        assert text.split() == ["synth", "gzip", "-9", "zlib", "1", "0.7500", "12.000", *["0.020", "0.200"] * 2]
        assert len(heading([1, 2]).removesuffix("   (GB/s)")) == len(text)
