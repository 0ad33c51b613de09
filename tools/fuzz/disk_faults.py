"""Let the disk fail under every command, at one call after another, and see what each makes of it.

python tools/fuzz/disk_faults.py [--most 20] [--only batch] [--parts] [--list]

A library that is preloaded (disk_faults.c) makes one call fail, or come back short: the first read of a session, the
second, and so on; then its writes, syncs, renames. Each time the command has to give the right answer, or to end with 1
and an error of a line or two that names a file; and the same command, repeated on a sound disk, has to end as if
nothing had been. Exits with 1 where anything else came of it. Needs Linux and a C compiler.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE / "disk_faults.c"
PRELOADED = "PENSTOCK_DISK_FAULTS"
"""The variable that tells a process that its library is there."""
SECONDS = 120
"""A command that takes longer hangs."""
READ, WRITE, SYNC, TRUNCATE, RENAME, UNLINK = range(6)
KINDS = ("read", "write", "sync", "truncate", "rename", "unlink")
SHORT, END = -1, -2
FAULTS = {
    READ: (errno.EIO, SHORT, END),
    WRITE: (errno.EIO, errno.ENOSPC, SHORT),
    SYNC: (errno.EIO, errno.ENOSPC),
    TRUNCATE: (errno.EIO,),
    RENAME: (errno.EIO, errno.ENOSPC),
    UNLINK: (errno.EIO,),
}


@dataclass(frozen=True)
class Scenario:
    """A command, in a folder that `prepare` fills; calls on files that match `pattern` fail."""

    name: str
    command: tuple[str, ...] | Callable[[], None]
    """Of penstock, or a part of one; it runs in the folder."""
    pattern: str
    prepare: Callable[[Path], None] = lambda folder: None
    kinds: tuple[int, ...] = tuple(FAULTS)
    results: tuple[str, ...] = ()
    """Files, or folders of files, that count beside what the command prints."""
    prints: bool = True
    """Whether what is printed is the same each time."""
    once: str = ""
    """What the command says where all is done already, if it refuses then."""


@dataclass(frozen=True)
class Fault:
    """What happens to call number `nth`, 0 for none."""

    pattern: str
    kind: int
    nth: int
    fault: int

    def __str__(self) -> str:
        what = {SHORT: "short", END: "end of file"}.get(self.fault) or errno.errorcode.get(self.fault)
        return f"{KINDS[self.kind]} {self.nth}: {what}"


@dataclass(frozen=True)
class Outcome:
    """What became of a command."""

    code: int | None
    """None where it hung."""
    out: str
    errors: str
    calls: int
    """How many the fault might have hit."""


class Library:
    """The preloaded one."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.fault_calls.restype = ctypes.c_long

    def arm(self, fault: Fault | None) -> None:
        fault = fault or Fault("", READ, 0, 0)
        self._library.fault_arm(fault.pattern.encode(), fault.kind, ctypes.c_long(fault.nth), fault.fault)

    @property
    def calls(self) -> int:
        return int(self._library.fault_calls())


