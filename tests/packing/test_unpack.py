from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from helpers.checkpoint_checks import INDEX
from helpers.checkpoints import write_checkpoint
from helpers.packed_files import contents, flip, packable_config
from penstock.checkpoints.layout import UNFINISHED
from penstock.errors import CheckpointError, ChecksumError, FormatError, PenstockError, UsageError
from penstock.packing import pack_folder
from penstock.packing.pack import pack
from penstock.packing.unpack import unpack

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of three shards, and the same packed; not to be changed."""
    folder = tmp_path_factory.mktemp("unpack")
    write_checkpoint(folder / "src", packable_config(), layout="indexed")
    (folder / "src" / "tokenizer.json").write_text("{}")
    pack(folder / "src", folder / "packed")
    return folder / "src", folder / "packed"


@pytest.fixture
def src(pair: tuple[Path, Path]) -> Path:
    return pair[0]


@pytest.fixture
def packed(pair: tuple[Path, Path]) -> Path:
    return pair[1]


def test_gives_every_file_back(packed: Path, src: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = unpack(packed, tmp_path / "out", on_progress=lambda done, total: seen.append((done, total)))
    assert contents(tmp_path / "out") == contents(src)
    total = sum(path.stat().st_size for path in src.glob("*.safetensors"))
    assert (result.original_bytes, result.restored_bytes) == (total, total)
    assert result.files == tuple(sorted((tmp_path / "out").glob("*.safetensors")))
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


def test_one_file_alone(packed: Path, src: Path, tmp_path: Path) -> None:
    result = unpack(packed, tmp_path / "out", shard=SHARD)
    assert contents(tmp_path / "out") == {SHARD: (src / SHARD).read_bytes()}
    assert result.original_bytes == (src / SHARD).stat().st_size


def test_one_file_after_the_other_and_then_the_rest(packed: Path, src: Path, tmp_path: Path) -> None:
    unpack(packed, tmp_path / "out", shard=SHARD)
    before = (tmp_path / "out" / SHARD).stat().st_mtime_ns
    result = unpack(packed, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(src)
    assert (tmp_path / "out" / SHARD).stat().st_mtime_ns == before
    assert result.restored_bytes == result.original_bytes - (src / SHARD).stat().st_size


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_goes_on_after_an_interruption(share: float, packed: Path, src: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > share * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(packed, tmp_path / "out", on_progress=stop)
    with pytest.raises(CheckpointError, match="is not finished: packing, unpacking or pulling it was interrupted"):
        unpack(tmp_path / "out", tmp_path / "other")
    unpack(packed, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(src)


@pytest.mark.parametrize("name", [SHARD, "tokenizer.json", INDEX])
def test_what_is_there_already_is_never_overwritten(name: str, packed: Path, src: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    content = bytearray((src / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / "out" / name).write_bytes(content)
    with pytest.raises(UsageError, match=f"{name} is there already, and is not what .* would be unpacked to\nChoose"):
        unpack(packed, tmp_path / "out")
    assert (tmp_path / "out" / name).read_bytes() == content


def test_a_damaged_file_is_not_restored(packed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in contents(packed).items():
        (copy / name).write_bytes(content)
    flip(copy / SHARD, 10_000)
    with pytest.raises(ChecksumError, match=f"{SHARD}: tensor 'model.layers"):
        unpack(copy, tmp_path / "out")
    assert not (tmp_path / "out" / SHARD).exists()
    assert not (tmp_path / "out" / "config.json").exists()
    flip(copy / SHARD, 10)
    with pytest.raises((ChecksumError, FormatError), match=SHARD):
        unpack(copy, tmp_path / "out2", shard=SHARD)


def test_an_unknown_shard(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no weight file .model.safetensors.\nIt has: .model-00001-of") as caught:
        unpack(packed, tmp_path / "out", shard="model.safetensors")
    assert SHARD in caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_what_is_not_packed(src: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="src is not packed: its files are the original ones"):
        unpack(src, tmp_path / "out")


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        unpack(tmp_path / "nothing", tmp_path / "out")


def test_into_itself(packed: Path) -> None:
    with pytest.raises(UsageError, match="is the packed model itself"):
        unpack(packed, packed)


def test_into_an_unfinished_one(packed: Path, src: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(src, tmp_path / "out", on_progress=stop)
    with pytest.raises(UsageError, match="out is being packed or pulled, and not finished"):
        unpack(packed, tmp_path / "out")
    assert (tmp_path / "out" / UNFINISHED).exists()


def test_threads(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 threads cannot do anything"):
        unpack(packed, tmp_path / "out", threads=0)


def test_a_full_disk_is_noticed_before_anything_is_written(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(pack_folder.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5_000_000, 5_000_000))
    message = r"out needs 1\d,\d{3},\d{3} more bytes of disk and has 5,000,000\nFree some space.*--shard"
    with pytest.raises(PenstockError, match=message):
        unpack(packed, tmp_path / "out")
    assert not (tmp_path / "out").exists()
