from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.packed_files import Entry, Parts, file_content, flip, pack_bytes
from helpers.thorough import examples
from penstock.disk.files import Files, aligned_buffer
from penstock.errors import ChecksumError, FormatError
from penstock.packed_format.reader import CHUNKS, HEADER, INDEX, SERVICE, is_packed_file, read_packed
from penstock.packed_format.tensor import PackedTensor
from penstock.safetensors_header import parse_header, read_header

ENTRIES: list[Entry] = [("w", "BF16", (1300, 1024)), ("v", "F32", (300, 1000)), ("n", "BF16", (100,))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    pack_bytes(file_content(ENTRIES, padding=5, metadata={"format": "pt"}), tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


class TestReading:
    def test_what_it_tells(self, path: Path) -> None:
        content = file_content(ENTRIES, padding=5, metadata={"format": "pt"})
        file = read_packed(path)
        original = parse_header(content, Path("x"), len(content))
        assert file.original_header == content[: original.data_begin]
        assert (file.original_size, file.file_size) == (len(content), path.stat().st_size)
        assert list(file.tensors) == ["w", "v", "n"]
        for name, tensor in file.tensors.items():
            expected = original.tensors[name]
            assert (tensor.name, tensor.dtype, tensor.shape) == (name, expected.dtype, expected.shape)
            assert (tensor.original_begin, tensor.original_nbytes) == (expected.begin, expected.nbytes)
        streams = read_header(path).tensors
        assert file.tensors["w"].coarse_begin == streams["w.coarse"].begin
        assert file.tensors["w"].fine_begin == streams["w.fine"].begin
        assert file.tensors["w"].nbytes == streams["w.coarse"].nbytes + streams["w.fine"].nbytes
        assert file.tensors["v"].fine_begin == streams["v.raw"].begin
        assert file.tensors["v"].nbytes == streams["v.raw"].nbytes

    def test_chunks(self, path: Path) -> None:
        tensor = read_packed(path).tensors["w"]
        assert (tensor.codec, tensor.rows_per_chunk, tensor.n_chunks) == ("planes", 512, 3)
        assert [tensor.rows_in_chunk(chunk) for chunk in range(3)] == [512, 512, 276]
        streams = read_header(path).tensors
        for extent, nbytes, name in (
            (tensor.coarse_extent, tensor.coarse_nbytes, "w.coarse"),
            (tensor.fine_extent, tensor.fine_nbytes, "w.fine"),
        ):
            whole = extent(0, 3)
            assert (whole.offset, whole.nbytes) == (streams[name].begin, streams[name].nbytes)
            assert [nbytes(chunk) for chunk in range(3)] == [extent(chunk, chunk + 1).nbytes for chunk in range(3)]
            assert extent(0, 1).nbytes + extent(1, 3).nbytes == whole.nbytes
            assert all(extent(chunk, chunk + 1).nbytes % 64 == 0 for chunk in range(3))

    def test_chunks_of_what_is_stored_raw(self, path: Path) -> None:
        tensors = read_packed(path).tensors
        assert (tensors["v"].rows, tensors["v"].row_bytes, tensors["v"].rows_per_chunk) == (300, 4000, 524)
        assert (tensors["n"].rows, tensors["n"].row_bytes, tensors["n"].nbytes) == (1, 200, 256)

    @pytest.mark.parametrize("chunk", [0, 2])
    def test_checks_of_chunks(self, chunk: int, path: Path) -> None:
        tensor, files = read_packed(path).tensors["w"], Files()
        for extent, check, tier in (
            (tensor.coarse_extent(chunk, chunk + 1), tensor.check_coarse, "coarse"),
            (tensor.fine_extent(chunk, chunk + 1), tensor.check_fine, "fine"),
        ):
            data = files.read(extent, aligned_buffer(extent.nbytes))
            check(chunk, data)
            data[-1] ^= 1
            with pytest.raises(ChecksumError) as caught:
                check(chunk, data)
            where = f"{extent.nbytes:,} bytes at offset {extent.offset:,} (rows {chunk * 512:,} and on, {tier})"
            assert caught.value.problem.startswith(f"{path}: tensor 'w', {where}: the checksum does not match")
            assert "pull or pack it again" in caught.value.remedy
        files.close()

    def test_what_is_packed(self, path: Path, tmp_path: Path) -> None:
        (tmp_path / "plain").write_bytes(file_content(ENTRIES))
        assert is_packed_file(read_header(path))
        assert not is_packed_file(read_header(tmp_path / "plain"))

    def test_one_whose_metadata_is_damaged_counts_as_packed(self, path: Path) -> None:
        flip(path, path.read_bytes().index(b'"penstock"') + 3)
        assert is_packed_file(read_header(path))
        with pytest.raises(ChecksumError, match=r"bytes 0 to 4,096 \(header\), or"):
            read_packed(path)


def of_index(**values: Any) -> Callable[[Parts], Any]:
    return lambda parts: parts.index.update(values)


def of_entry(number: int, **values: Any) -> Callable[[Parts], Any]:
    return lambda parts: parts.index["tensors"][number].update(values)


def of_record(number: int, field: str, value: int) -> Callable[[Parts], Any]:
    def edit(parts: Parts) -> None:
        parts.records[field][number] = value

    return edit


def of_stream(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Parts], Any]:
    return lambda parts: parts.streams.update({name: edit(parts.streams[name])})


def renamed(old: str, new: str) -> Callable[[Parts], Any]:
    def edit(parts: Parts) -> None:
        parts.streams = {new if name == old else name: part for name, part in parts.streams.items()}

    return edit


def swapped(parts: Parts) -> None:
    entries = parts.index["tensors"]
    entries[0], entries[1] = entries[1], entries[0]
    parts.records = parts.records[[3, 0, 1, 2, 4]]


def given_chunks(content: bytes) -> Callable[[Parts], Any]:
    return lambda parts: parts.streams.update({CHUNKS: content})


def filled_chunks(filler: bytes) -> Callable[[Parts], Any]:
    return lambda parts: parts.streams.update({CHUNKS: parts.records.tobytes() + filler})


WRONG = {
    "version in the metadata": (lambda p: p.metadata.update(version="3"), "has version '3' of the packed format"),
    "two versions": (lambda p: p.metadata.update(version="2"), "is of version 1, but the metadata say 2"),
    "no version": (lambda p: p.metadata.pop("version"), "has version None of the packed format"),
    "version in the index": (of_index(version=3), "has version 3 of the packed format, made by a newer Penstock"),
    "version as text": (of_index(version="1"), "has version '1' of the packed format"),
    "header_bytes too small": (of_index(header_bytes=8), "does not hold header_bytes = 8 bytes and zeros"),
    "header_bytes negative": (of_index(header_bytes=-1), "header_bytes is -1, not a positive integer"),
    "a key too many": (of_index(more=1), "has the key 'more', which version 1 does not define"),
    "no tensors": (of_index(tensors=None), "tensors is None, not a list of objects"),
    "tensors of numbers": (of_index(tensors=[1]), "tensors is [1], not a list of objects"),
    "no tensor named": (of_index(tensors=[]), "has 128 bytes, not 0 and zeros up to a multiple of 64"),
    "another name": (of_entry(0, name="x"), "names 'x', which the original header does not have"),
    "a name of no text": (of_entry(0, name=[]), "names [], which the original header does not have"),
    "another codec": (of_entry(0, codec="raw"), "codec is 'raw', not 'planes', as the format has 'w'"),
    "an unknown codec": (of_entry(1, codec="zip"), "codec is 'zip', not 'raw', as the format has 'v'"),
    "rows_per_chunk 0": (of_entry(0, rows_per_chunk=0), "rows_per_chunk is 0, not a positive integer"),
    "rows_per_chunk too large": (of_entry(0, rows_per_chunk=513), "rows_per_chunk is 513, not 512 at most"),
    "rows_per_chunk too small": (of_entry(0, rows_per_chunk=300), "chunks is 3, not 5"),
    "fewer chunks": (of_entry(0, chunks=2), "chunks is 2, not 3, as the 1,300 rows of 'w' have"),
    "more chunks": (of_entry(2, chunks=2**31 - 1), "chunks is 2147483647, not 1"),
    "negative chunks": (of_entry(2, chunks=-1), "chunks is -1, not an integer from 0"),
    "an unknown key": (of_entry(0, bits=3), "gives 'w' the unknown key 'bits'"),
    "tensors twice": (lambda p: p.index["tensors"].append(p.index["tensors"][2]), "'n.raw' has 256 bytes, not 0"),
    "tensors in another order": (swapped, "'v.raw' begins at byte"),
    "a fine size of 0": (of_record(0, "fine_bytes", 0), "w.fine' has"),
    "a fine size beyond all": (of_record(0, "fine_bytes", 2**32 - 1), "w.fine' has"),
    "a raw size": (of_record(3, "fine_bytes", 64), "v.raw' has"),
    "a coarse hash of raw": (of_record(3, "coarse_hash", 5), "gives a chunk of 'v' a coarse hash"),
    "a longer coarse stream": (of_stream("w.coarse", lambda part: part + bytes(4096)), "'w.coarse' has"),
    "a shorter raw stream": (of_stream("n.raw", lambda part: part[:-64]), "'n.raw' has 192 bytes, not 256"),
    "a stream of another name": (renamed("w.fine", "w.find"), "lacks 'w.fine', which penstock.index calls for"),
    "a stream too many": (lambda p: p.streams.update({"y": b"", **p.streams}), "holds tensors that"),
    "no chunks": (given_chunks(b""), f"{CHUNKS} is shorter than {INDEX} says"),
    "filled chunks": (filled_chunks(b"x" * 28), f"{CHUNKS} has 128 bytes, not 100 and zeros"),
    "too many chunks": (filled_chunks(bytes(92)), f"{CHUNKS} has 192 bytes, not 100 and zeros"),
    "another original header": (of_stream(HEADER, lambda part: b"\x01" + part[1:]), f"({HEADER})"),
    "an original header of a lie": (of_stream(HEADER, lambda part: part.replace(b"F32", b"F64")), "tensor 'v' has"),
    "filled original header": (of_stream(HEADER, lambda part: part[:-1] + b"x"), f"{HEADER} does not hold"),
    "an index of anything": (lambda p: p.streams.update({INDEX: b"[" * 64}), "penstock.index is not JSON"),
    "a key twice": (lambda p: p.streams.update({INDEX: b'{"version":1,"version":1}'.ljust(64)}), "'version' twice"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "words"), WRONG.values(), ids=WRONG)
def test_what_breaks_the_format_under_a_sound_seal_is_refused(
    edit: Callable[[Parts], Any], words: str, path: Path
) -> None:
    parts = Parts.of(path)
    edit(parts)
    parts.write(path)
    with pytest.raises(FormatError) as caught:
        read_packed(path)
    assert words in caught.value.problem
    assert str(path) in caught.value.problem
    assert caught.value.remedy


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "sound"
    pack_bytes(file_content(ENTRIES), path)
    return path


@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_bytes_of_anything_under_a_sound_seal_never_crash(sound: Path, data: st.DataObject) -> None:
    parts = Parts.of(sound)
    parts.streams |= {CHUNKS: parts.records.tobytes().ljust(128, b"\0"), INDEX: index_bytes(parts)}
    name = data.draw(st.sampled_from([HEADER, CHUNKS, INDEX]))
    content = bytearray(parts.streams[name])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    parts.streams[name] = bytes(content)
    changed = sound.with_name("changed")
    parts.write(changed)
    for tensor in tensors_or_none(changed):
        assert tensor.nbytes >= 0
        assert all(0 < tensor.fine_nbytes(chunk) < 2**21 for chunk in range(tensor.n_chunks))


def tensors_or_none(path: Path) -> list[PackedTensor]:
    try:
        return list(read_packed(path).tensors.values())
    except FormatError as error:
        if str(path) not in error.problem:
            raise
        return []


def index_bytes(parts: Parts) -> bytes:
    content = json.dumps(parts.index).encode()
    return content.ljust(-(-len(content) // 64) * 64)


def test_parts_put_together_again_are_sound(path: Path) -> None:
    """So what the test above refuses is refused for what it has changed."""
    Parts.of(path).write(path)
    assert read_packed(path).tensors.keys() == {"w", "v", "n"}


@pytest.mark.parametrize("first", [0, 64, 65])
def test_fine_sizes_that_add_up_but_cannot_be_are_refused(first: int, path: Path) -> None:
    """Chunks of no bytes, of more than rows can take, of no multiple of 64."""
    parts = Parts.of(path)
    sizes = parts.records["fine_bytes"]
    sizes[1] += sizes[0] + sizes[2] - 2 * first
    sizes[0] = sizes[2] = first
    parts.write(path)
    with pytest.raises(FormatError, match=f"{CHUNKS} gives a chunk of 'w' a size that is none of the format"):
        read_packed(path)


def test_a_file_without_the_last_tensors(tmp_path: Path) -> None:
    content = file_content([("w", "U8", (64,))], metadata={"format": "penstock", "version": "1"})
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(FormatError, match=f"its last tensors are not {', '.join(SERVICE)}"):
        read_packed(tmp_path / "x")
    (tmp_path / "x").write_bytes(content.replace(b'"version": "1"', b'"version": "7"'))
    with pytest.raises(FormatError, match="has version '7' of the packed format, made by a newer Penstock"):
        read_packed(tmp_path / "x")
