"""GGUF headers: what a sound one says, and that no other is believed."""

from __future__ import annotations

import struct
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.checkpoints import random_tensors, tiny_config
from helpers.gguf import Info, Typed, converted, gguf_bytes, header_bytes, metadata_of, string_bytes
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.errors import CheckpointError, CheckpointWarning, FormatError, PenstockError, UnsupportedError
from penstock.gguf.reader import SHORT_ARRAY, read_gguf
from penstock.safetensors_header import DType

MEMORY = 8 << 20
"""Above what reading the header of a tiny file may take at most, whatever it says."""


def read(path: Path, content: bytes, **options: Any) -> Any:
    (path / "m.gguf").write_bytes(content)
    return read_gguf(path / "m.gguf", **options)


def check_malformed(path: Path, content: bytes, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        read(path, content)
    assert message in caught.value.problem
    assert "\n" not in caught.value.problem + caught.value.remedy


def tiny() -> bytes:
    """A whole model with two layers."""
    config = tiny_config(intermediate_size=8, hidden_size=8, num_attention_heads=1, num_key_value_heads=1)
    more = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.scores": [0.5, 1.0]}
    return gguf_bytes(metadata_of(config) | more, converted(config, random_tensors(config)))


class TestSound:
    @pytest.mark.parametrize("version", [2, 3])
    def test_values_and_tensors(self, version: int, tmp_path: Path) -> None:
        values = {
            **{f"n{kind}": Typed(kind, 200 if kind != 1 else -3) for kind in (0, 1, 2, 3, 4, 5, 10, 11)},
            "float": 0.5,
            "double": Typed(12, 0.1),
            "yes": True,
            "text": "ä",
            "list": [1, 2, 3],
            "names": ["a", "", "c"],
        }
        tensors = {
            "a": np.arange(6, dtype=np.float32).reshape(2, 3),
            "b": np.arange(3, dtype=np.float16),
            "c": np.arange(4, dtype=np.uint16).reshape(4, 1),
        }
        header = read(tmp_path, gguf_bytes(values, tensors, version))
        assert dict(header.metadata) == {k: v.value if isinstance(v, Typed) else v for k, v in values.items()}
        content = (tmp_path / "m.gguf").read_bytes()
        for (name, values_of), dtype in zip(tensors.items(), (DType.F32, DType.F16, DType.BF16), strict=True):
            tensor = header.tensors[name]
            assert (tensor.dtype, tensor.shape) == (dtype, values_of.shape)
            assert content[tensor.begin : tensor.end] == values_of.tobytes()

    def test_long_arrays_where_they_are_asked_for(self, tmp_path: Path) -> None:
        content = gguf_bytes({"long": ["x"] * (SHORT_ARRAY + 1), "numbers": [1] * (SHORT_ARRAY + 1), "after": 1}, {})
        assert dict(read(tmp_path, content).metadata) == {"after": 1}
        assert len(read(tmp_path, content, arrays=True).metadata["long"]) == SHORT_ARRAY + 1

    def test_another_alignment(self, tmp_path: Path) -> None:
        head = header_bytes({"general.alignment": 64}, [Info("a", (4,), 0, 64)])
        content = head + b"\0" * (-len(head) % 64 + 64) + np.arange(4, dtype=np.float32).tobytes()
        tensor = read(tmp_path, content).tensors["a"]
        assert tensor.begin % 64 == 0
        assert content[tensor.begin :] == np.arange(4, dtype=np.float32).tobytes()


class TestMalformed:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is not a GGUF file: it starts with b''"),
            (b"GGML" + bytes(40), "is not a GGUF file: it starts with b'GGML'"),
            (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
            (
                b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
                "counts 1,152,921,504,606,846,976 tensors, more than the file",
            ),
            (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**64 - 1), "metadata entries, more than the file has room for"),
            (header_bytes({"a": 1}, []) + header_bytes({"a": 1}, [])[24:], ""),
        ],
    )
    def test_beginnings(self, content: bytes, message: str, tmp_path: Path) -> None:
        if not message:
            content = content[:16] + struct.pack("<Q", 2) + content[24:]
            message = "the metadata has the key 'a' twice"
        check_malformed(tmp_path, content, message)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (struct.pack("<IQ", 8, 2**62), "has a length of 4,611,686,018,427,387,904 bytes, above the limit"),
            (struct.pack("<IQ", 8, 1) + b"\xff", "the value of 'k' is not UTF-8 (at its byte 0)"),
            (struct.pack("<I", 13), "the value of 'k' has the unknown type 13"),
            (struct.pack("<IIQ", 9, 9, 1), "is an array of the type 9, which is not one of numbers or strings"),
            (struct.pack("<IIQ", 9, 8, 2**61), "counts 2,305,843,009,213,693,952 strings, more than the file"),
            (struct.pack("<IIQ", 9, 12, 2**61), "the value of 'k' takes 18,446,744,073,709,551,616 bytes"),
        ],
    )
    def test_values(self, value: bytes, message: str, tmp_path: Path) -> None:
        content = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string_bytes("k") + value
        check_malformed(tmp_path, content + b"" if "bytes" in message else content + bytes(16), message)

    def test_long_names(self, tmp_path: Path) -> None:
        check_malformed(tmp_path, gguf_bytes({"k" * 70_000: 1}, {}), "above the limit of 65,535")
        content = gguf_bytes({}, {"t" * 2000: np.zeros(4, np.float32)})
        check_malformed(tmp_path, content, "the name of a tensor has a length of 2,000 bytes")

    @pytest.mark.parametrize(
        ("infos", "message"),
        [
            ([Info("a", (), 0, 0)], "'a' has 0 dimensions"),
            ([Info("a", (1, 1, 1, 1, 1), 0, 0)], "'a' has 5 dimensions"),
            ([Info("a", (0, 4), 0, 0)], "has the dimensions [0, 4]: none, or more"),
            ([Info("a", (2**40, 2**40), 0, 0)], "more than 2**63 - 1 elements"),
            ([Info("a", (4,), 99, 0)], "'a' has the unknown type 99"),
            ([Info("a", (4,), 0, 4)], "begins at offset 4, not a multiple of 32"),
            ([Info("a", (4,), 0, 2**63)], "truncated, or a wrong offset"),
            ([Info("a", (65,), 0, 0)], "truncated, or a wrong offset"),
            ([Info("a", (16,), 0, 0), Info("b", (4,), 0, 32)], "'b' overlaps 'a'"),
            ([Info("a", (4,), 0, 0), Info("a", (4,), 0, 32)], "the tensor 'a' is there twice"),
        ],
    )
    def test_tensors(self, infos: list[Info], message: str, tmp_path: Path) -> None:
        head = header_bytes({"general.architecture": "llama"}, infos)
        check_malformed(tmp_path, head + bytes(-len(head) % 32 + 256), message)

    def test_tensors_of_integers(self, tmp_path: Path) -> None:
        content = header_bytes({"general.architecture": "llama"}, [Info("a", (4,), 26, 0)]) + bytes(64)
        with pytest.raises(UnsupportedError, match=r"1 tensors as I32 \('a' is one\), not BF16, F16 or F32"):
            read(tmp_path, content)

    @pytest.mark.parametrize("alignment", [0, 7, 2**31, "x"])
    def test_alignments(self, alignment: Any, tmp_path: Path) -> None:
        check_malformed(tmp_path, gguf_bytes({"general.alignment": alignment}, {}), "general.alignment is")

    @pytest.mark.parametrize(
        ("version", "words"), [(1, "has version 1"), (4, "has version 4"), (0x03000000, "is big-endian (version 3)")]
    )
    def test_versions(self, version: int, words: str, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedError, match="Penstock reads little-endian GGUF of versions 2 and 3") as caught:
            read(tmp_path, gguf_bytes({}, {}, version))
        assert words in caught.value.problem

    def test_a_directory_of_that_name(self, tmp_path: Path) -> None:
        (tmp_path / "x.gguf").mkdir()
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path / "x.gguf")


class TestHostile:
    def test_every_truncation(self, tmp_path: Path) -> None:
        content = tiny()
        data_begin = min(tensor.begin for tensor in read(tmp_path, content).tensors.values())
        for size in [*range(data_begin), len(content) - 64]:
            with pytest.raises(FormatError) as caught:
                read(tmp_path, content[:size])
            assert "\n" not in str(caught.value.problem)

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_changed_bytes(self, tmp_path: Path, data: st.DataObject) -> None:
        """A mutated header is read, or refused with a sentence; its numbers never decide what memory that takes."""
        content = bytearray(tiny())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(4, 2200))
            new = data.draw(st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x7f", b"\x01", b"\x09\0\0\0", b"\xff\xff\xff"]))
            content[at : at + len(new)] = new
        path = tmp_path / "m.gguf"
        path.write_bytes(content)
        tracemalloc.start()
        said = refusal_of(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert "\n" not in said
        assert peak < MEMORY


def refusal_of(path: Path) -> str:
    """What is said of the file; nothing where it opens."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckpointWarning)
            open_checkpoint(path)
    except PenstockError as error:
        return error.problem + error.remedy
    return ""
