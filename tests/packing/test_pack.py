from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors

from helpers.checkpoint_checks import INDEX
from helpers.checkpoints import Tensors, random_tensors, write_checkpoint
from helpers.gguf import Info, header_bytes
from helpers.packed_files import contents, flip, packable_config
from helpers.thorough import quick
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.checkpoints.layout import UNFINISHED
from penstock.errors import CheckpointError, FormatError, PenstockError, UnsupportedError, UsageError
from penstock.packed_format.reader import read_packed
from penstock.packing import pack_folder
from penstock.packing.pack import pack
from penstock.packing.unpack import unpack

LAYOUTS = [("single", "whole"), ("indexed", "whole"), ("numbered", "whole")]
LAYOUTS += [("split", "whole"), ("split", "bare"), ("split", "no_model")]
SIDE_FILES = {"tokenizer.json": b"{}", "LICENSE": b"free", "README.md": b"# Model", "chat_template.jinja": b"{{ x }}"}


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """A checkpoint of three shards and an index, with what stands beside the weights."""
    return written(tmp_path / "src")


def written(path: Path, layout: str = "indexed", names: str = "whole", seed: int = 0, dtype: str = "BF16") -> Path:
    write_checkpoint(path, packable_config(), layout=layout, names=names, seed=seed, dtype=dtype)
    for name, content in SIDE_FILES.items():
        (path / name).write_bytes(content)
    return path


def interrupted(src: Path, out: Path, share: float, replace: bool = False) -> None:
    """Pack until so much is done."""

    def stop(done: int, total: int) -> None:
        if done > share * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(src, out, replace=replace, on_progress=stop)


PACK_AND_TELL = """
import sys
from penstock.packed_format import runs as pack_runs
from penstock.packed_format import writer as packed_writer
from penstock.packing.pack import pack
packed_writer.SYNC_BYTES, pack_runs.RUN_BYTES = 1 << 17, 1 << 16
pack(sys.argv[1], sys.argv[2], on_progress=lambda done, total: print(done / total, flush=True))
input()
"""


