from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import penstock
from helpers import in_process
from penstock.cli.options import complete_model
from penstock.cli.rm import complete_removable


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    for name in ("tests/one", "tests/two", "other/three"):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    return tmp_path


def test_version() -> None:
    result = in_process.penstock("--version")
    assert (result.returncode, result.stdout) == (0, f"penstock {version('penstock')}\n")
    assert penstock.__version__ == version("penstock")


HEAVY = ("numpy", "tokenizers", "llguidance", "jinja2", "xxhash", "penstock._core")
"""What running a model takes, and asking about a command does not: half a second of imports."""
SHOWING = f"""
import sys
from penstock.cli import main
sys.argv = ["penstock", *sys.argv[1:]]
try:
    main()
finally:
    print("heavy:", *sorted(set(sys.modules) & set({HEAVY!r})))
"""


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"], ["bench", "--help"]])
def test_what_runs_no_model_imports_nothing_for_it(arguments: list[str]) -> None:
    command = [sys.executable, "-c", SHOWING, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy:"


def test_what_completion_needs(store: Path) -> None:
    environment = os.environ | {
        "_PENSTOCK_COMPLETE": "complete_bash",
        "COMP_WORDS": "penstock run te",
        "COMP_CWORD": "2",
    }
    done = subprocess.run([sys.executable, "-c", SHOWING], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["tests/one", "tests/two", "heavy:"]


def test_what_is_exported_comes_when_it_is_asked_for() -> None:
    asked = "import sys, penstock; before = 'numpy' in sys.modules; penstock.LLM; print(before, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    assert set(penstock.__all__) <= set(dir(penstock))
    for name in penstock.__all__:
        assert getattr(penstock, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'penstock' has no attribute 'nothing'"):
        penstock.nothing  # noqa: B018


def test_names_of_models(store: Path) -> None:
    assert complete_model("te") == ["tests/one", "tests/two"]
    assert {"demo", "other/three"} <= set(complete_model(""))
    assert complete_model("zzz") == []
    assert complete_removable("") == ["other/three", "tests/one", "tests/two"]


SCRIPT = """
eval "$(penstock --show-completion)"
COMP_WORDS=($LINE)
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_penstock_completion penstock
printf "%s\\n" "${COMPREPLY[@]}"
"""


def completed(line: str) -> list[str]:
    """What bash offers at the end of a line, by the script that is installed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # Even where the configuration cannot be read.
    environment = os.environ | {"PATH": path, "LINE": line, "PENSTOCK_CONFIG": "/no/such/file"}
    bash = [shutil.which("bash") or "", "-c", SCRIPT]
    script = subprocess.run(bash, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return script.stdout.split()


@pytest.mark.skipif(sys.platform == "win32" or shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("penstock r", ["run", "rm"]),
        ("penstock run te", ["tests/one", "tests/two"]),
        ("penstock run x --mem", ["--memory"]),
    ],
)
def test_bash(store: Path, line: str, offered: list[str]) -> None:
    assert sorted(completed(line)) == sorted(offered)
