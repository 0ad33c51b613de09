"""`penstock pull --cluster`: every machine gets its files from the Hub, and an answer comes of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.checkpoints import write_checkpoint
from helpers.hub_server import TOKEN, Hub, Repo, directory_files, serve
from helpers.pulling import REPO, contents, model_config
from penstock import LLM, SamplingParams, cli
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.errors import CheckpointError
from penstock.packing.pack import pack

from .conftest import add_machine

ray = pytest.importorskip("ray")
PARAMS = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


class There(NamedTuple):
    """A hub with a model, this machine's store, and those of two others."""

    hub: Hub
    address: str
    packed: Path
    stores: dict[str, Path]

    def model(self, machine: str) -> Path:
        return self.stores[machine] / "models" / REPO


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[There]:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    write_checkpoint(tmp_path / "raw", model_config() | {"num_hidden_layers": 6}, layout="indexed", shards=6)
    pack(tmp_path / "raw", tmp_path / "packed")
    stores = {name: tmp_path / f"store-{name}" for name in ("here", "one", "two")}
    with serve({}, {REPO: Repo()}) as hub:
        hub.repos[REPO].commit(directory_files(tmp_path / "raw"))
        hub.use(monkeypatch)
        monkeypatch.setenv("PENSTOCK_HOME", str(stores["here"]))
        cluster = cluster_utils.Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 78_643_200},
        )
        try:
            for name in ("one", "two"):
                environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "NO_PROXY": "*"}
                add_machine(cluster, name, PENSTOCK_HOME=str(stores[name]), **environment)
            yield There(hub, cluster.address, tmp_path / "packed", stores)
        finally:
            ray.shutdown()
            cluster.shutdown()


def pulled(there: There, *arguments: str) -> int:
    sys.argv = ["penstock", "pull", REPO, "--cluster", there.address, *arguments]
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return int(exited.value.code or 0)


def test_whole_copies(there: There, capsys: pytest.CaptureFixture[str]) -> None:
    assert pulled(there) == 0
    said = capsys.readouterr().out
    for name in ("here", "one", "two"):
        assert contents(there.model(name)) == contents(there.packed)
    assert "\none: " in said
    assert f"Run it with: penstock run {REPO} --cluster {there.address}\n" in said
    assert pulled(there) == 0
    assert capsys.readouterr().out.count("is there already") == 3


def test_shares(there: There, capsys: pytest.CaptureFixture[str]) -> None:
    """An answer comes of them without `--cut`, also when one machine is gone; another cut is refused."""
    assert pulled(there, "--cut", "0-1,2-3,4-5") == 0
    said = capsys.readouterr().out
    assert contents(there.model("here")) == contents(there.packed)
    held = {name: open_checkpoint(there.model(name), share=True).layers or () for name in ("one", "two")}
    assert {2, 3} <= {*held["one"]}
    assert {4, 5} <= {*held["two"]}
    assert "one, layers 2-3: " in said
    assert f"two: {REPO}" not in said
    with LLM.open(REPO, memory="2GiB", draft="none") as llm:
        alone = llm.generate([[5, 6, 7]], PARAMS)[0].token_ids
    with LLM.open(REPO, memory="2GiB", draft="none", cluster=there.address) as llm:
        shares = {getattr(stage, "name", "here"): stage.share.layers for stage in llm.chain.stages}
        assert {*shares["one"]} <= {*held["one"]}
        assert {*shares["two"]} <= {*held["two"]}
        assert sorted(layer for layers in shares.values() for layer in layers) == [*range(6)]
        assert llm.generate([[5, 6, 7]], PARAMS)[0].token_ids == alone
    with (
        pytest.raises(CheckpointError, match=r"^one: .* alone, not 0\n"),
        LLM.open(REPO, memory="2GiB", draft="none", cluster=there.address, cut="4-5,0-1,2-3"),
    ):
        pass
    capsys.readouterr()
    assert pulled(there, "--cut", "0-1,2-3,4-5") == 0
    assert capsys.readouterr().out.count("is there already") == 3
    assert pulled(there) == 2
    assert "is there already, and holds layers" in capsys.readouterr().err


def test_what_fails_on_one_machine(there: There, capsys: pytest.CaptureFixture[str]) -> None:
    (there.stores["one"] / "models").mkdir(parents=True)
    there.model("one").parent.write_text("in the way")
    assert pulled(there) == 1
    output = capsys.readouterr()
    assert "\none: failed\n" in output.out
    assert "\ntwo: " in output.out
    assert "one: " in output.err
    assert contents(there.model("two")) == contents(there.packed)
    there.model("one").parent.unlink()
    assert pulled(there) == 0
    assert contents(there.model("one")) == contents(there.packed)


def test_wrong_use(there: There, capsys: pytest.CaptureFixture[str]) -> None:
    assert pulled(there, "--cut", "0-9") == 2
    assert "names layer 9" in capsys.readouterr().err
    sys.argv = ["penstock", "pull", REPO, "--cut", "runs"]
    with pytest.raises(SystemExit):
        cli.main()
    assert "nothing to cut a model for" in capsys.readouterr().err
