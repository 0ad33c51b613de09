from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import in_process
from helpers.checkpoints import write_checkpoint
from helpers.packed_files import contents, flip, packable_config
from penstock.checkpoints.layout import UNFINISHED

FILE = "model.safetensors"
TIME_AND_RATE = r"[\d.]+ m?s, [\d.]+ GB/s"


def penstock(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def src(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "src"
    write_checkpoint(path, packable_config())
    return path


@pytest.fixture(scope="module")
def packed(src: Path) -> Path:
    out = src.parent / "packed"
    result = penstock("pack", src, out)
    assert (result.stderr, result.returncode) == ("", 0)
    name, sizes = re.escape(str(out)), r"\d\.\d MB of weights packed into \d\.\d MB \(0\.\d{3}\)"
    assert re.fullmatch(f"{name}: {sizes}, {TIME_AND_RATE}\n[^\n]*: penstock tune {name}\n", result.stdout)
    return out


class TestUnpack:
    def test_the_whole_and_again(self, packed: Path, src: Path, tmp_path: Path) -> None:
        result = penstock("unpack", packed, tmp_path / "out")
        assert (result.stderr, result.returncode) == ("", 0)
        assert re.fullmatch(rf"{re.escape(str(tmp_path / 'out'))}: \d\.\d MB written, {TIME_AND_RATE}\n", result.stdout)
        assert contents(tmp_path / "out") == contents(src)
        again = in_process.penstock("unpack", packed, tmp_path / "out")
        assert "0.0 MB written, the rest was there already" in again.stdout

    def test_one_file(self, packed: Path, src: Path, tmp_path: Path) -> None:
        result = penstock("unpack", packed, tmp_path / "out", "--shard", FILE)
        assert result.stdout.startswith(f"{tmp_path / 'out' / FILE}: ")
        assert contents(tmp_path / "out") == {FILE: (src / FILE).read_bytes()}


class TestVerify:
    def test_sound(self, packed: Path) -> None:
        result = penstock("verify", packed)
        assert (result.stderr, result.returncode) == ("", 0)
        name = re.escape(str(packed))
        assert re.fullmatch(rf"{name}: 1 file, \d\.\d MB: every checksum holds \({TIME_AND_RATE}\)\n", result.stdout)

    def test_against_the_original(self, packed: Path, src: Path) -> None:
        result = penstock("verify", packed, "--against", src)
        assert f"every checksum holds; all 21 tensors are those of {src}, bit for bit (" in result.stdout
        assert result.returncode == 0

    def test_damage(self, packed: Path, src: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        copy.mkdir()
        for name, content in contents(packed).items():
            (copy / name).write_bytes(content)
        flip(copy / FILE, 10_000)
        result = penstock("verify", copy, "--against", src)
        damage, last = result.stdout.splitlines()
        assert damage.startswith(f"damaged: {copy / FILE}: tensor 'model.embed_tokens.weight', ")
        assert ": 1 damaged place, 0 different places (" in last
        assert (result.stderr, result.returncode) == ("", 1)

    def test_what_is_not_packed(self, src: Path) -> None:
        result = penstock("verify", src)
        assert "1 file, 2.8 MB: not packed, so there are no checksums; headers and sizes fit" in result.stdout
        assert result.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("pack", "nothing", "out"), 1, "nothing does not exist"),
        (("pack", "{src}", "{src}/x"), 2, "is inside"),
        (("pack", "{packed}", "out"), 2, "is packed already"),
        (("pack", "{src}", "{packed}"), 2, "is there already, and complete"),
        (("unpack", "{src}", "out"), 2, "is not packed"),
        (("unpack", "{packed}", "out", "--shard", "x"), 2, "has no weight file 'x'"),
        (("verify", "nothing"), 1, "no such directory"),
        (("verify", "{packed}", "--against", "{packed}"), 2, "is packed itself"),
    ],
)
def test_one_message_no_traceback(
    arguments: tuple[str, ...], code: int, words: str, src: Path, packed: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    result = in_process.penstock(*(argument.format(src=src, packed=packed) for argument in arguments))
    assert result.returncode == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert [*tmp_path.iterdir()] == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    config = packable_config(num_hidden_layers=24)
    write_checkpoint(tmp_path / "src", config)
    command = [sys.executable, "-m", "penstock", "pack", str(tmp_path / "src"), str(tmp_path / "out"), "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not [*(tmp_path / "out" / UNFINISHED).glob("*.journal")]:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert errors == "interrupted; the same command goes on from here\n"
    assert in_process.penstock("pack", tmp_path / "src", tmp_path / "out").returncode == 0
    assert in_process.penstock("verify", tmp_path / "out", "--against", tmp_path / "src").returncode == 0


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_a_terminal_shows_bytes_speed_and_time_left(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "src", packable_config(num_hidden_layers=8))
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "penstock", "pack", str(tmp_path / "src"), str(tmp_path / "out")]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, check=False, timeout=120)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65_536):
            shown += part
    except OSError:  # Linux's way to say that nobody writes to it any more
        pass
    os.close(ours)
    assert result.returncode == 0
    assert result.stdout.count(b"\n") == 2
    for words in (rb"packing", rb"MB", rb"MB/s|GB/s|\?", rb"\d:\d\d:\d\d"):
        assert re.search(words, shown)
