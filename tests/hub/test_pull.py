from __future__ import annotations

import errno
import json
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pytest

from helpers.checkpoints import safetensors_bytes, tiny_config, write_checkpoint
from helpers.hub_server import Faults, Hub, Repo, directory_files, serve
from helpers.pulling import REPO, SMALL, contents, start, write_model
from helpers.thorough import quick
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.checkpoints.store import find_model
from penstock.errors import CheckpointError, PenstockError, UnsupportedError, UsageError
from penstock.hub import files as hub_files
from penstock.hub import pull_weights
from penstock.hub.files import Patience
from penstock.hub.pull import PullResult, PullWatcher, pull
from penstock.packed_format import chunks as packed_chunks
from penstock.packed_format import runs as pack_runs
from penstock.packed_format import writer as packed_writer
from penstock.packing.pack import pack

LAYOUTS = ("single", "indexed", "numbered", "split")
QUICK = Patience(attempts=2, first_wait=0.01, longest_wait=0.02)


class Model(NamedTuple):
    """A checkpoint, and what `pack` makes of it."""

    original: Path
    packed: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    root = tmp_path_factory.mktemp("models")
    made = {layout: Model(write_model(root / layout, layout), root / f"{layout}-packed") for layout in LAYOUTS}
    for model in made.values():
        pack(model.original, model.packed)
    return made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for module in (hub_files, pack_runs, packed_chunks, packed_writer, pull_weights):
        for name, value in SMALL.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    with serve({}, {REPO: Repo()}) as hub:
        hub.use(monkeypatch)
        yield hub


@pytest.fixture
def model(hub: Hub, models: dict[str, Model]) -> Model:
    """On the hub, in shards."""
    hub.repos[REPO].commit(directory_files(models["indexed"].original))
    return models["indexed"]


class Watcher(PullWatcher):
    def __init__(self) -> None:
        self.files: list[tuple[str, int, int]] = []
        self.bytes: list[tuple[int, int]] = []
        self.checked: list[str] = []
        self.notices: list[str] = []

    def file(self, name: str, number: int, count: int) -> None:
        self.files.append((name, number, count))

    def progress(self, done: int, total: int) -> None:
        self.bytes.append((done, total))

    def checking(self, name: str) -> None:
        self.checked.append(name)

    def notice(self, text: str) -> None:
        self.notices.append(text)


def quickly(out: Path, **options: Any) -> PullResult:
    return pull(REPO, out, patience=QUICK, **options)


def weight_bytes(path: Path) -> int:
    return sum(len(content) for name, content in contents(path).items() if name.endswith(".safetensors"))


def interrupt(hub: Hub, out: Path, after: int = 1 << 21, **options: Any) -> None:
    """Have a pull fail after so many bytes of weights."""
    hub.sent = 0
    hub.faults.stop_after = after
    with pytest.raises(CheckpointError, match="tried 3 times in vain"):
        quickly(out, **options)
    hub.faults = Faults()


class TestSameAsPack:
    @pytest.mark.parametrize("layout", quick(["indexed", "split"], LAYOUTS))
    def test_layouts(self, hub: Hub, models: dict[str, Model], tmp_path: Path, layout: str) -> None:
        commit = hub.repos[REPO].commit(directory_files(models[layout].original))
        result = quickly(tmp_path / "out")
        assert contents(tmp_path / "out") == contents(models[layout].packed)
        assert result.commit == commit
        assert result.original_bytes == weight_bytes(models[layout].original)
        assert result.packed_bytes == weight_bytes(models[layout].packed)

    @pytest.mark.parametrize("dtype", ["F16", "F32"])
    def test_dtypes_that_are_not_packed(self, hub: Hub, tmp_path: Path, dtype: str) -> None:
        write_checkpoint(tmp_path / "model", dtype=dtype)
        hub.repos[REPO].commit(directory_files(tmp_path / "model"))
        quickly(tmp_path / "out")
        pack(tmp_path / "model", tmp_path / "packed")
        assert contents(tmp_path / "out") == contents(tmp_path / "packed")

    def test_whatever_the_threads(self, model: Model, tmp_path: Path) -> None:
        for threads in (1, 3):
            quickly(tmp_path / str(threads), threads=threads)
            assert contents(tmp_path / str(threads)) == contents(model.packed)

    def test_the_store(self, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "home"))
        result = pull(REPO)
        assert result.path == find_model(REPO) == tmp_path / "home" / "models" / "owner" / "model"
        assert contents(result.path) == contents(model.packed)

    def test_all_of_it_is_downloaded_once(self, hub: Hub, model: Model, tmp_path: Path) -> None:
        result = quickly(tmp_path / "out")
        headers = sum(max(0, int(r.partition("-")[2]) + 1) for _, r in hub.store_requests if "=0-" in str(r))
        assert result.original_bytes <= hub.sent <= result.original_bytes + headers + 300_000  # tokenizer.json is large

    def test_what_is_told(self, model: Model, tmp_path: Path) -> None:
        watcher, total = Watcher(), weight_bytes(model.original)
        quickly(tmp_path / "out", watcher=watcher)
        names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
        assert watcher.files == [(name, number, 3) for number, name in enumerate(names, 1)]
        assert watcher.checked == names
        assert watcher.bytes[-1] == (total, total)
        assert sorted(watcher.bytes) == watcher.bytes
        assert watcher.notices == []


