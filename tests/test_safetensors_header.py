from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

import penstock
from helpers.checkpoints import file_bytes, safetensors_bytes
from penstock.errors import FormatError
from penstock.safetensors_header import DType, Header, TensorInfo, parse_header, read_header

DEMO = Path(penstock.__file__).parent / "data" / "demo"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that hypothesis may write again and again."""
    return tmp_path_factory.mktemp("format") / "x.safetensors"


def read_bytes(path: Path, content: bytes) -> Header:
    path.write_bytes(content)
    return read_header(path)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more


def one(**changes: Any) -> bytes:
    """A file with one tensor "w", F32 [2], its header entry changed."""
    return file_bytes({"w": entry(**changes)}, bytes(8))


def without(key: str) -> bytes:
    return file_bytes({"w": {name: value for name, value in entry().items() if name != key}}, bytes(8))


def two(first: tuple[int, int], second: tuple[int, int], n_bytes: int) -> bytes:
    """A file with the I8 tensors "a" and "b" at the given offsets and `n_bytes` bytes of data."""
    header = {
        name: entry("I8", [end - begin], [begin, end]) for name, (begin, end) in {"a": first, "b": second}.items()
    }
    return file_bytes(header, bytes(n_bytes))


def length(n_bytes: int, rest: bytes = b"") -> bytes:
    return n_bytes.to_bytes(8, "little") + rest


def test_reads_offsets_shapes_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(4, dtype=np.uint16)}
    content = safetensors_bytes(tensors, {"format": "pt"})
    header = read_bytes(path, content)
    begin = len(content) - 32
    assert list(header.tensors.values()) == [
        TensorInfo("b", DType.F32, (2, 3), path, begin, begin + 24),
        TensorInfo("a", DType.BF16, (4,), path, begin + 24, begin + 32),
    ]
    assert header.metadata == {"format": "pt"}
    assert (header.path, header.data_begin, header.file_size) == (path, begin, len(content))
    assert [(tensor.nbytes, tensor.n_elements) for tensor in header.tensors.values()] == [(24, 6), (8, 4)]


def test_a_header_may_be_read_before_the_rest_is_there(tmp_path: Path) -> None:
    content = safetensors_bytes({"w": np.arange(6, dtype=np.float32)}, {"format": "pt"})
    whole = read_bytes(tmp_path / "x", content)
    for first in (content[: whole.data_begin], content[: whole.data_begin + 5], content):
        assert parse_header(first, tmp_path / "x") == whole
        assert parse_header(first, tmp_path / "x", len(content)) == whole
    with pytest.raises(FormatError, match="1 bytes that belong to no tensor"):
        parse_header(content, tmp_path / "x", len(content) + 1)
    with pytest.raises(FormatError, match="is truncated: the header is"):
        parse_header(content[: whole.data_begin - 1], tmp_path / "x")


def test_tensors_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    header = {name: entry("I8", [2], [begin, begin + 2]) for name, begin in [("z", 4), ("y", 0), ("x", 2)]}
    assert list(read_bytes(tmp_path / "x", file_bytes(header, bytes(6))).tensors) == ["y", "x", "z"]


def test_scalars_empty_tensors_and_empty_files_are_sound(tmp_path: Path) -> None:
    tensors = {"scalar": np.float32(1).reshape(()), "empty": np.zeros((0, 3), np.float32)}
    header = read_bytes(tmp_path / "x", safetensors_bytes(tensors))
    assert [tensor.shape for tensor in header.tensors.values()] == [(), (0, 3)]
    assert read_bytes(tmp_path / "y", file_bytes({})).tensors == {}


def test_demo_model_agrees_with_safetensors() -> None:
    path = DEMO / "model.safetensors"
    header = read_header(path)
    content = path.read_bytes()
    theirs = dict(safetensors.deserialize(content))
    assert header.tensors.keys() == theirs.keys()
    for name, tensor in header.tensors.items():
        assert (tensor.dtype.value, list(tensor.shape)) == (theirs[name]["dtype"], theirs[name]["shape"])
        assert content[tensor.begin : tensor.end] == bytes(theirs[name]["data"])


@pytest.mark.parametrize("dtype", DType)
def test_dtype_sizes_agree_with_safetensors(dtype: DType, tmp_path: Path) -> None:
    content = file_bytes({"w": entry(dtype.value, [8], [0, dtype.bits])}, bytes(dtype.bits))
    assert read_bytes(tmp_path / "x", content).tensors["w"].nbytes == dtype.bits
    [(_, theirs)] = safetensors.deserialize(content)
    assert theirs["dtype"] == dtype.value


DEEP = b'{"w":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
DAMAGED = {
    "empty file": (b"", "is not a safetensors file: it has 0 bytes, fewer than the 8"),
    "7 bytes": (bytes(7), "is not a safetensors file: it has 7 bytes"),
    "length 0": (length(0, b"{}"), "the header's length is 0"),
    "length oversized": (length(100_000_001, b"{}"), "is 100,000,001 bytes, above the limit of 100,000,000"),
    "length 2**64 - 1": (length(2**64 - 1, b"{}"), "is 18,446,744,073,709,551,615 bytes, above the limit"),
    "length beyond file": (length(99, b"{}"), "is truncated: the header is 99 bytes long, but the file ends after 10"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer"),
    "not UTF-8": (file_bytes(b'{"\xff":1}'), "the header is not UTF-8 (at its byte 2)"),
    "not JSON": (file_bytes(b'{"w": }'), "the header is not JSON: Expecting value"),
    "starts with space": (file_bytes(b" {}"), "the header starts with b' ', not with '{'"),
    "a list": (file_bytes(b"[]"), "the header starts with b'[', not with '{'"),
    "text after it": (file_bytes(b"{} {}"), "the header is not JSON: Extra data"),
    "NaN": (file_bytes(b'{"w": NaN}'), "the header is not JSON: NaN is not a JSON value"),
    "lone surrogate": (file_bytes(b'{"\\ud800": {}}'), "the header is not JSON: 'utf-8' codec can't encode"),
    "number without end": (file_bytes(b'{"w": ' + b"9" * 5000 + b"}"), "the header "),
    "nested too deep": (file_bytes(DEEP), "the header is nested too deep"),
    "key twice": (file_bytes(b'{"w": {}, "w": {}}'), "the header has the key 'w' twice"),
    "key twice inside": (file_bytes(b'{"w": {"dtype": 1, "dtype": 2}}'), "the header has the key 'dtype' twice"),
    "metadata null": (file_bytes({"__metadata__": None}), "__metadata__ is None, not an object of strings"),
    "metadata number": (file_bytes({"__metadata__": {"a": 1}}), "__metadata__ gives 'a' the value 1, not a string"),
    "tensor a list": (file_bytes({"w": []}), "tensor 'w' is [], not an object"),
    "no dtype": (without("dtype"), "tensor 'w' has no dtype"),
    "no shape": (without("shape"), "tensor 'w' has no shape"),
    "no offsets": (without("data_offsets"), "tensor 'w' has no data_offsets"),
    "extra key": (one(stride=1), "tensor 'w' has the key 'stride', which safetensors does not define"),
    "unknown dtype": (one(dtype="F31"), "tensor 'w' has the unknown dtype 'F31'"),
    "dtype a list": (one(dtype=["F32"]), "tensor 'w' has the unknown dtype ['F32']"),
    "dtype a property": (one(dtype="bits"), "tensor 'w' has the unknown dtype 'bits'"),
    "shape a number": (one(shape=2), "tensor 'w' has the shape 2, not a list of non-negative integers"),
    "shape bool": (one(shape=[2, True]), "tensor 'w' has the shape [2, True], not a list"),
    "shape float": (one(shape=[2.0]), "tensor 'w' has the shape [2.0], not a list"),
    "shape negative": (one(shape=[-1, -2]), "tensor 'w' has the shape [-1, -2], not a list"),
    "shape huge": (one(shape=[2**63]), "more than 2**63 - 1 elements"),
    "shape overflows": (one(shape=[2**32, 2**32]), "more than 2**63 - 1 elements"),
    "shape overflows to 2": (one(shape=[2**63 + 1, 2]), "more than 2**63 - 1 elements"),
    "empty shape overflows": (one(shape=[2**62, 2**62, 0], offsets=[0, 0]), "more than 2**63 - 1 elements"),
    "shape without end": (one(shape=[2] * 100_000), "more than 2**63 - 1 elements"),
    "offsets a number": (one(offsets=8), "tensor 'w' has the data_offsets 8, not two integers"),
    "one offset": (one(offsets=[8]), "tensor 'w' has the data_offsets [8], not two integers"),
    "offsets floats": (one(offsets=[0.0, 8.0]), "tensor 'w' has the data_offsets [0.0, 8.0], not two integers"),
    "offsets bools": (one(offsets=[False, 8]), "tensor 'w' has the data_offsets [False, 8], not two integers"),
    "offset negative": (one(offsets=[-8, 0]), "[-8, 0], one of which is negative or beyond any file"),
    "offset overflows": (one(offsets=[2**63, 2**63 + 8]), "one of which is negative or beyond any file"),
    "end before begin": (one(offsets=[8, 0]), "tensor 'w' has the data_offsets [8, 0], which end before they begin"),
    "too few bytes": (one(offsets=[0, 7]), "tensor 'w' has 7 bytes by its data_offsets, but F32 of shape [2] takes 8"),
    "too many bytes": (one(shape=[3]), "tensor 'w' has 8 bytes by its data_offsets, but F32 of shape [3] takes 12"),
    "half a byte": (one(dtype="F4", shape=[15]), "tensor 'w' has 60 bits (F4, shape [15]), not whole bytes"),
    "beyond the data": (one(shape=[4], offsets=[0, 16]), "tensor 'w' ends at byte 88, but the file has 80: truncated"),
    "hole at the start": (two((1, 2), (2, 3), 3), "tensor 'a' begins 1 bytes after the end of the header: a hole"),
    "hole": (two((0, 2), (3, 4), 4), "tensor 'b' begins 1 bytes after the end of 'a': a hole in the data"),
    "overlap": (two((0, 3), (1, 4), 4), "tensor 'b' overlaps 'a' by 2 bytes"),
    "the same bytes": (two((0, 4), (0, 4), 4), "tensor 'b' overlaps 'a' by 4 bytes"),
    "empty inside another": (two((0, 4), (2, 2), 4), "tensor 'b' overlaps 'a' by 2 bytes"),
    "trailing bytes": (two((0, 2), (2, 4), 5), "has 1 bytes that belong to no tensor after the end of 'b'"),
    "only trailing bytes": (file_bytes({}, bytes(3)), "3 bytes that belong to no tensor after the end of the header"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_named(damage: str, tmp_path: Path) -> None:
    content, message = DAMAGED[damage]
    path = tmp_path / "model.safetensors"
    with pytest.raises(FormatError) as caught:
        read_bytes(path, content)
    problem, remedy = caught.value.problem, caught.value.remedy
    assert message in problem
    assert str(path) in problem
    assert "\n" not in problem + remedy
    assert len(problem) < len(str(path)) + 300
    assert remedy


def test_lfs_pointer_has_its_own_remedy(tmp_path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        read_bytes(tmp_path / "x", b"version https://git-lfs.github.com/spec/v1\n")
    assert f"git lfs pull` in {tmp_path}" in caught.value.remedy


def test_long_names_are_shortened_and_stay_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        read_bytes(tmp_path / "x", file_bytes({"a\nb" * 1000: []}))
    assert "tensor 'a\\nba\\nb" in caught.value.problem
    assert len(caught.value.problem) < 200 + len(str(tmp_path))


@pytest.mark.parametrize("n_bytes", range(8))
def test_every_truncation_is_found(n_bytes: int, tmp_path: Path) -> None:
    content = safetensors_bytes({"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)})
    with pytest.raises(FormatError, match="truncated"):
        read_bytes(tmp_path / "x", content[: len(content) - 8 + n_bytes])


def test_directory_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is a directory, not a file"):
        read_header(tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"x\.safetensors cannot be read: No such file or directory"):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    with pytest.raises(FormatError, match="is a device, pipe or socket, not a file"):
        read_header(tmp_path / "x")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x").write_bytes(safetensors_bytes({}))
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(FormatError, match="x cannot be read: Permission denied"):
        read_header(tmp_path / "x")


def accepts(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return False
    return True


def check_any(path: Path, content: bytes) -> None:
    """Any bytes parse or raise FormatError; what parses is sound, and the safetensors library takes it too."""
    try:
        header = read_bytes(path, content)
    except FormatError:
        return
    assert accepts(content)
    end = header.data_begin
    for tensor in header.tensors.values():
        assert tensor.begin == end
        assert tensor.nbytes * 8 == math.prod(tensor.shape) * tensor.dtype.bits
        end = tensor.end
    assert end == header.file_size == len(content)


ARRAYS = st_numpy.arrays(
    st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_]),
    st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = TEXT.filter(lambda name: name != "__metadata__")


@given(st.dictionaries(NAMES, ARRAYS, max_size=6), st.none() | st.dictionaries(TEXT, TEXT, max_size=3))
def test_reads_whatever_safetensors_writes(
    scratch: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None
) -> None:
    assume(tensors or metadata != {})  # for neither, safetensors 0.8.0 writes a header that is not JSON
    content = safetensors.numpy.save(tensors, metadata)
    header = read_bytes(scratch, content)
    assert header.metadata == (metadata or {})
    assert header.tensors.keys() == tensors.keys()
    for name, tensor in header.tensors.items():
        assert tensor.shape == tensors[name].shape
        assert content[tensor.begin : tensor.end] == tensors[name].tobytes()


@given(st.binary(max_size=64))
def test_any_bytes(scratch: Path, content: bytes) -> None:
    check_any(scratch, content)


@given(st.binary(max_size=64), st.binary(max_size=8))
def test_any_header_bytes(scratch: Path, raw: bytes, data: bytes) -> None:
    check_any(scratch, file_bytes(b"{" + raw, data))


ODD = st.sampled_from(
    [0, 1, 2, 4, 8, -1, 2**31, 2**63, 2**64, 1e300, True, None, "F32", "BF16", "F4", "x", [], {}, [0, 8]]
)
JSON = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
DTYPES = st.sampled_from([dtype.value for dtype in DType]) | JSON
SIZES = st.lists(st.integers(0, 4), max_size=3) | JSON
OFFSETS = st.tuples(st.integers(-1, 20), st.integers(-1, 20)) | JSON
ENTRIES = st.fixed_dictionaries({"dtype": DTYPES, "shape": SIZES, "data_offsets": OFFSETS}) | JSON


@given(st.dictionaries(TEXT | st.just("__metadata__"), ENTRIES, max_size=3), st.integers(0, 20))
def test_any_header_object(scratch: Path, header: dict[str, Any], n_bytes: int) -> None:
    check_any(scratch, file_bytes(header, bytes(n_bytes)))


SOUND = safetensors_bytes(
    {"a": np.zeros((2, 3), np.float32), "b": np.zeros(0, np.int8), "c": np.zeros((), np.uint16)}, {"format": "pt"}
)


@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_bytes_changed_in_a_sound_file(scratch: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(SOUND)
    for at, value in changes:
        content[at] = value
    check_any(scratch, bytes(content))


@given(st.integers(0, len(SOUND)), st.integers(0, len(SOUND)), st.binary(max_size=4))
def test_bytes_cut_or_inserted_in_a_sound_file(scratch: Path, begin: int, end: int, between: bytes) -> None:
    check_any(scratch, SOUND[:begin] + between + SOUND[end:])


@given(st.data())
def test_fields_changed_in_a_sound_header(scratch: Path, data: st.DataObject) -> None:
    n_bytes = int.from_bytes(SOUND[:8], "little")
    header = json.loads(SOUND[8 : 8 + n_bytes])
    name = data.draw(st.sampled_from(["a", "b", "c"]))
    header[name][data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = data.draw(DTYPES | SIZES | OFFSETS)
    check_any(scratch, file_bytes(header, SOUND[8 + n_bytes :]))