def killed(src: Path, out: Path, share: float) -> None:
    """Pack until so much is done, and then no more; files are kept on the disk often."""
    command = [sys.executable, "-c", PACK_AND_TELL, str(src), str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if float(line) >= min(share, 0.999):
                break
        process.send_signal(signal.SIGKILL)


def shard(number: int) -> str:
    return f"model-{number:05}-of-00003.safetensors"


class TestLayouts:
    @pytest.mark.parametrize(("layout", "names"), LAYOUTS)
    def test_every_layout_comes_back_whole(self, layout: str, names: str, tmp_path: Path) -> None:
        src = written(tmp_path / "src", layout, names)
        result = pack(src, tmp_path / "out")
        packed = [name for name in contents(tmp_path / "out") if name.endswith(".safetensors")]
        assert sorted(packed) == sorted(name for name in contents(src) if name.endswith(".safetensors"))
        assert result.original_bytes == sum((src / name).stat().st_size for name in packed)
        assert result.packed_bytes == sum((tmp_path / "out" / name).stat().st_size for name in packed)
        unpack(tmp_path / "out", tmp_path / "back")
        assert contents(tmp_path / "back") == contents(src)

    def test_the_result_opens_as_a_checkpoint(self, src: Path, tmp_path: Path) -> None:
        pack(src, tmp_path / "out")
        ours, theirs = open_checkpoint(tmp_path / "out"), open_checkpoint(src)
        assert ours.config == theirs.config
        assert list(ours.tensors) == list(theirs.tensors)

    def test_float16_and_float32_are_stored_raw(self, tmp_path: Path) -> None:
        src = written(tmp_path / "src", "single", dtype="F16")
        result = pack(src, tmp_path / "out")
        codecs = {tensor.codec for tensor in read_packed(tmp_path / "out" / "model.safetensors").tensors.values()}
        assert codecs == {"raw"}
        assert result.packed_bytes > result.original_bytes
        unpack(tmp_path / "out", tmp_path / "back")
        assert contents(tmp_path / "back") == contents(src)

    def test_tensors_that_are_not_the_models_are_kept_too(self, tmp_path: Path) -> None:
        config = packable_config()
        tensors: Tensors = random_tensors(config) | {"extra.weight": random_tensors(config)["lm_head.weight"]}
        write_checkpoint(tmp_path / "src", config, tensors=tensors)
        pack(tmp_path / "src", tmp_path / "out")
        unpack(tmp_path / "out", tmp_path / "back")
        assert contents(tmp_path / "back") == contents(tmp_path / "src")

    def test_bytes_do_not_depend_on_threads(self, src: Path, tmp_path: Path) -> None:
        pack(src, tmp_path / "one", threads=1)
        pack(src, tmp_path / "three", threads=3)
        assert contents(tmp_path / "one") == contents(tmp_path / "three")


class TestSideFiles:
    def test_are_copied(self, src: Path, tmp_path: Path) -> None:
        pack(src, tmp_path / "out")
        for name in (*SIDE_FILES, "config.json"):
            assert (tmp_path / "out" / name).read_bytes() == (src / name).read_bytes()

    def test_other_weights_and_folders_are_left_out(self, src: Path, tmp_path: Path) -> None:
        for name in ("pytorch_model.bin", "consolidated.00.pth", "model.gguf", "tf_model.h5", "flax_model.msgpack"):
            (src / name).write_bytes(b"weights")
        (src / "other.safetensors").write_bytes(b"weights")
        (src / "original").mkdir()
        (src / "original" / "params.json").write_text("{}")
        with (src / "huge.json").open("wb") as file:
            file.truncate(100_000_001)
        pack(src, tmp_path / "out")
        ours = {INDEX, f"original.{INDEX}", "config.json", *SIDE_FILES, *map(shard, (1, 2, 3))}
        assert contents(tmp_path / "out").keys() == ours

    def test_the_index_names_the_packed_streams(self, src: Path, tmp_path: Path) -> None:
        pack(src, tmp_path / "out")
        index = json.loads((tmp_path / "out" / INDEX).read_bytes())
        total = 0
        for name, file in index["weight_map"].items():
            with safetensors.safe_open(tmp_path / "out" / file, "np") as opened:
                total += opened.get_tensor(name).nbytes
        assert index["metadata"]["total_size"] == total
        assert (tmp_path / "out" / f"original.{INDEX}").read_bytes() == (src / INDEX).read_bytes()

    def test_an_index_beside_a_whole_file_is_kept_for_unpacking_alone(self, tmp_path: Path) -> None:
        src = written(tmp_path / "src", "single")
        (src / INDEX).write_text('{"weight_map": {}}')
        pack(src, tmp_path / "out")
        assert not (tmp_path / "out" / INDEX).exists()
        unpack(tmp_path / "out", tmp_path / "back")
        assert contents(tmp_path / "back") == contents(src)


class TestResume:
    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
    def test_the_same_call_goes_on_with_the_same_result(self, share: float, src: Path, tmp_path: Path) -> None:
        pack(src, tmp_path / "whole")
        interrupted(src, tmp_path / "out", share)
        with pytest.raises(CheckpointError, match="is not finished: packing, unpacking or pulling it was interrupted"):
            open_checkpoint(tmp_path / "out")
        result = pack(src, tmp_path / "out")
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
        assert result.encoded_bytes <= (1.001 - share + 0.34) * result.original_bytes

    def test_finished_files_are_kept_if_their_seal_holds(self, src: Path, tmp_path: Path) -> None:
        pack(src, tmp_path / "whole")
        interrupted(src, tmp_path / "out", 0.9)
        flip(tmp_path / "out" / shard(2), 9)
        before = (tmp_path / "out" / shard(1)).stat().st_mtime_ns
        pack(src, tmp_path / "out")
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
        assert (tmp_path / "out" / shard(1)).stat().st_mtime_ns == before

    @pytest.mark.parametrize("share", quick([0.3], [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]))
    def test_after_kill_9(self, share: float, src: Path, tmp_path: Path) -> None:
        pack(src, tmp_path / "whole")
        killed(src, tmp_path / "out", share)
        assert not (tmp_path / "out" / "config.json").exists()
        pack(src, tmp_path / "out")
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")

    @pytest.mark.thorough
    def test_after_kill_9_again_and_again(self, src: Path, tmp_path: Path) -> None:
        pack(src, tmp_path / "whole")
        for share in (0.0, 0.2, 0.4, 0.45, 0.5, 0.8):
            killed(src, tmp_path / "out", share)
        pack(src, tmp_path / "out")
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")

    def test_another_source_is_refused(self, src: Path, tmp_path: Path) -> None:
        interrupted(src, tmp_path / "out", 0.5)
        before = contents(tmp_path / "out")
        other = written(tmp_path / "other", seed=1)
        with pytest.raises(UsageError, match=r"out was begun with another model-0000\d-of-00003") as caught:
            pack(other, tmp_path / "out")
        assert f"Delete {tmp_path / 'out'} to begin again" in caught.value.remedy
        assert contents(tmp_path / "out") == before

    def test_a_source_that_lost_a_file_is_refused(self, src: Path, tmp_path: Path) -> None:
        interrupted(src, tmp_path / "out", 0.1)
        (src / shard(3)).unlink()
        with pytest.raises(CheckpointError, match=f"lacks {shard(3)}, which has not been packed"):
            pack(src, tmp_path / "out")

    def test_damaged_notes_are_refused(self, src: Path, tmp_path: Path) -> None:
        interrupted(src, tmp_path / "out", 0.1)
        (tmp_path / "out" / UNFINISHED / "originals.json").write_text('{"originals": [{"x": 1}]}')
        with pytest.raises(UsageError, match=r"originals.json is damaged.*\nDelete .*out and begin again"):
            pack(src, tmp_path / "out")

    def test_an_interruption_before_anything_is_written_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError):
            pack(tmp_path / "nothing", tmp_path / "new" / "out")
        assert list(tmp_path.iterdir()) == []

    def test_only_one_at_a_time(self, src: Path, tmp_path: Path) -> None:
        def again(done: int, total: int) -> None:
            with pytest.raises(UsageError, match="out is being written by another process\nWait until that is done"):
                pack(src, tmp_path / "out")

        pack(src, tmp_path / "out", on_progress=again)


