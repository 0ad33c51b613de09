"""The build backend: which compiler a build gets, and that nothing left behind names one that is gone."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

BACKEND = Path(__file__).parents[1] / "tools/building/penstock_build.py"
pytest.importorskip("scikit_build_core")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no zig to fall back to")


def backend(monkeypatch: pytest.MonkeyPatch, target: str = "") -> ModuleType:
    monkeypatch.setenv("PENSTOCK_TARGET", target)
    spec = importlib.util.spec_from_file_location("penstock_build", BACKEND)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(module._backend, "get_requires_for_build_wheel", lambda _: ["ninja"])
    monkeypatch.setattr(module._backend, "get_requires_for_build_editable", lambda _: ["ninja"])
    return module


def command(folder: Path, name: str, status: int) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\nexit {status}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    return folder


@pytest.fixture
def zig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ziglang whose compiler prints what it is told."""
    package = tmp_path / "packages/ziglang"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "zig").write_text('#!/bin/sh\necho "$@"\n')
    (package / "zig").chmod(0o755)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, "ziglang", raising=False)
    return package / "zig"


def requirements(module: ModuleType) -> list[list[str]]:
    return [module.get_requires_for_build_wheel(), module.get_requires_for_build_editable({})]


def test_no_compiler_takes_zig(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = backend(monkeypatch)
    assert requirements(module) == [["ninja", module.ZIG]] * 2
    command(path, "c++", 1)  # one too old for C++20
    assert requirements(module) == [["ninja", module.ZIG]] * 2


@pytest.mark.parametrize("machine", ["riscv64", "i686"])
def test_no_zig_for_other_machines(machine: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = backend(monkeypatch)
    monkeypatch.setattr(module.platform, "machine", lambda: machine)
    assert requirements(module) == [["ninja"]] * 2


def test_first_compiler_that_knows_cxx20(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(path, "c++", 1)
    command(path, "clang++", 0)
    module = backend(monkeypatch)
    assert requirements(module) == [["ninja"]] * 2
    settings = {"build-dir": "here"}
    with module._compiler(settings) as given:
        assert (os.environ["CXX"], given) == ("clang++", settings)
    assert "CXX" not in os.environ


def test_cxx_comes_first(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(path, "c++", 0)
    monkeypatch.setenv("CXX", str(command(tmp_path / "other", "mine", 0)))
    with backend(monkeypatch)._compiler(None):
        assert os.environ["CXX"] == str(tmp_path / "other/mine")


def test_zig_leaves_no_build_folder(path: Path, zig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    module = backend(monkeypatch)
    with module._compiler({"editable.mode": "redirect"}) as settings:
        build = Path(settings.pop("build-dir"))
        assert settings == {"editable.mode": "redirect"}
        build.mkdir()
        said = os.popen(f"{shlex.quote(os.environ['CXX'])} -c x.cpp").read()
        assert said == "c++ -mcpu=baseline -O2 -s -fPIC -c x.cpp\n"
    assert not build.parent.exists()
    assert {**os.environ, "PENSTOCK_TARGET": ""} == {**before, "PENSTOCK_TARGET": ""}


def test_target_always_takes_zig(path: Path, zig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(path, "c++", 0)
    module = backend(monkeypatch, target="aarch64-linux-gnu.2.28")
    assert requirements(module) == [["ninja", module.ZIG]] * 2
    with module._compiler(None):
        said = os.popen(f"{shlex.quote(os.environ['CXX'])} -c x.cpp").read()
    assert said == "c++ -mcpu=baseline -O2 -s -fPIC -target aarch64-linux-gnu.2.28 -c x.cpp\n"


def test_wheels_for_another_cpu(path: Path, zig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAKE_ARGS", "-DX=1")
    module = backend(monkeypatch, target="aarch64-linux-gnu.2.28")
    monkeypatch.setattr(
        module.sysconfig, "get_config_var", {"EXT_SUFFIX": ".cpython-310-x86_64-linux-gnu.so"}.__getitem__
    )
    with module._compiler(None):
        assert os.environ["CMAKE_ARGS"] == "-DX=1 -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64"
        assert os.environ["SETUPTOOLS_EXT_SUFFIX"] == ".cpython-310-aarch64-linux-gnu.so"
        assert os.environ["_PYTHON_HOST_PLATFORM"] == "linux-aarch64"
    seen: list[str | None] = []  # what pip asks for first has to bear the same name
    name = "prepare_metadata_for_build_wheel"
    monkeypatch.setattr(module._backend, name, lambda *_: seen.append(os.environ.get("_PYTHON_HOST_PLATFORM")))
    module.prepare_metadata_for_build_wheel("metadata")
    assert seen == ["linux-aarch64"]
    module = backend(monkeypatch, target="x86_64-linux-gnu.2.28")
    with module._compiler(None):
        assert os.environ["CMAKE_ARGS"] == "-DX=1"
        assert "_PYTHON_HOST_PLATFORM" not in os.environ
