"""All of Penstock can be imported, and the command line tells of itself, where what only Linux has is not."""

from __future__ import annotations

import subprocess
import sys

import pytest

MODULES = {"win32": "fcntl grp posix pty pwd resource termios tty", "darwin": ""}
FUNCTIONS = {
    "win32": "O_CLOEXEC O_DIRECT O_NOFOLLOW O_NONBLOCK fork geteuid getuid mkfifo openpty posix_fadvise pread preadv "
    "sched_getaffinity statvfs sysconf uname",
    "darwin": "O_DIRECT posix_fadvise sched_getaffinity",
}
MAPPINGS = {"win32": "MADV_HUGEPAGE MAP_ANONYMOUS MAP_PRIVATE", "darwin": "MADV_HUGEPAGE"}
PROGRAM = """
import importlib, importlib.abc, mmap, os, pkgutil, signal, sys

platform, modules, functions, mappings = sys.argv[1], *(words.split() for words in sys.argv[2:5])


class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in modules:
            raise ModuleNotFoundError(f"no {name} on {platform}", name=name)


def import_all():
    import penstock

    names = ["penstock", *(found.name for found in pkgutil.walk_packages(penstock.__path__, "penstock."))]
    return [name for name in names if not name.endswith((".__main__", "._core")) and imported(name)]


def imported(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if name in OTHERS or (error.name or "penstock").split(".")[0] not in ("penstock", *modules):
            return None  # of another system; of an extra that is not installed
        raise


OTHERS = {f"penstock.disk.files_{system}" for system in ("linux", "macos")}
OTHERS |= {f"penstock.system.{name}" for name in ("files_posix", "memory_linux", "memory_macos")}
before = import_all()  # with what others need of this system
for name in [name for name in sys.modules if name.startswith("penstock.") and name != "penstock._core"]:
    del sys.modules[name]
for name in modules:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
sys.platform = platform
for names, module in ((functions, os), (mappings, mmap)):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
if platform == "win32":
    os.O_BINARY = 0x8000
    del signal.SIGHUP, signal.SIGKILL
after = import_all()
print(len(before), len(after), sorted({*before} - {*after}))
sys.argv = ["penstock", "--help"]
from penstock.cli import main

main()
"""


OTHERS = ["disk.files_linux", "disk.files_macos", "system.files_posix", "system.memory_linux", "system.memory_macos"]


@pytest.mark.thorough
@pytest.mark.parametrize(("platform", "left_out"), [("win32", OTHERS), ("darwin", ["disk.files_linux"])])
@pytest.mark.skipif(sys.platform != "linux", reason="from Linux")
def test_nothing_asks_for_what_a_system_lacks(platform: str, left_out: list[str]) -> None:
    command = [sys.executable, "-c", PROGRAM, platform, MODULES[platform], FUNCTIONS[platform], MAPPINGS[platform]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    told, _, helped = done.stdout.partition("\n")
    assert told.partition("[")[2] == ", ".join(f"'penstock.{name}'" for name in left_out) + "]"
    assert "Usage: penstock" in helped