class TestPackedRepositories:
    def test_they_come_as_they_are(self, hub: Hub, models: dict[str, Model], tmp_path: Path) -> None:
        for layout in LAYOUTS:
            hub.repos[REPO].commit(directory_files(models[layout].packed))
            result = quickly(tmp_path / layout)
            assert contents(tmp_path / layout) == contents(models[layout].packed)
            assert result.original_bytes == result.packed_bytes
            open_checkpoint(tmp_path / layout)

    def test_they_go_on(self, hub: Hub, models: dict[str, Model], tmp_path: Path) -> None:
        hub.repos[REPO].commit(directory_files(models["single"].packed))
        interrupt(hub, tmp_path / "out", 3_200_000)
        watcher = Watcher()
        result = quickly(tmp_path / "out", watcher=watcher)
        assert watcher.bytes[0][0] > 0
        assert result.downloaded_bytes == result.packed_bytes - watcher.bytes[0][0]
        assert contents(tmp_path / "out") == contents(models["single"].packed)

    def test_damage(self, hub: Hub, models: dict[str, Model], tmp_path: Path) -> None:
        hub.repos[REPO].commit(directory_files(models["single"].packed))
        hub.faults.flip = {1_000_000}
        with pytest.raises(CheckpointError, match=r"^model\.safetensors of owner/model came with SHA-256 "):
            quickly(tmp_path / "out")
        hub.faults = Faults()
        quickly(tmp_path / "out")
        assert contents(tmp_path / "out") == contents(models["single"].packed)

    def test_tensors_that_are_lacking(self, hub: Hub, models: dict[str, Model], tmp_path: Path) -> None:
        files = directory_files(models["single"].packed)
        config = json.loads((models["single"].packed / "config.json").read_text())
        config["num_hidden_layers"] += 1
        hub.repos[REPO].commit(files | {"config.json": json.dumps(config).encode()})
        with pytest.raises(CheckpointError, match=r"^owner/model lacks the tensor 'model\.layers\.3\."):
            quickly(tmp_path / "out")

    def test_some_that_are_not_packed(self, hub: Hub, models: dict[str, Model], tmp_path: Path) -> None:
        files, first = directory_files(models["numbered"].original), "model-00001-of-00003.safetensors"
        hub.repos[REPO].commit(files | {first: models["numbered"].packed / first})
        with pytest.raises(UnsupportedError) as caught:
            quickly(tmp_path / "out")
        assert caught.value.problem == "owner/model has packed files of weights beside others"
        assert caught.value.remedy == "Give the repository of the original model."


