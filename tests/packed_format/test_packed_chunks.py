from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xxhash

from helpers.packed_files import Parts, file_content, flip, pack_bytes
from penstock.disk.files import Files
from penstock.errors import ChecksumError, FormatError
from penstock.packed_format import chunks as packed_chunks
from penstock.packed_format.chunks import read_run, runs, same_bytes
from penstock.packed_format.reader import read_packed
from penstock.packed_format.tensor import RECORD

ENTRIES = [("w", "BF16", (1300, 1024)), ("v", "F32", (1200, 500))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    pack_bytes(file_content(ENTRIES), tmp_path / "x")
    return tmp_path / "x"


@pytest.mark.parametrize(("nbytes", "n_runs"), [(1, 3), (2 << 20, 2), (1 << 30, 1)])
@pytest.mark.parametrize("name", ["w", "v"])
def test_runs_give_the_original(
    name: str, nbytes: int, n_runs: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_chunks, "RUN_BYTES", nbytes)
    content, tensor, files = file_content(ENTRIES), read_packed(path).tensors[name], Files()
    parts = list(runs(tensor))
    assert len(parts) == n_runs if name == "w" else len(parts) <= n_runs
    end = tensor.original_begin
    for run in parts:
        data = read_run(files, run)
        assert not any(fault for chunk in range(run.begin, run.end) for fault in data.faults(chunk))
        assert run.original_begin == end
        end += run.original_nbytes
        assert data.original().tobytes() == content[run.original_begin : end]
    assert end == tensor.original_begin + tensor.original_nbytes
    files.close()


def test_every_tier_of_every_chunk_is_checked(path: Path) -> None:
    tensor, files = read_packed(path).tensors["w"], Files()
    flip(path, tensor.coarse_extent(1, 2).offset)
    flip(path, tensor.fine_extent(1, 2).offset)
    flip(path, tensor.fine_extent(2, 3).offset)
    [run] = runs(tensor)
    data = read_run(files, run)
    assert [len([*data.faults(chunk)]) for chunk in range(3)] == [0, 2, 1]
    with pytest.raises(ChecksumError, match="coarse"):
        data.original()
    files.close()


def test_bytes_without_meaning_under_a_sound_checksum(path: Path) -> None:
    """The first row of the second chunk says that its data begin elsewhere."""
    parts = Parts.of(path)
    begin, size = int(parts.records["fine_bytes"][0]), int(parts.records["fine_bytes"][1])
    fine = bytearray(parts.streams["w.fine"])
    fine[begin : begin + 4] = b"\xff\xff\xff\x7f"
    parts.streams["w.fine"] = bytes(fine)
    parts.records["fine_hash"][1] = xxhash.xxh3_64_intdigest(bytes(fine[begin : begin + size]))
    parts.write(path)
    files = Files()
    [run] = runs(read_packed(path).tensors["w"])
    with pytest.raises(FormatError, match=r"tensor 'w', row 512 breaks the packed format"):
        read_run(files, run).original()
    files.close()


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100])
def test_same_bytes(size: int) -> None:
    a = np.arange(size + 3, dtype=np.uint8)[3:]
    assert same_bytes(a, a.copy())
    assert not same_bytes(a, np.arange(size + 1, dtype=np.uint8))
    for place in range(size):
        b = a.copy()
        b[place] ^= 1
        assert not same_bytes(a, b)


def test_a_record_takes_20_bytes() -> None:
    assert RECORD.itemsize == 20
