from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.checkpoints import safetensors_bytes
from helpers.packed_files import BytesSource, Entry, file_content, pack_bytes, packable_config, unpack_bytes
from helpers.thorough import examples, quick
from penstock.compute import codec
from penstock.errors import FormatError, PenstockError
from penstock.packed_format.reader import SERVICE, read_packed
from penstock.packed_format.runs import PassOrder
from penstock.packing.pack_file import pack_file
from penstock.safetensors_header import DType, read_header

MATRIX: Entry = ("w", "BF16", (300, 256))
MIXED: list[Entry] = [
    ("norm", "BF16", (256,)),
    ("b", "BF16", (700, 1024)),
    ("half", "F16", (30, 50)),
    ("a", "BF16", (256, 259)),
    ("empty", "F32", (0, 3)),
    ("scalar", "F64", ()),
    ("odd", "I8", (7,)),
    ("nothing", "BF16", (5, 0)),
]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that hypothesis may write again and again."""
    return tmp_path_factory.mktemp("pack") / "x.safetensors"


def dtypes_and_shapes() -> st.SearchStrategy[tuple[str, tuple[int, ...]]]:
    names = st.sampled_from([dtype.value for dtype in DType])
    any_of_them = st.tuples(names, st.lists(st.integers(0, 6), max_size=4).map(tuple)).filter(
        lambda one: math.prod(one[1]) * DType(one[0]).bits % 8 == 0
    )
    matrices = st.tuples(st.just("BF16"), st.tuples(st.integers(64, 700), st.integers(1000, 2100)))
    return any_of_them | matrices


@settings(max_examples=examples(30))
@given(
    tensors=st.dictionaries(st.text(min_size=1, max_size=8), dtypes_and_shapes(), max_size=6),
    seed=st.integers(0, 2**32),
    padding=st.integers(0, 70),
    metadata=st.none() | st.dictionaries(st.text(max_size=4), st.text(max_size=9), max_size=2),
)
def test_any_file_comes_back_byte_for_byte(
    scratch: Path,
    tensors: dict[str, tuple[str, tuple[int, ...]]],
    seed: int,
    padding: int,
    metadata: dict[str, str] | None,
) -> None:
    tensors.pop("__metadata__", None)
    content = file_content([(name, *kind) for name, kind in tensors.items()], seed, padding, metadata)
    file = pack_bytes(content, scratch)
    assert unpack_bytes(scratch) == content
    assert file.original_size == len(content)
    assert file.tensors.keys() == tensors.keys()


def test_every_bf16_pattern_comes_back(tmp_path: Path) -> None:
    patterns = np.arange(65_536, dtype=np.uint16)
    tensors = {
        "rows": patterns.reshape(256, 256),
        "cols": np.ascontiguousarray(patterns.reshape(256, 256).T),
        "mixed": np.random.default_rng(0).permutation(patterns).reshape(128, 512),
        "one row": patterns.reshape(1, 65_536),
        "one column": patterns.reshape(65_536, 1),
    }
    content = safetensors_bytes(tensors, {"format": "pt"})
    file = pack_bytes(content, tmp_path / "x")
    assert {name for name, tensor in file.tensors.items() if tensor.codec == "raw"} == {"one column"}
    assert unpack_bytes(tmp_path / "x") == content


@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_do_not_depend_on_threads(threads: int, tmp_path: Path) -> None:
    content = file_content(MIXED)
    pack_bytes(content, tmp_path / "two", threads=2)
    pack_bytes(content, tmp_path / "other", threads=threads)
    assert (tmp_path / "other").read_bytes() == (tmp_path / "two").read_bytes()


def test_matrices_come_in_pass_order_and_the_rest_as_it_was(tmp_path: Path) -> None:
    shape = (256, 256)
    down, up, q = (f"model.layers.0.{part}.weight" for part in ("mlp.down_proj", "mlp.up_proj", "self_attn.q_proj"))
    entries: list[Entry] = [
        ("model.norm.weight", "BF16", (256,)),
        ("lm_head.weight", "BF16", (512, 256)),
        ("extra", "BF16", shape),
        *((name, "BF16", shape) for name in (down, up, q)),
        ("a.bias", "F32", (3,)),
        ("model.embed_tokens.weight", "BF16", (512, 256)),
    ]
    file = pack_bytes(file_content(entries), tmp_path / "x", config=packable_config())
    matrices = ["model.embed_tokens.weight", q, up, down, "lm_head.weight", "extra"]
    assert list(file.tensors) == [*matrices, "model.norm.weight", "a.bias"]


def test_the_prefix_of_a_split_file_counts(tmp_path: Path) -> None:
    entries: list[Entry] = [
        ("mlp.down_proj.weight", "BF16", (256, 384)),
        ("self_attn.q_proj.weight", "BF16", (256, 256)),
    ]
    file = pack_bytes(file_content(entries), tmp_path / "x", config=packable_config(), prefix="model.layers.1.")
    assert list(file.tensors) == ["self_attn.q_proj.weight", "mlp.down_proj.weight"]


def test_embeddings_have_small_chunks(tmp_path: Path) -> None:
    content = file_content([("weight", "BF16", (512, 256))])
    [embedding] = pack_bytes(content, tmp_path / "x", prefix="model.embed_tokens.").tensors.values()
    [other] = pack_bytes(content, tmp_path / "y").tensors.values()
    assert (embedding.rows_per_chunk, embedding.n_chunks) == (64, 8)
    assert (other.rows_per_chunk, other.n_chunks) == (2048, 1)


def test_the_result_is_a_safetensors_file_without_holes(tmp_path: Path) -> None:
    pack_bytes(file_content(MIXED), tmp_path / "x")
    header = read_header(tmp_path / "x")
    names = ["b.coarse", "b.fine", "a.coarse", "a.fine"]
    names += [f"{name}.raw" for name in ("norm", "half", "empty", "scalar", "odd", "nothing")]
    assert sorted(header.tensors) == sorted([*names, *SERVICE])
    assert dict(header.metadata) == {"format": "penstock", "version": "1"}
    assert dict(safetensors.deserialize((tmp_path / "x").read_bytes())).keys() == header.tensors.keys()
    assert header.data_begin % 4096 == 0
    for tensor in header.tensors.values():
        assert (tensor.dtype, len(tensor.shape)) == (DType.U8, 1)
        assert tensor.begin % (4096 if tensor.name.endswith((".coarse", ".fine")) else 64) == 0


def test_the_source_is_asked_for_every_byte_of_data_once(tmp_path: Path) -> None:
    content = file_content(MIXED)
    source, seen = BytesSource(content), 0

    def count(nbytes: int) -> None:
        nonlocal seen
        seen += nbytes

    with ThreadPoolExecutor(2) as pool:
        saved = pack_file(source, source.header(), tmp_path / "x", tmp_path / "y", PassOrder("", {}), pool, count)
    covered = sorted(source.asked)
    assert sum(nbytes for _, nbytes in covered) + len(source.header()) == len(content) == seen
    assert all(begin + nbytes == after for (begin, nbytes), (after, _) in pairwise(covered))
    assert saved == len(source.header())


def test_large_tensors_of_any_shape_go_in_small_chunks(tmp_path: Path) -> None:
    entries: list[Entry] = [
        ("experts", "BF16", (3, 1024, 700)),
        ("row", "F32", (2, 300_000)),
        ("nibbles", "F4", (3, 2)),
        ("one", "F16", (262_144,)),
    ]
    content = file_content(entries)
    file = pack_bytes(content, tmp_path / "x")
    cuts = {name: (tensor.rows, tensor.row_bytes) for name, tensor in file.tensors.items()}
    assert cuts == {
        "experts": (3 * 1024 * 700 * 2, 1),
        "row": (2 * 300_000 * 4, 1),
        "nibbles": (3, 1),
        "one": (1, 524_288),
    }
    assert max(tensor.fine_nbytes(c) for tensor in file.tensors.values() for c in range(tensor.n_chunks)) <= 1 << 20
    assert unpack_bytes(tmp_path / "x") == content


def test_a_header_that_lies_is_refused(tmp_path: Path) -> None:
    content = file_content([MATRIX])
    with pytest.raises(FormatError, match="bytes that belong to no tensor"):
        pack_bytes(content + b"more", tmp_path / "x")


def test_what_does_not_come_back_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = codec.encode

    def wrong(weights: Any, rows: int, cols: int, coarse: Any, fine: Any) -> int:
        changed = weights.copy()
        changed[rows * cols] ^= 1
        return encode(changed, rows, cols, coarse, fine)

    monkeypatch.setattr(codec, "encode", wrong)
    with pytest.raises(PenstockError, match="'w' does not come back from its packed form as it was") as caught:
        pack_bytes(file_content([MATRIX]), tmp_path / "x")
    assert "defect of Penstock" in caught.value.remedy
    assert not (tmp_path / "x").exists()


def test_nor_is_what_cannot_be_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where an earlier chunk of the same weights has come back into the same memory."""
    encode, calls = codec.encode, 0

    def wrong(weights: Any, rows: int, cols: int, coarse: Any, fine: Any) -> int:
        nonlocal calls
        size, calls = encode(weights, rows, cols, coarse, fine), calls + 1
        if calls == 2:
            fine[:4] = 255
        return size

    monkeypatch.setattr(codec, "encode", wrong)
    weights = file_content([("w", "BF16", (512, 1024))])[-(1 << 20) :]
    header = file_content([("w", "BF16", (1024, 1024))])[: -(2 << 20)]
    with pytest.raises(PenstockError, match="'w' does not come back from its packed form as it was"):
        pack_bytes(header + 2 * weights, tmp_path / "x", threads=1)


