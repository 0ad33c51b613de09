from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers.checkpoints import safetensors_bytes, tiny_config, write_checkpoint
from helpers.hub_server import Content, Faults, Hub, Repo, directory_files, serve
from penstock.architectures.registry import parse_config
from penstock.checkpoints.layout import check_folder, find_layout
from penstock.errors import CheckpointError, FormatError, PenstockError, UnsupportedError
from penstock.hub.files import Patience
from penstock.hub.folder import HubFolder
from penstock.hub.repository import find_repository
from penstock.safetensors_header import read_header


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve({}, {"owner/model": Repo()}) as hub:
        hub.use(monkeypatch)
        yield hub


def folder(hub: Hub, files: dict[str, Content]) -> HubFolder:
    hub.repos["owner/model"].commit(files)
    return HubFolder(find_repository("owner/model"), Patience(2, 0.01, 0.01))


def test_names(hub: Hub) -> None:
    found = folder(hub, {"b.json": b"{}", "a/c/d": b"", "a/b": b"", "ab/c": b""})
    assert found.names() == ["a", "ab", "b.json"]
    assert found.names("a") == ["b", "c"]
    assert found.names("c") == []
    assert found.has("a/c/d")
    assert not found.has("a")


def test_json_is_read_once(hub: Hub) -> None:
    found = folder(hub, {"config.json": b'{"a": 1}'})
    assert found.read_json("config.json") == found.read_json("config.json") == {"a": 1}
    assert len(hub.requests) == 1


def test_malformed_json(hub: Hub) -> None:
    with pytest.raises(FormatError, match=r"^owner/model/config.json is not JSON"):
        folder(hub, {"config.json": b"{"}).read_json("config.json")


def test_json_without_end(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.hub.folder.MAX_JSON_BYTES", 5)
    with pytest.raises(FormatError, match=r"^owner/model/config.json is larger than 5 bytes"):
        folder(hub, {"config.json": b'{"a": 1}'}).read_json("config.json")


def test_an_empty_file(hub: Hub, tmp_path: Path) -> None:
    found = folder(hub, {"empty.txt": b""})
    found.save("empty.txt", tmp_path / "empty.txt", tmp_path / "unfinished")
    assert (tmp_path / "empty.txt").read_bytes() == b""


@pytest.mark.parametrize("name", ["notes.txt", "tokenizer.json"])
def test_save(hub: Hub, tmp_path: Path, name: str) -> None:
    content = np.random.default_rng(0).bytes(3_000_000)
    hub.faults.cuts = [1_000_000]
    folder(hub, {name: content}).save(name, tmp_path / name, tmp_path / "unfinished")
    assert (tmp_path / name).read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_damaged_file_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    found = folder(hub, {"a.safetensors": b"0123456789"})
    listed = found.repository.files["a.safetensors"].sha256
    hub.faults = Faults(flip={4})
    with pytest.raises(CheckpointError) as caught:
        found.save("a.safetensors", tmp_path / "a", tmp_path / "unfinished")
    assert caught.value.problem.startswith("a.safetensors of owner/model came with SHA-256 ")
    assert caught.value.problem.endswith(f", but the Hub lists {listed}")
    assert not (tmp_path / "a").exists()


def test_header(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes({"x": np.zeros((3, 5), np.uint16)}))
    content, header = folder(hub, {"a.safetensors": tmp_path / "a.safetensors"}).header("a.safetensors")
    expected = read_header(tmp_path / "a.safetensors")
    assert content == (tmp_path / "a.safetensors").read_bytes()[: expected.data_begin]
    assert header.path == Path("owner/model/a.safetensors")
    assert header.file_size == expected.file_size
    assert header.tensors["x"].begin == expected.data_begin


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not a safetensors file"),
        (b"abc", "is not a safetensors file"),
        (b"\xff" * 20, "the header's length is"),
        ((12).to_bytes(8, "little") + b"{}", "is truncated"),
        ((2).to_bytes(8, "little") + b"{}extra", "belong to no tensor"),
    ],
)
def test_headers_that_lie(hub: Hub, content: bytes, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        folder(hub, {"a.safetensors": content}).header("a.safetensors")


@pytest.mark.parametrize("layout", ["single", "indexed", "numbered", "split"])
def test_layouts(hub: Hub, tmp_path: Path, layout: str) -> None:
    config = tiny_config()
    write_checkpoint(tmp_path, config, layout=layout)
    found = folder(hub, directory_files(tmp_path))
    check_folder(found)
    prefixes = find_layout(found, parse_config(config, "config")).prefixes
    weights = [file for file in directory_files(tmp_path) if file.endswith(".safetensors")]
    assert sorted(str(file) for file in prefixes) == [f"owner/model/{name}" for name in weights]


def look_for_weights(found: HubFolder) -> None:
    check_folder(found)
    find_layout(found, parse_config(tiny_config(), "config"))


@pytest.mark.parametrize(
    ("files", "error", "problem"),
    [
        ({"a.gguf": b""}, UnsupportedError, "owner/model is in GGUF format"),
        ({"pytorch_model.bin": b""}, UnsupportedError, "owner/model has only pytorch_model.bin: only safetensors"),
        ({"model.safetensors": b""}, CheckpointError, "owner/model is not a checkpoint: it has no config.json"),
        ({"other.safetensors": b"", "config.json": b""}, CheckpointError, "owner/model has no weights"),
        (
            {"model.safetensors.index.json": json.dumps({"weight_map": {"x": "gone.safetensors"}}).encode()},
            CheckpointError,
            "owner/model lacks gone.safetensors, which model.safetensors.index.json lists",
        ),
        ({"model-00001-of-00002.safetensors": b""}, CheckpointError, "owner/model lacks model-00002-of-00002"),
        ({"separated_weights/norm.safetensors": b""}, CheckpointError, "lacks embed_tokens.safetensors"),
    ],
)
def test_no_checkpoints(hub: Hub, files: dict[str, Content], error: type[PenstockError], problem: str) -> None:
    files = files if "lacks" not in problem else {**files, "config.json": b"{}"}
    found = folder(hub, files)
    with pytest.raises(error) as caught:
        look_for_weights(found)
    assert problem in caught.value.problem
    if "lacks" in problem:
        assert caught.value.remedy == "Give the repository of the original model; this one is incomplete."
