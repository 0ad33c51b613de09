"""The build backend that pip calls (PEP 517): scikit-build-core, and the ziglang wheel where no compiler is found.

On Windows it takes clang-cl, by Ninja: Visual C++'s own compiler does not know what the sources ask for.

`PENSTOCK_TARGET`, such as `x86_64-linux-gnu.2.28`, always takes the latter, and makes it compile for that CPU and that
version of the C library (scripts/wheel). Where the CPU is another one than this, the wheel is named after it; types of
the compiled module, which are told by importing it, are not in there.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scikit_build_core import build as _backend
from scikit_build_core.build import (
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ZIG = "ziglang==0.17.1"
TARGET = os.environ.get("PENSTOCK_TARGET", "")
# By default zig compiles for the CPU it runs on, which would spoil the baseline files, and traps undefined behaviour;
# these options prevent both, and one set of them for all needs only one C++ library.
ZIG_OPTIONS = ("-mcpu=baseline", "-O2", "-s", "-fPIC")

Settings = dict[str, Any] | None

if sys.platform == "win32":
    os.environ.setdefault("CXX", "clang-cl")
    os.environ.setdefault("CMAKE_GENERATOR", "Ninja")


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return [*_backend.get_requires_for_build_wheel(config_settings), *([ZIG] if _needs_zig() else [])]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return [*_backend.get_requires_for_build_editable(config_settings), *([ZIG] if _needs_zig() else [])]


def prepare_metadata_for_build_wheel(directory: str, config_settings: Settings = None) -> str:
    with _environment(_another_cpu(TARGET.split("-")[0])):  # which the tags of the wheel name
        return _backend.prepare_metadata_for_build_wheel(directory, config_settings)


def build_wheel(directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    with _compiler(config_settings) as settings:
        return _backend.build_wheel(directory, settings, metadata_directory)


def build_editable(directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    with _compiler(config_settings) as settings:
        return _backend.build_editable(directory, settings, metadata_directory)


def _needs_zig() -> bool:
    if TARGET:
        return True
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return False
    return _find_compiler() is None


def _find_compiler() -> str | None:
    if sys.platform == "win32":
        return os.environ["CXX"]
    return next(filter(_compiles_cxx20, (os.environ.get("CXX", ""), "c++", "g++", "clang++")), None)


def _compiles_cxx20(command: str) -> bool:
    if not command or not shutil.which(command):
        return False
    source = "#include <bit>\n#include <concepts>\n#include <span>\n"
    options = ("-std=c++20", "-fsyntax-only", "-x", "c++", "-")
    return (
        subprocess.run([command, *options], input=source, text=True, capture_output=True, check=False).returncode == 0
    )


@contextmanager
def _compiler(config_settings: Settings) -> Iterator[Settings]:
    """The settings to build with, while the environment names the compiler.

    pip takes zig away after the build, so no build folder that remains may name it: CMake would look for it forever.
    """
    if not _needs_zig():
        compiler = _find_compiler()
        with _environment({"CXX": compiler} if compiler else {}):
            yield config_settings
        return
    with tempfile.TemporaryDirectory() as folder, _environment(_zig_tools(Path(folder))):
        yield {"build-dir": f"{folder}/build", **(config_settings or {})}


def _zig_tools(folder: Path) -> dict[str, str]:
    """Zig as the commands that CMake expects, and the variables that name them."""
    import ziglang

    zig = Path(ziglang.__file__).parent / "zig"
    options = (*ZIG_OPTIONS, *(("-target", TARGET) if TARGET else ()))
    for tool, its_options in {"cc": options, "c++": options, "ar": (), "ranlib": ()}.items():
        script = folder / tool
        script.write_text(f'#!/bin/sh\nexec "{zig}" {" ".join((tool, *its_options))} "$@"\n')
        script.chmod(0o755)
    cache = str(folder / "cache")
    path = os.pathsep.join([str(folder), os.environ.get("PATH", "")])
    tools = {"CC": str(folder / "cc"), "CXX": str(folder / "c++"), "PATH": path}
    return tools | {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache} | _another_cpu(TARGET.split("-")[0])


def _another_cpu(cpu: str) -> dict[str, str]:
    """The variables that tell CMake, scikit-build-core and Python of a CPU of Linux that is not this one."""
    if cpu in ("", platform.machine()):
        return {}
    suffix = sysconfig.get_config_var("EXT_SUFFIX").replace(platform.machine(), cpu)
    arguments = [os.environ.get("CMAKE_ARGS", ""), "-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={cpu}"]
    return {
        "CMAKE_ARGS": " ".join(arguments).strip(),
        "SETUPTOOLS_EXT_SUFFIX": suffix,
        "_PYTHON_HOST_PLATFORM": f"linux-{cpu}",
    }


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