def test_narrow_matrices_come_back_too(tmp_path: Path) -> None:
    content = file_content([("w", "BF16", (1_200_000, 1)), ("x", "BF16", (30_000, 3))])
    pack_bytes(content, tmp_path / "x")
    assert unpack_bytes(tmp_path / "x") == content


def test_the_index_says_how_tensors_are_stored(tmp_path: Path) -> None:
    pack_bytes(file_content([MATRIX, ("v", "F32", (5,))]), tmp_path / "x")
    header = read_header(tmp_path / "x")
    place = header.tensors["penstock.index"]
    content = (tmp_path / "x").read_bytes()[place.begin : place.end]
    assert json.loads(content)["tensors"] == [
        {"name": "w", "codec": "planes", "rows_per_chunk": 2048, "chunks": 1},
        {"name": "v", "codec": "raw", "rows_per_chunk": 104_857, "chunks": 1},
    ]


class TestResume:
    """Of a file whose packing was interrupted."""

    @pytest.fixture
    def content(self) -> bytes:
        return file_content([*MIXED, ("c", "BF16", (1500, 1024)), ("last", "BF16", (9,))])

    def interrupt(self, content: bytes, path: Path, after: int) -> None:
        """Stop once `after` bytes of the original are written; the journal goes along."""
        source, seen = BytesSource(content), 0

        def count(nbytes: int) -> None:
            nonlocal seen
            seen += nbytes
            if seen > after:
                raise KeyboardInterrupt

        partial = path.with_name(f"{path.name}.partial")
        with ThreadPoolExecutor(2) as pool, pytest.MonkeyPatch.context() as patch:
            patch.setattr("penstock.packed_format.writer.SYNC_BYTES", 1)
            patch.setattr("penstock.packed_format.runs.RUN_BYTES", 1 << 20)
            with pytest.raises(KeyboardInterrupt):
                pack_file(source, source.header(), path, partial, PassOrder("", {}), pool, count)

    def resume(self, content: bytes, path: Path) -> int:
        """Bytes of the original that the source is asked for."""
        source, partial = BytesSource(content), path.with_name(f"{path.name}.partial")
        with ThreadPoolExecutor(2) as pool:
            pack_file(source, source.header(), path, partial, PassOrder("", {}), pool, lambda nbytes: None)
        return sum(nbytes for _, nbytes in source.asked)

    @pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 0.999])
    def test_goes_on_where_it_was_with_the_same_result(self, content: bytes, share: float, tmp_path: Path) -> None:
        pack_bytes(content, tmp_path / "whole")
        self.interrupt(content, tmp_path / "x", int(share * len(content)))
        assert not (tmp_path / "x").exists()
        asked = self.resume(content, tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == (tmp_path / "whole").read_bytes()
        assert asked <= (1.01 - share) * len(content)
        assert {file.name for file in tmp_path.iterdir()} == {"whole", "x"}

    @pytest.mark.parametrize("place", quick([0, 45, 99], range(0, 100, 9)))
    def test_chunks_that_are_damaged_are_made_anew(self, content: bytes, place: int, tmp_path: Path) -> None:
        pack_bytes(content, tmp_path / "whole")
        self.interrupt(content, tmp_path / "x", int(0.9 * len(content)))
        partial = tmp_path / "x.partial"
        damaged = bytearray(partial.read_bytes())
        damaged[place * len(damaged) // 100] ^= 4
        partial.write_bytes(damaged)
        self.resume(content, tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == (tmp_path / "whole").read_bytes()

    @pytest.mark.parametrize("journal", [b"", b"torn", bytes(100), b"\xff" * 100, bytes(20_000)])
    def test_a_journal_of_anything_does_no_harm(self, content: bytes, journal: bytes, tmp_path: Path) -> None:
        pack_bytes(content, tmp_path / "whole")
        self.interrupt(content, tmp_path / "x", int(0.9 * len(content)))
        (tmp_path / "x.partial.journal").write_bytes(journal)
        self.resume(content, tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == (tmp_path / "whole").read_bytes()

    @pytest.mark.parametrize("size", [0, 1, 5000, 1_000_000])
    def test_a_partial_file_that_was_cut_does_no_harm(self, content: bytes, size: int, tmp_path: Path) -> None:
        pack_bytes(content, tmp_path / "whole")
        self.interrupt(content, tmp_path / "x", int(0.9 * len(content)))
        partial = tmp_path / "x.partial"
        partial.write_bytes(partial.read_bytes()[:size])
        self.resume(content, tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == (tmp_path / "whole").read_bytes()

    def test_a_partial_file_that_is_too_long_does_no_harm(self, content: bytes, tmp_path: Path) -> None:
        pack_bytes(content, tmp_path / "whole")
        (tmp_path / "x.partial").write_bytes(bytes(8_000_000))
        self.resume(content, tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == (tmp_path / "whole").read_bytes()
        assert read_packed(tmp_path / "x").file_size == (tmp_path / "x").stat().st_size
