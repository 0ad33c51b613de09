from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.checkpoints import random_tensors, write_checkpoint
from helpers.packed_files import contents, flip, packable_config
from penstock.disk.files import Extent, Files
from penstock.errors import CheckpointError, ChecksumError, FormatError, PenstockError, ReadError, UsageError
from penstock.llm import LLM
from penstock.packed_format.reader import SERVICE, read_packed
from penstock.packing.pack import pack
from penstock.packing.verify import verify
from penstock.safetensors_header import read_header
from penstock.sampling import SamplingParams

FILE = "model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"
DAMAGED = "the checksum does not match: the file is damaged"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and the same packed; not to be changed."""
    folder = tmp_path_factory.mktemp("verify")
    write_checkpoint(folder / "src", packable_config())
    pack(folder / "src", folder / "packed")
    return folder / "src", folder / "packed"


@pytest.fixture
def src(pair: tuple[Path, Path]) -> Path:
    return pair[0]


@pytest.fixture
def packed(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    folder = tmp_path / "packed"
    folder.mkdir()
    for name, content in contents(pair[1]).items():
        (folder / name).write_bytes(content)
    return folder


def place(packed: Path, stream: str) -> tuple[int, int]:
    """Begin and end of a stream in the file."""
    tensor = read_header(packed / FILE).tensors[stream]
    return tensor.begin, tensor.end


class TestChecksums:
    def test_a_sound_model(self, packed: Path, src: Path) -> None:
        seen: list[tuple[int, int]] = []
        report = verify(packed, on_progress=lambda done, total: seen.append((done, total)))
        assert (report.sound, report.packed, report.n_files) == (True, True, 1)
        assert report.nbytes == (packed / FILE).stat().st_size
        assert seen == sorted(seen)
        assert seen[-1] == (report.nbytes, report.nbytes)

    @pytest.mark.parametrize("tier", ["coarse", "fine"])
    @pytest.mark.parametrize("where", ["first byte", "middle", "last byte"])
    def test_a_flipped_bit_in_a_stream(self, tier: str, where: str, packed: Path) -> None:
        begin, end = place(packed, f"{UP}.{tier}")
        flip(packed / FILE, {"first byte": begin, "middle": (begin + end) // 2, "last byte": end - 1}[where], bit=7)
        [damage] = verify(packed).damage
        assert f"{packed / FILE}: tensor {UP!r}" in damage
        assert f"{end - begin:,} bytes at offset {begin:,} (rows 0 and on, {tier}): {DAMAGED}" in damage

    @pytest.mark.parametrize("last", [False, True])
    def test_a_flipped_bit_in_a_raw_stream(self, last: bool, packed: Path) -> None:
        begin, end = place(packed, f"{NORM}.raw")
        flip(packed / FILE, end - 1 if last else begin)
        [damage] = verify(packed).damage
        assert f"tensor {NORM!r}, 512 bytes at offset {begin:,} (rows 0 and on, raw): {DAMAGED}" in damage

    @pytest.mark.parametrize("service", SERVICE)
    @pytest.mark.parametrize("last", [False, True])
    def test_a_flipped_bit_behind_the_streams(self, service: str, last: bool, packed: Path) -> None:
        begin, end = place(packed, service)
        flip(packed / FILE, end - 1 if last else begin)
        damage = verify(packed).damage
        assert "bytes 0 to " in damage[0]
        assert DAMAGED in damage[0]
        with pytest.raises(ChecksumError, match=DAMAGED):
            read_packed(packed / FILE)

    @pytest.mark.parametrize("bit", range(8))
    def test_a_flipped_bit_anywhere_in_the_header(self, bit: int, packed: Path) -> None:
        """Length, JSON and padding."""
        data_begin = read_header(packed / FILE).data_begin
        sound = (packed / FILE).read_bytes()
        for offset in [*range(12), *range(12, data_begin, 197), data_begin - 1]:
            (packed / FILE).write_bytes(sound)
            flip(packed / FILE, offset, bit)
            report = verify(packed)
            assert report.damage, (offset, bit)
            assert str(packed / FILE) in report.damage[0]

    def test_every_damaged_place_is_told(self, packed: Path) -> None:
        for stream in (f"{UP}.fine", f"{UP}.coarse", f"{NORM}.raw", "penstock.seal"):
            flip(packed / FILE, place(packed, stream)[1] - 1)
        damage = verify(packed).damage
        assert len(damage) == 4
        for words in ("bytes 0 to ", "coarse", "fine", "raw"):
            assert any(words in place for place in damage)

    def test_truncation_at_every_boundary(self, packed: Path) -> None:
        sound = (packed / FILE).read_bytes()
        tensors = read_header(packed / FILE).tensors.values()
        ends = {0, 4, 8, 100, *(tensor.begin for tensor in tensors), *(tensor.end - 1 for tensor in tensors)}
        for end in sorted(ends):
            (packed / FILE).write_bytes(sound[:end])
            report = verify(packed)
            assert report.damage, end
            assert str(packed / FILE) in report.damage[0]
            with pytest.raises(FormatError):
                read_packed(packed / FILE)

    def test_never_a_wrong_token(self, packed: Path) -> None:
        """Wherever a bit is flipped, the model says so or gives what it gave before."""
        sound = (packed / FILE).read_bytes()
        before = tokens(packed)
        for offset in range(0, len(sound), len(sound) // 11):
            (packed / FILE).write_bytes(sound)
            flip(packed / FILE, offset, offset % 8)
            found = tokens_or_error(packed)
            assert found == before or str(packed / FILE) in str(found), offset

    def test_what_the_disk_cannot_read_is_damage(self, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        begin, end = place(packed, f"{UP}.fine")
        read = Files.read

        def fail(files: Files, extent: Extent, buffer: Any) -> Any:
            if begin <= extent.offset < end:
                raise ReadError(f"{extent.path}: reading at offset {extent.offset} failed: Input/output error.")
            return read(files, extent, buffer)

        flip(packed / FILE, place(packed, f"{NORM}.raw")[0])
        monkeypatch.setattr(Files, "read", fail)
        damage = verify(packed).damage
        assert damage[0] == f"{packed / FILE}: reading at offset {begin} failed: Input/output error."
        assert NORM in damage[1]
        assert len(damage) == 2

    def test_other_files_are_checked_too(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path / "src", packable_config(), layout="indexed")
        pack(tmp_path / "src", tmp_path / "out")
        for number in (1, 3):
            path = tmp_path / "out" / f"model-0000{number}-of-00003.safetensors"
            path.write_bytes(path.read_bytes()[:-1])
        report = verify(tmp_path / "out")
        assert [f"model-0000{number}" in damage for number, damage in zip((1, 3), report.damage, strict=True)]
        assert report.n_files == 3


def tokens(path: Path) -> list[int]:
    with LLM.open(path, memory="16GiB", threads=1) as llm:
        [output] = llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=3))
    return output.token_ids


def tokens_or_error(path: Path) -> list[int] | str:
    try:
        return tokens(path)
    except PenstockError as error:
        return error.problem


class TestAgainst:
    def test_the_original(self, packed: Path, src: Path) -> None:
        report = verify(packed, src)
        assert (report.sound, report.packed) == (True, True)
        assert report.n_tensors == len(read_header(src / FILE).tensors)

    @pytest.mark.parametrize("name", [UP, NORM])
    def test_another_bit_in_a_tensor(self, name: str, packed: Path, src: Path, tmp_path: Path) -> None:
        other = copied(src, tmp_path / "other")
        flip(other / FILE, read_header(other / FILE).tensors[name].begin + 100)
        report = verify(packed, other)
        assert report.damage == ()
        [difference] = report.differences
        assert difference.startswith(f"{packed / FILE}: {name!r} is not that of {other / FILE} (within its bytes 0 to ")

    def test_another_header(self, packed: Path, src: Path, tmp_path: Path) -> None:
        other = copied(src, tmp_path / "other")
        content = (other / FILE).read_bytes()
        (other / FILE).write_bytes(content.replace(b'"format": "pt"', b'"format": "tf"'))
        [difference] = verify(packed, other).differences
        assert difference == f"{packed / FILE}: the header that it keeps is not that of {other / FILE}"

    def test_tensors_that_one_side_lacks(self, src: Path, tmp_path: Path) -> None:
        config = packable_config()
        tensors = random_tensors(config)
        write_checkpoint(tmp_path / "more", config, tensors={**tensors, "more": tensors[NORM]})
        pack(tmp_path / "more", tmp_path / "packed")
        differences = verify(tmp_path / "packed", src).differences
        assert f"{src} has no 'more'" in differences
        differences = verify(src, tmp_path / "more").differences
        assert differences == (f"'more' of {tmp_path / 'more'} is missing",)

    def test_another_shape_or_dtype(self, packed: Path, tmp_path: Path) -> None:
        write_checkpoint(tmp_path / "other", packable_config(), dtype="F16")
        differences = verify(packed, tmp_path / "other").differences
        assert f"{packed / FILE}: {NORM!r} is BF16 [256], but F16 [256] in {tmp_path / 'other' / FILE}" in differences

    def test_other_files(self, packed: Path, tmp_path: Path) -> None:
        write_checkpoint(tmp_path / "other", packable_config(), layout="indexed")
        [difference] = verify(packed, tmp_path / "other").differences
        assert difference == f"{tmp_path / 'other' / FILE} is missing, which {packed / FILE} was made from"

    def test_a_packed_one_is_refused(self, packed: Path) -> None:
        with pytest.raises(UsageError, match="is packed itself\nGive the directory of the original"):
            verify(packed, packed)


class TestPlain:
    def test_has_no_checksums(self, src: Path) -> None:
        report = verify(src)
        assert (report.sound, report.packed) == (True, False)

    def test_headers_are_checked(self, src: Path, tmp_path: Path) -> None:
        other = copied(src, tmp_path / "other")
        (other / FILE).write_bytes((other / FILE).read_bytes()[:-1])
        [damage] = verify(other).damage
        assert f"{other / FILE}: tensor" in damage
        assert "truncated" in damage

    def test_against_another(self, src: Path, tmp_path: Path) -> None:
        write_checkpoint(tmp_path / "shards", packable_config(), layout="indexed")
        assert verify(tmp_path / "shards", src).sound
        flip(tmp_path / "shards" / "model-00003-of-00003.safetensors", 5000)
        assert len(verify(tmp_path / "shards", src).differences) == 1


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        verify(tmp_path / "nothing")


def test_threads(src: Path) -> None:
    with pytest.raises(UsageError, match="0 threads cannot do anything"):
        verify(src, threads=0)


def copied(src: Path, out: Path) -> Path:
    out.mkdir()
    for name, content in contents(src).items():
        (out / name).write_bytes(content)
    return out