class TestReplace:
    def test_frees_each_file_once_it_is_packed(self, src: Path, tmp_path: Path) -> None:
        pack(src, tmp_path / "whole")
        here: list[int] = []
        pack(src, tmp_path / "out", replace=True, on_progress=lambda *_: here.append(len([*src.glob("*.safetensors")])))
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
        assert contents(src).keys() == {INDEX, "config.json", *SIDE_FILES}
        assert sorted(set(here), reverse=True) == here[:1] + [n for n in (2, 1) if n in here]
        assert min(here) == 1

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    def test_goes_on_after_an_interruption(self, share: float, src: Path, tmp_path: Path) -> None:
        pack(src, tmp_path / "whole")
        interrupted(src, tmp_path / "out", share, replace=True)
        pack(src, tmp_path / "out", replace=True)
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
        assert not [*src.glob("*.safetensors")]

    def test_frees_the_originals_of_a_finished_model_too(self, src: Path, tmp_path: Path) -> None:
        pack(src, tmp_path / "out")
        before = contents(tmp_path / "out")
        pack(src, tmp_path / "out", replace=True)
        assert contents(tmp_path / "out") == before
        assert not [*src.glob("*.safetensors")]

    def test_keeps_what_is_not_the_original(self, src: Path, tmp_path: Path) -> None:
        pack(src, tmp_path / "out")
        flip(src / shard(2), (src / shard(2)).stat().st_size - 1)
        with pytest.raises(PenstockError, match=f"{shard(2)} is not what .* was made from, and is kept"):
            pack(src, tmp_path / "out", replace=True)
        assert [path.name for path in sorted(src.glob("*.safetensors"))] == [shard(2), shard(3)]

    def test_keeps_the_original_where_the_packed_copy_is_damaged(
        self, src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As it would be by a disk that does not keep what it was given."""
        from penstock.packing import pack_file

        def lose(unfinished: Path, path: Path) -> None:
            unfinished.replace(path)
            flip(path, 5000)

        monkeypatch.setattr(pack_file, "give_name", lose)
        before = contents(src)
        with pytest.raises(PenstockError, match="the checksum does not match"):
            pack(src, tmp_path / "out", replace=True)
        assert contents(src) == before

    def test_follows_the_links_of_the_hubs_cache(self, tmp_path: Path) -> None:
        snapshot, other, blobs = hub_cache(tmp_path)
        pack(snapshot, tmp_path / "out", replace=True)
        assert not [*snapshot.glob("*.safetensors")]
        assert {path.name for path in blobs.iterdir() if path.name.startswith("model-")} == {shard(2)}
        assert (other / shard(2)).exists()

    def test_refuses_other_links(self, src: Path, tmp_path: Path) -> None:
        (tmp_path / "links").mkdir()
        for file in src.iterdir():
            (tmp_path / "links" / file.name).symlink_to(file)
        with pytest.raises(UsageError, match=r"is a link to .*, which --replace does not delete"):
            pack(tmp_path / "links", tmp_path / "out", replace=True)
        assert not (tmp_path / "out").exists()
        pack(tmp_path / "links", tmp_path / "out")


def hub_cache(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Two snapshots as huggingface_hub keeps them, the second with one shard of the first, and their blobs."""
    repo = tmp_path / "models--o--n"
    snapshot, other, blobs = repo / "snapshots" / "abc", repo / "snapshots" / "def", repo / "blobs"
    snapshot.mkdir(parents=True)
    other.mkdir()
    written(blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", file.name))
    (other / shard(2)).symlink_to(Path("..", "..", "blobs", shard(2)))
    return snapshot, other, blobs


class TestRefusals:
    @pytest.mark.parametrize(("place", "words"), [("", "is the same directory as"), ("sub", "is inside")])
    def test_out_within_the_source(self, place: str, words: str, src: Path) -> None:
        with pytest.raises(UsageError, match=words):
            pack(src, src / place)
        assert not (src / UNFINISHED).exists()

    def test_out_that_holds_something_else(self, src: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "precious").write_text("mine")
        with pytest.raises(UsageError, match=r"is not an empty directory \(it holds 'precious'\)\nChoose a name"):
            pack(src, tmp_path / "out")
        assert contents(tmp_path / "out") == {"precious": b"mine"}

    def test_out_that_is_finished(self, src: Path, tmp_path: Path) -> None:
        pack(src, tmp_path / "out")
        with pytest.raises(UsageError, match=r"out is there already, and complete\nTo compare: `penstock verify "):
            pack(src, tmp_path / "out")

    def test_out_that_is_a_file(self, src: Path, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("")
        with pytest.raises(PenstockError, match=r"out.* cannot be read or written: "):
            pack(src, tmp_path / "out")

    def test_a_packed_source(self, src: Path, tmp_path: Path) -> None:
        pack(src, tmp_path / "out")
        with pytest.raises(UsageError, match=r"out is packed already \(model-00001-of-00003.safetensors is a packed"):
            pack(tmp_path / "out", tmp_path / "again")
        assert not (tmp_path / "again").exists()

    @pytest.mark.parametrize("threads", [0, -1])
    def test_threads(self, threads: int, src: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=f"{threads} threads cannot do anything"):
            pack(src, tmp_path / "out", threads=threads)

    def test_quantized_weights(self, tmp_path: Path) -> None:
        config = packable_config()
        tensors = random_tensors(config) | {
            "model.layers.0.mlp.up_proj.qweight": random_tensors(config)["lm_head.weight"]
        }
        write_checkpoint(tmp_path / "src", config, tensors=tensors)
        with pytest.raises(UnsupportedError, match="quantized, not the full-precision weights"):
            pack(tmp_path / "src", tmp_path / "out")

    def test_quantized_gguf(self, tmp_path: Path) -> None:
        (tmp_path / "src").mkdir()
        content = header_bytes({"general.architecture": "llama"}, [Info("a", (256,), 12, 0)])
        (tmp_path / "src" / "model.gguf").write_bytes(content)
        with pytest.raises(UnsupportedError, match="quantized, not the full-precision weights"):
            pack(tmp_path / "src", tmp_path / "out")

    def test_a_broken_source(self, src: Path, tmp_path: Path) -> None:
        content = (src / shard(2)).read_bytes()
        (src / shard(2)).write_bytes(content[:-1])
        with pytest.raises(FormatError, match="truncated"):
            pack(src, tmp_path / "out")


class TestFullDisk:
    def test_is_noticed_before_anything_is_written(
        self, src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(pack_folder.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5_000_000, 5_000_000))
        message = r"out needs 1\d,\d{3},\d{3} more bytes of disk and has 5,000,000\nFree some space"
        with pytest.raises(PenstockError, match=message):
            pack(src, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_replacing_needs_less(self, src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = namedtuple("usage", "total used free")
        free = (16 << 20) + 1_600_000
        monkeypatch.setattr(pack_folder.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - free, free))
        with pytest.raises(PenstockError, match="--replace frees originals on the way"):
            pack(src, tmp_path / "out")
        pack(src, tmp_path / "out", replace=True)

    def test_in_the_middle(self, src: Path, tmp_path: Path, small_disk: Callable[[int], Path]) -> None:
        pack(src, tmp_path / "whole")
        disk = small_disk(1 << 20)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("penstock.packing.pack_folder.PackFolder.check_room", lambda *_: None)
            patch.setattr("penstock.packed_format.writer.SYNC_BYTES", 1 << 17)
            with pytest.raises(
                PenstockError, match=r"needs about [\d,]+ more bytes of disk and has [\d,]+: the disk is"
            ):
                pack(src, disk / "out")
            with pytest.raises(CheckpointError, match="is not finished"):
                open_checkpoint(disk / "out")
            subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
            pack(src, disk / "out")
        assert contents(disk / "out") == contents(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of so many bytes."""
    place = tmp_path / "disk"

    def mount(nbytes: int) -> Path:
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "none", str(place)]
        if os.name != "posix" or shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
            pytest.skip("needs the right to mount a file system")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


def test_progress_ends_with_all_bytes(src: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    total = pack(src, tmp_path / "out", on_progress=lambda done, all_: seen.append((done, all_))).original_bytes
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
