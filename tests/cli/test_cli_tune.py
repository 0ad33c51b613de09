from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from helpers import in_process
from helpers.cases import DEMO
from penstock.packed_format.draft_file import NAME

SAID = r"{}: \d+\.\d MB that make guesses better \(\d+\.\d\d bits a weight\), from \d+ tokens, in [^\n]+\n"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "packed"
    result = in_process.penstock("pack", DEMO, out, "--tune")
    assert result.returncode == 0, result.stderr
    assert re.search(SAID.format(re.escape(str(out / NAME))), result.stdout)
    assert "penstock tune" not in result.stdout
    return out


def test_show_tells(packed: Path, tmp_path: Path) -> None:
    told = json.loads(in_process.penstock("show", packed, "--json").stdout)
    assert (told["form"], told["tuned"]) == ("packed", True)
    assert " of the original bytes; tuned\n" in in_process.penstock("show", packed).stdout
    for change in (b"", b"no header at all"):
        model = tmp_path / f"damaged-{len(change)}"
        shutil.copytree(packed, model)
        (model / NAME).write_bytes(change)
        assert json.loads(in_process.penstock("show", model, "--json").stdout)["tuned"] is False


def test_with_a_text_of_ones_own(packed: Path, tmp_path: Path) -> None:
    model, text = tmp_path / "model", tmp_path / "text"
    shutil.copytree(packed, model)
    text.write_text("class Account:\n    def __init__(self, owner):\n        self.owner = owner\n\n" * 20)
    result = in_process.penstock("tune", model, "--text", text, "--threads", "1")
    assert re.fullmatch(SAID.format(re.escape(str(model / NAME))), result.stdout)
    assert (model / NAME).read_bytes() != (packed / NAME).read_bytes()


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"short"])
def test_a_text_that_cannot_be_used(packed: Path, tmp_path: Path, content: bytes | None) -> None:
    text = tmp_path / "text"
    if content is not None:
        text.write_bytes(content)
    before = (packed / NAME).read_bytes()
    result = in_process.penstock("tune", packed, "--text", text)
    assert result.returncode == 2
    assert (packed / NAME).read_bytes() == before


def test_what_is_not_packed() -> None:
    result = in_process.penstock("tune", DEMO)
    assert result.returncode == 2
    assert "not packed" in result.stderr
