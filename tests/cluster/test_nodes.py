"""Starting a cluster, joining it, and who is not let in."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.cluster.certificates import make_certificates
from penstock.cluster.nodes import NodeSettings, own_address
from penstock.cluster.reach import check_reach
from penstock.cluster.settings import Membership, check_token, new_token
from penstock.errors import ClusterError, UsageError

pytest.importorskip("ray")


def penstock(*arguments: str, store: Path, code: int = 0, **environment: str) -> str:
    """What a command says, on a machine of its own as far as its store goes."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "penstock", *arguments],
        env={**clean, "PENSTOCK_HOME": str(store), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


@contextmanager
def started(folder: Path, *options: str) -> Iterator[str]:
    """A cluster's address."""
    said = penstock("cluster", "start", "--memory", "1GiB", "--port", str(free_port()), *options, store=folder / "head")
    try:
        yield said.split("The cluster is at ")[1].split(". ")[0]
    finally:
        penstock("cluster", "stop", store=folder / "head")


def test_from_start_to_an_answer(tmp_path: Path) -> None:
    """Two machines; the tokens of one; strangers, wrong tokens and others' certificates stay out."""
    with started(tmp_path) as address:
        token, other = tmp_path / "head" / "cluster-token", tmp_path / "other"
        said = penstock("cluster", "join", address, store=other, code=1)
        assert "token cannot be read" in said
        wrong = tmp_path / "wrong"
        new_token(wrong)
        said = penstock("cluster", "join", address, "--token-file", str(wrong), store=other, code=1)
        assert "has another token" in said
        said = penstock("cluster", "status", address, store=other, code=1, RAY_AUTH_TOKEN_PATH=str(wrong))
        assert "has another token" in said
        make_certificates(tmp_path / "tls", ["127.0.0.1", own_address()])
        options = ("--token-file", str(token), "--tls", str(tmp_path / "tls"))
        assert "certificates" in penstock("cluster", "join", address, *options, store=other, code=1)

        penstock("cluster", "join", address, "--token-file", str(token), "--memory", "1GiB", store=other)
        listed = penstock("cluster", "status", store=tmp_path / "head")
        assert listed.count("GiB") == 2
        command = ("run", "demo", "def main(", "--max-tokens", "12", "--memory", "1GiB")
        alone = penstock(*command, store=other)
        assert penstock(*command, "--cluster", "auto", "--cut", "0-2,3-5", store=other) == alone
        said = penstock(*command, "--cluster", "auto", "--cut", "9-4", store=other, code=2)
        assert "9-4" in said
    assert "in no cluster" in penstock("cluster", "status", store=tmp_path / "head", code=1)


def test_an_encrypted_one(tmp_path: Path) -> None:
    make_certificates(tmp_path / "tls", ["127.0.0.1", own_address()])
    with started(tmp_path, "--tls", str(tmp_path / "tls")) as address:
        token, other = str(tmp_path / "head" / "cluster-token"), tmp_path / "other"
        plain = penstock("cluster", "join", address, "--token-file", token, store=other, code=1)
        assert "does not speak as a cluster without encryption" in plain
        make_certificates(tmp_path / "others", [own_address()])
        strange = ("--token-file", token, "--tls", str(tmp_path / "others"))
        assert "do not agree on certificates" in penstock("cluster", "join", address, *strange, store=other, code=1)
        options = ("--token-file", token, "--tls", str(tmp_path / "tls"), "--memory", "1GiB")
        penstock("cluster", "join", address, *options, store=other)
        said = penstock(
            "run", "demo", "x = ", "--max-tokens", "4", "--memory", "1GiB", "--cluster", "auto", store=other
        )
        assert said


def test_a_token_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "token"
    new_token(path)
    assert path.stat().st_mode & 0o777 == 0o600
    first = path.read_text()
    assert len(first) == 64
    new_token(path)
    assert path.read_text() == first
    check_token(path)
    path.chmod(0o644)
    with pytest.raises(ClusterError, match="Others may read"):
        check_token(path)
    empty = tmp_path / "empty"
    empty.touch(0o600)
    with pytest.raises(ClusterError, match="is empty"):
        check_token(empty)


@pytest.mark.parametrize(
    "options", [{"memory": "much"}, {"threads": 0}, {"address": "here"}, {"address": "0.0.0.0"}, {"certificates": "."}]
)
def test_what_cannot_be_meant(options: dict[str, Any], tmp_path: Path) -> None:
    if "certificates" in options:
        options = {"certificates": tmp_path}
    with pytest.raises(UsageError):
        NodeSettings(**options)


def test_where_nobody_answers_as_a_cluster_does() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.settimeout(10)
        # Nothing is ever sent back.
        with pytest.raises(ClusterError, match="does not speak"):
            check_reach(f"127.0.0.1:{port}", None)
    with pytest.raises(ClusterError, match="No cluster answers"):
        check_reach(f"127.0.0.1:{port}", None)


def test_a_membership_that_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    assert Membership.read() is None
    for text in ("", "[]", '{"address": 1, "more": 2}'):
        Membership.path().write_text(text)
        with pytest.raises(ClusterError, match="cannot be read"):
            Membership.read()


def test_certificates_are_made_once(tmp_path: Path) -> None:
    make_certificates(tmp_path / "tls", ["192.168.1.2"])
    assert (tmp_path / "tls" / "node.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="not empty"):
        make_certificates(tmp_path / "tls", ["192.168.1.2"])
    with pytest.raises(UsageError, match="like 192"):
        make_certificates(tmp_path / "new", ["my-laptop"])