class TestGoingOn:
    def test_nothing_is_taken_for_a_model_before_it_is_whole(self, hub: Hub, model: Model, tmp_path: Path) -> None:
        interrupt(hub, tmp_path / "out")
        with pytest.raises(CheckpointError, match="is not finished"):
            open_checkpoint(tmp_path / "out")

    def test_after_an_interruption(self, hub: Hub, model: Model, tmp_path: Path) -> None:
        interrupt(hub, tmp_path / "out")
        hub.sent = 0
        result = quickly(tmp_path / "out")
        assert contents(tmp_path / "out") == contents(model.packed)
        assert hub.sent < result.original_bytes
        assert result.downloaded_bytes < result.original_bytes

    def test_many_interruptions(self, hub: Hub, model: Model, tmp_path: Path) -> None:
        for _ in range(3):
            interrupt(hub, tmp_path / "out", 1 << 20)
        quickly(tmp_path / "out")
        assert contents(tmp_path / "out") == contents(model.packed)

    def test_interrupted_before_a_file_is_checked(
        self, hub: Hub, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Interrupts(PullWatcher):
            def checking(self, name: str) -> None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            quickly(tmp_path / "out", watcher=Interrupts())
        assert not (tmp_path / "out" / "model-00001-of-00003.safetensors").exists()
        result = quickly(tmp_path / "out")
        assert contents(tmp_path / "out") == contents(model.packed)
        assert result.downloaded_bytes < result.original_bytes

    @pytest.mark.thorough
    def test_killed_at_random_moments(self, hub: Hub, model: Model, tmp_path: Path) -> None:
        random.seed(0)
        hub.faults.bytes_per_second = 300_000
        killed = 0
        for _ in range(30):
            process = start(hub, "--out", tmp_path / "out")
            hub.sent, stop = 0, random.randrange(2_500_000)
            while process.poll() is None and hub.sent <= stop:
                time.sleep(0.01)
            if killed == 4:
                hub.faults.bytes_per_second = None
                stop = 1 << 40
                process.wait(120)
            process.send_signal(signal.SIGKILL)
            _, said = process.communicate(timeout=120)
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, said
            killed += 1
        assert killed >= 3
        assert contents(tmp_path / "out") == contents(model.packed)

    def test_a_disk_that_is_full(self, hub: Hub, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        room, write_all = 2_000_000, packed_writer._write_all

        def write(file: BinaryIO, view: memoryview) -> None:
            nonlocal room
            room -= len(view)
            if room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            write_all(file, view)

        with monkeypatch.context() as patch:
            patch.setattr(packed_writer, "_write_all", write)
            with pytest.raises(PenstockError, match="the disk is full"):
                quickly(tmp_path / "out")
        quickly(tmp_path / "out")
        assert contents(tmp_path / "out") == contents(model.packed)

    def test_cut_connections_and_a_busy_hub(self, hub: Hub, model: Model, tmp_path: Path) -> None:
        generator = random.Random(0)
        hub.faults.cuts = [generator.randrange(200_000) for _ in range(40)]
        hub.faults.store_statuses = [(503, {}), (429, {"Retry-After": "0"})] * 2
        watcher = Watcher()
        pull(REPO, tmp_path / "out", patience=Patience(20, 0.01, 0.02), watcher=watcher)
        assert hub.faults.cuts == []
        assert contents(tmp_path / "out") == contents(model.packed)


class TestRevisions:
    @pytest.fixture
    def moved(self, hub: Hub, model: Model, tmp_path: Path) -> tuple[str, str]:
        """A pull of main was begun; main has moved on since."""
        interrupt(hub, tmp_path / "out")
        repo = hub.repos[REPO]
        before = repo.branches["main"]
        return before, repo.commit(repo.commits[before] | {"config.json": b"{}", "README.md": b"newer"})

    def test_tags_and_commits(self, hub: Hub, models: dict[str, Model], tmp_path: Path) -> None:
        repo = hub.repos[REPO]
        commit = repo.commit(directory_files(models["single"].original), "v1.0")
        repo.commit({"config.json": b"{}"})
        for revision in ("v1.0", commit):
            assert quickly(tmp_path / revision, revision=revision).commit == commit
            assert contents(tmp_path / revision) == contents(models["single"].packed)

    def test_a_branch_that_moves_on(self, model: Model, tmp_path: Path, moved: tuple[str, str]) -> None:
        watcher = Watcher()
        assert quickly(tmp_path / "out", watcher=watcher).commit == moved[0]
        said = f"main of {REPO} has moved on to {moved[1]}; going on with commit {moved[0]}, as begun"
        assert watcher.notices == [said]
        assert contents(tmp_path / "out") == contents(model.packed)

    def test_the_commit_that_was_begun(self, model: Model, tmp_path: Path, moved: tuple[str, str]) -> None:
        watcher = Watcher()
        assert quickly(tmp_path / "out", revision=moved[0], watcher=watcher).commit == moved[0]
        assert watcher.notices == []
        assert contents(tmp_path / "out") == contents(model.packed)

    def test_the_first_name_of_the_revision_is_kept(self, hub: Hub, tmp_path: Path, moved: tuple[str, str]) -> None:
        interrupt(hub, tmp_path / "out", 100_000, revision=moved[0])
        assert quickly(tmp_path / "out", revision="main").commit == moved[0]

    def test_another_revision(self, tmp_path: Path, moved: tuple[str, str]) -> None:
        with pytest.raises(UsageError) as caught:
            quickly(tmp_path / "out", revision="v2")
        begun = f"{REPO}, revision main (commit {moved[0]})"
        assert (
            caught.value.problem == f"{tmp_path / 'out'} is an unfinished pull of {begun}, not of {REPO}, revision v2"
        )
        remedy = f"Finish that one first, or delete {tmp_path / 'out'}, or give another directory."
        assert caught.value.remedy == remedy

    def test_another_repository(self, tmp_path: Path, moved: tuple[str, str]) -> None:
        with pytest.raises(UsageError, match="not of owner/other, revision main"):
            pull("owner/other", tmp_path / "out")

    def test_a_record_that_is_damaged(self, tmp_path: Path, moved: tuple[str, str]) -> None:
        for content in (b"{", b"[]", b'{"repo": "owner/model"}'):
            (tmp_path / "out" / ".penstock" / "pull.json").write_bytes(content)
            with pytest.raises(UsageError) as caught:
                quickly(tmp_path / "out")
            assert "pull.json is damaged" in caught.value.problem
            assert caught.value.remedy == f"Delete {tmp_path / 'out'} and begin again."


class TestRefused:
    """Before any weights are asked for."""

    @pytest.fixture(autouse=True)
    def _no_weights(self, hub: Hub) -> Iterator[None]:
        yield
        assert hub.sent < 70_000 * 3

    def test_no_name(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as caught:
            pull("demo", tmp_path / "out")
        assert (caught.value.problem, caught.value.remedy) == (
            "'demo' is not a repository's name",
            "Give it as OWNER/NAME.",
        )

    def test_no_threads(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"^0 threads cannot do anything"):
            quickly(tmp_path / "out", threads=0)

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            (
                {"model_type": "mamba", "architectures": ["MambaForCausalLM"]},
                "^owner/model/config.json: the architecture is",
            ),
            ({"quantization_config": {"quant_method": "gptq"}}, "^owner/model/config.json: quantization_config is set"),
        ],
    )
    def test_models_that_penstock_does_not_run(
        self, hub: Hub, model: Model, tmp_path: Path, changes: dict[str, Any], problem: str
    ) -> None:
        config = json.dumps(tiny_config() | changes).encode()
        hub.repos[REPO].commit(directory_files(model.original) | {"config.json": config})
        with pytest.raises(UnsupportedError, match=problem):
            quickly(tmp_path / "out")
        assert hub.store_requests == []
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("files", "error", "problem"),
        [
            ({"pytorch_model.bin": b""}, UnsupportedError, "owner/model has only pytorch_model.bin: only safetensors"),
            ({"model-Q4_K_M.gguf": b""}, UnsupportedError, "owner/model is in GGUF format, not the full-precision"),
            ({"model.safetensors": b""}, CheckpointError, "owner/model is not a checkpoint: it has no config.json"),
            ({}, CheckpointError, "owner/model is not a checkpoint: it has no config.json"),
        ],
    )
    def test_no_checkpoint(
        self, hub: Hub, tmp_path: Path, files: dict[str, bytes], error: type[PenstockError], problem: str
    ) -> None:
        hub.repos[REPO].commit(files)
        with pytest.raises(error) as caught:
            quickly(tmp_path / "out")
        assert caught.value.problem.startswith(problem)

    def test_a_quantized_checkpoint_whose_config_does_not_say_so(self, hub: Hub, tmp_path: Path) -> None:
        tensors = {"model.layers.0.self_attn.q_proj.qweight": np.zeros((4, 4), np.int32)}
        config = json.dumps(tiny_config()).encode()
        hub.repos[REPO].commit({"config.json": config, "model.safetensors": safetensors_bytes(tensors)})
        with pytest.raises(UnsupportedError, match=r"^owner/model/model\.safetensors holds .*quantized"):
            quickly(tmp_path / "out")

    def test_a_tensor_that_is_lacking(self, hub: Hub, models: dict[str, Model], tmp_path: Path) -> None:
        config = json.loads((models["single"].original / "config.json").read_text()) | {"num_hidden_layers": 4}
        files = directory_files(models["single"].original) | {"config.json": json.dumps(config).encode()}
        hub.repos[REPO].commit(files)
        with pytest.raises(CheckpointError, match=r"^owner/model lacks the tensor 'model\.layers\.3\."):
            quickly(tmp_path / "out")

    def test_a_gated_repository(self, hub: Hub, model: Model, tmp_path: Path) -> None:
        hub.gated.add(REPO)
        with pytest.raises(CheckpointError) as caught:
            quickly(tmp_path / "out")
        assert caught.value.problem == "owner/model is gated: only those who have accepted its licence may have it."
        log_in = "log in with `hf auth login`, or set HF_TOKEN."
        assert caught.value.remedy == f"Accept it on {hub.url}/owner/model, then {log_in}"
        assert not (tmp_path / "out").exists()

    def test_a_repository_that_is_not_there(self, hub: Hub, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"^owner/missing: http\S+ has no such model, or a private one\."):
            pull("owner/missing", tmp_path / "out")

    def test_a_revision_that_is_not_there(self, model: Model, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="has no revision 'v9'"):
            quickly(tmp_path / "out", revision="v9")

    def test_a_directory_that_is_taken(self, model: Model, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes").touch()
        with pytest.raises(UsageError, match="is there already and is not an empty directory"):
            quickly(tmp_path / "out")
        assert [file.name for file in (tmp_path / "out").iterdir()] == ["notes"]

    def test_too_little_room(self, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(PenstockError) as caught:
            quickly(tmp_path / "out")
        assert "more bytes of disk and has 1,000,000" in caught.value.problem
        assert caught.value.remedy == "Free some space, or choose another disk with --out."


def test_a_model_that_is_there_already(model: Model, tmp_path: Path) -> None:
    quickly(tmp_path / "out")
    with pytest.raises(UsageError) as caught:
        quickly(tmp_path / "out")
    assert caught.value.problem == f"{tmp_path / 'out'} is there already, and finished"
    assert caught.value.remedy == "Use it as it is, or delete it to pull the model again."


@pytest.mark.parametrize("place", quick([1000], [1000, 100_000, 900_000]))
def test_bytes_damaged_on_the_way(hub: Hub, model: Model, tmp_path: Path, place: int) -> None:
    listed = {name: file for name, file in contents(model.original).items() if name.endswith(".safetensors")}
    assert all(len(content) > place for content in listed.values())
    hub.faults.flip = {place + 8 * 1024 * (place == 1000)}
    with pytest.raises(CheckpointError) as caught:
        quickly(tmp_path / "out")
    assert "model-00001-of-00003.safetensors of owner/model came with SHA-256" in caught.value.problem
    assert caught.value.remedy == "It was damaged on the way, and is not kept. Try again."
    hub.faults = Faults()
    quickly(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(model.packed)


def test_the_token_goes_to_the_hub_alone(hub: Hub, model: Model, tmp_path: Path) -> None:
    quickly(tmp_path / "out", token="hf_mine")
    assert set(hub.tokens) == {"Bearer hf_mine"}
    assert set(hub.store_tokens) == {None}


class TestShare:
    """Only the files that some layers need."""

    def test_files_of_layers(self, hub: Hub, model: Model, tmp_path: Path) -> None:
        whole = open_checkpoint(model.packed)
        last = pull(REPO, tmp_path / "last", layers=[2])
        checkpoint = open_checkpoint(tmp_path / "last", share=True)
        needed = checkpoint.architecture.tensors_of([2], embedding=False, head=False)
        assert {file.name for file in checkpoint.files} == {whole.tensors[name].path.name for name in needed}
        assert checkpoint.layers is not None
        assert 2 in checkpoint.layers
        for file in checkpoint.files:
            assert file.read_bytes() == (model.packed / file.name).read_bytes()
        assert last.original_bytes < pull(REPO, tmp_path / "all").original_bytes
        with pytest.raises(CheckpointError, match="alone, for this machine's part in a cluster"):
            open_checkpoint(tmp_path / "last")

    def test_all_files_are_no_share(self, hub: Hub, model: Model, tmp_path: Path) -> None:
        pull(REPO, tmp_path / "all", layers=range(3))
        assert contents(tmp_path / "all") == contents(model.packed)

    def test_without_an_index_all_files_come(self, hub: Hub, models: dict[str, Model], tmp_path: Path) -> None:
        hub.repos[REPO].commit(directory_files(models["numbered"].original))
        pull(REPO, tmp_path / "out", layers=[2])
        assert contents(tmp_path / "out") == contents(models["numbered"].packed)

    def test_of_a_packed_repository(self, hub: Hub, model: Model, tmp_path: Path) -> None:
        hub.repos[REPO].commit(directory_files(model.packed))
        pull(REPO, tmp_path / "out", layers=[2])
        assert 2 in (open_checkpoint(tmp_path / "out", share=True).layers or ())
        assert len([*(tmp_path / "out").glob("*.safetensors")]) < len([*model.packed.glob("*.safetensors")])

    def test_the_repository_says_nothing_of_shares(self, hub: Hub, model: Model, tmp_path: Path) -> None:
        hub.repos[REPO].commit(directory_files(model.original) | {"share.json": b"{}"})
        pull(REPO, tmp_path / "out")
        assert not (tmp_path / "out" / "share.json").exists()
