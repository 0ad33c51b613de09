from __future__ import annotations

import sys
from pathlib import Path

import agree
import pytest
from contestants import Peer

from penstock.errors import PenstockError


def peer(tmp_path: Path, program: str) -> Peer:
    (tmp_path / "peer.py").write_text(program)
    return Peer("fake", str(tmp_path / "peer.py"), ("json",), "pip install fake", "--fake-python")


def test_tokens_of_a_peer(tmp_path: Path) -> None:
    program = "import json, sys; print(json.dumps({'tokens': sys.argv[1:2] + sys.argv[4:]}))"
    assert agree.peer_tokens(peer(tmp_path, program), sys.executable, tmp_path, 3) == ["run", "--tokens", "2"]


@pytest.mark.parametrize("action", ["prepare", "run"])
def test_why_a_peer_failed(tmp_path: Path, action: str) -> None:
    program = f"import sys; print('{{}}'); sys.exit('no such model' if sys.argv[1] == '{action}' else 0)"
    with pytest.raises(PenstockError) as caught:
        agree.peer_tokens(peer(tmp_path, program), sys.executable, tmp_path, 3)
    assert str(caught.value) == f"{action} ended with status 1: no such model"


def test_the_other_peers_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = peer(tmp_path, "raise MemoryError('too large')")
    monkeypatch.setattr(agree, "ALL_PEERS", (failing, failing))
    monkeypatch.setattr(agree, "add_pythons", lambda parser: parser.set_defaults(fake=sys.executable))
    monkeypatch.setattr(sys, "argv", ["agree.py", "--tokens", "2"])
    agree.main()
    assert capsys.readouterr().out == 2 * "fake: failed: prepare ended with status 1: MemoryError: too large\n"