def in_child(library: Library, folder: Path, act: Callable[[], object], fault: Fault | None = None) -> Outcome:
    """Do something in a process forked from this one, whose modules are loaded already."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        library.arm(fault)
        child = os.fork()
        if child == 0:
            _be_the_child(folder, act, out.fileno(), errors.fileno())
        code = _wait(child)
        library_calls = library.calls
        library.arm(None)
        out.seek(0)
        errors.seek(0)
        return Outcome(code, out.read(), errors.read(), library_calls)


def _be_the_child(folder: Path, act: Callable[[], object], out: int, errors: int) -> None:
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(errors, 2)
        os.chdir(folder)
        act()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # what the interpreter would have done
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _wait(child: int) -> int | None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


def perform(command: tuple[str, ...] | Callable[[], None]) -> None:
    """As the command line does."""
    from penstock.cli import main
    from penstock.errors import PenstockError

    if not callable(command):
        sys.argv = ["penstock", *command]
        main()
        return
    try:
        command()
    except PenstockError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


class Trial:
    """A scenario, tried with faults."""

    def __init__(self, library: Library, scenario: Scenario, root: Path) -> None:
        """Raises AssertionError where the command fails by itself."""
        self._library = library
        self._scenario = scenario
        self._folder = root / "case"
        self._template = root / "template"
        self._template.mkdir(parents=True)
        prepared = in_child(library, self._template, lambda: scenario.prepare(self._template))
        assert prepared.code == 0, prepared.errors
        self._afresh()
        outcome = self._run()
        assert outcome.code == 0, outcome.errors
        self._expected = self._result(outcome)

    def calls(self, kind: int) -> int:
        """How many calls of a kind there are for faults to hit."""
        self._afresh()
        return self._run(Fault(self._scenario.pattern, kind, 0, 0)).calls

    def problems(self, fault: Fault) -> list[str]:
        """What is wrong about what came of a fault, and of repeating the command."""
        self._afresh()
        outcome = self._run(fault)
        if problems := self._judge(outcome):
            return problems
        if outcome.code:
            again = self._run()
            done = self._scenario.once and self._scenario.once in again.errors
            if again.code != 0 and not done:
                return [f"the same command again: {again.code}, {again.errors}", f"after {outcome.errors}"]
            outcome = again
        result = self._result(outcome)
        return [
            f"another {name}" for name in {**result, **self._expected} if result.get(name) != self._expected.get(name)
        ]

    def _judge(self, outcome: Outcome) -> list[str]:
        errors = [line for line in outcome.errors.splitlines() if not line.startswith("warning: ")]
        if outcome.code is None:
            return ["it hangs"]
        if outcome.code not in (0, 1) or "Traceback" in outcome.errors:
            return [f"it ends with {outcome.code}", outcome.errors]
        if outcome.code == 0:
            return []
        if any(line.startswith(("damaged: ", "different: ")) for line in outcome.out.splitlines()):
            return []  # a report, which names files
        begin = next((index for index, line in enumerate(errors) if line.startswith("error: ")), None)
        if begin is None or len(errors) - begin > 2:
            return ["no error of a line or two", outcome.errors]
        if "/" not in errors[begin] and not any(name in errors[begin] for name in self._names()):
            return ["the error names no file", outcome.errors]
        return []

    def _names(self) -> list[str]:
        return [path.name for path in self._folder.rglob("*")]

    def _afresh(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._template, self._folder)

    def _run(self, fault: Fault | None = None) -> Outcome:
        return in_child(self._library, self._folder, lambda: perform(self._scenario.command), fault)

    def _result(self, outcome: Outcome) -> dict[str, object]:
        roots = [self._folder / name for name in self._scenario.results]
        files = [file for root in roots for file in ([root] if root.is_file() else root.rglob("*")) if file.is_file()]
        there = sorted(str(file.relative_to(self._folder)) for file in self._folder.rglob("*"))
        contents = {str(file): file.read_bytes() for file in files}
        return {"files": there, "answer": outcome.out if self._scenario.prints else ""} | contents


def chosen(count: int, most: int) -> list[int]:
    """Up to `most` of the numbers from 1 to `count`, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(1, count + 1))
    return sorted({1 + round(index * (count - 1) / max(1, most - 1)) for index in range(most)})


def try_all(library: Library, scenario: Scenario, most: int) -> Iterator[str]:
    """What is wrong; at most `most` calls of each kind meet with each fault."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(library, scenario, Path(folder).resolve())
        for kind in scenario.kinds:
            calls = trial.calls(kind)
            for kind_fault in FAULTS[kind]:
                cases = chosen(calls, most)
                print(f"{scenario.name}: {Fault('', kind, calls, kind_fault)} ({len(cases)} tried)", flush=True)
                for nth in cases:
                    fault = Fault(scenario.pattern, kind, nth, kind_fault)
                    for problem in trial.problems(fault):
                        yield f"{scenario.name}, {fault}: {problem}"


def build(folder: Path) -> Path:
    """The library to preload. Raises AssertionError where there is no compiler, or where it fails."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "no C compiler"
    library = folder / "disk_faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def preload() -> int:
    """This program once more, with the library."""
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        # A path with spaces would be several there.
        settings = {**os.environ, "LD_PRELOAD": library.name, "LD_LIBRARY_PATH": str(library.parent), PRELOADED: "1"}
        return subprocess.run([sys.executable, *sys.argv], env=settings, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--most", type=int, default=10**9, help="calls of a kind that meet with a fault (default: all)")
    parser.add_argument("--only", default="", help="scenarios whose names have this in them")
    parser.add_argument("--parts", action="store_true", help="parts of commands alone, which take milliseconds")
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    arguments = parser.parse_args()
    from disk_scenarios import SCENARIOS

    scenarios = [scenario for scenario in SCENARIOS if arguments.only in scenario.name]
    if arguments.parts:
        scenarios = [scenario for scenario in scenarios if callable(scenario.command)]
    if arguments.list:
        print("\n".join(scenario.name for scenario in scenarios))
        return 0
    if PRELOADED not in os.environ:
        return preload()
    library, found = Library(), 0
    for scenario in scenarios:
        for problem in try_all(library, scenario, arguments.most):
            print(f"PROBLEM {problem}", flush=True)
            found += 1
    print(f"{found} problems")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
