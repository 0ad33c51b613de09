"""Which Penstock processes run: each has a small file about itself, for `penstock ps`, as long as it works.

It holds a lock on its file, so that one that a killed process has left is told by nobody holding it. A process that can
write no such file runs all the same, and is not told of.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import psutil  # type: ignore[import-untyped]

from penstock.checkpoints.store import find_model, store_root
from penstock.errors import PenstockError, UsageError
from penstock.system import machine
from penstock.system.files import lock, open_movable
from penstock.system.files import replace as replace_file
from penstock.system.sizes import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Running:
    """What a process says of itself."""

    pid: int
    host: str
    command: str
    model: str
    """As it was named."""
    path: str
    """Where it is, without links; empty where the name leads nowhere yet."""
    ceiling: int | None
    """Bytes that the process may take; None for commands without such a ceiling."""
    port: int | None
    """That a server listens at."""
    begun: float
    """Seconds since 1970."""
    further: list[str] = field(default_factory=list)
    """Where a server's other models are."""


def runtime_folder() -> Path:
    """Where the files are: in the user's runtime directory, which goes when they log out, or in their cache."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "penstock"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock" / "running"


_own: list[tuple[Running, BinaryIO]] = []
"""What this process says of itself, and its file, while it has one."""


def registered(command: Callable[..., None]) -> Callable[..., None]:
    """A command that has a file about itself while it works."""

    @wraps(command)
    def run(*args: Any, **given: Any) -> None:
        with _file_of(_about(command.__name__, given)):
            command(*args, **given)

    return run


def listens_at(port: int) -> None:
    """Say that this process is a server that listens at a port."""
    with suppress(OSError):
        for about, file in _own:
            _write(replace(about, port=port), file)


def running() -> list[Running]:
    """Those of this user and machine, the oldest first. Files of processes that are gone are deleted."""
    found = [_read(path) for path in runtime_folder().glob("*.json")]
    here = [one for one in found if one is not None and one.host == platform.node()]
    return sorted(here, key=lambda one: (one.begun, one.pid))


def users_of(path: Path) -> list[str]:
    """The processes that work with the model in a directory, in words: those that say so, and those that have one of
    its files open, as far as this user may know."""
    place = path.resolve()
    users = {one.pid: f"penstock {one.command}" for one in running() if str(place) in (one.path, *one.further)}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if any(Path(file.path).is_relative_to(place) for file in process.open_files()):
                users.setdefault(process.pid, process.name())
    return [f"{name} (process {pid})" for pid, name in sorted(users.items())]


def _about(command: str, given: Mapping[str, Any]) -> Running:
    """What a command with these arguments says of itself."""
    named = next((given[key] for key in ("model", "models", "repo", "src", "packed") if given.get(key)), "")
    models = list(map(str, named)) if isinstance(named, list) else [str(named)]
    path, *further = [_path(command, model, given.get("out")) for model in models]
    ceiling = None
    if "memory" in given:
        with suppress(UsageError):  # the command will say so
            memory = given["memory"]
            ceiling = machine.available_bytes() + machine.anonymous_bytes() if memory is None else parse_bytes(memory)
    here, said = (os.getpid(), platform.node()), (command, ", ".join(models), path)
    return Running(*here, *said, ceiling, None, time.time(), further)


def _path(command: str, model: str, out: Any) -> str:
    path = Path(out or store_root() / "models" / model)
    if command != "pull":
        with suppress(PenstockError, OSError):
            path = find_model(model)
    return str(path.resolve())


@contextmanager
def _file_of(about: Running) -> Iterator[None]:
    path, file = runtime_folder() / f"{about.pid}-{secrets.token_hex(4)}.json", None
    new = path.with_suffix(".new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = open(new, "w+b", buffering=0, opener=open_movable)  # noqa: SIM115
        _lock(file)
        _write(about, file)
        replace_file(new, path)  # with the lock on it
        _own.append((about, file))
    except OSError:
        pass
    try:
        yield
    finally:
        _own.clear()
        with suppress(OSError):
            path.unlink(missing_ok=True)
            new.unlink(missing_ok=True)
        if file is not None:
            file.close()


def _write(about: Running, file: BinaryIO) -> None:
    content = json.dumps(asdict(about)).encode()
    file.seek(0)
    file.write(content)
    file.truncate()


def _read(path: Path) -> Running | None:
    """What a living process has written; None for anything else."""
    try:
        with open(path, "r+b", opener=open_movable) as file:
            content = file.read(_MOST_BYTES)
            about = Running(**json.loads(content))
            if not all(isinstance(getattr(about, name), kind) for name, kind in _TYPES.items()):
                return None
            if not psutil.pid_exists(about.pid) or _lock(file):
                path.unlink(missing_ok=True)
                return None
    except (OSError, ValueError, TypeError, ArithmeticError, RecursionError):  # nothing that a process wrote
        return None
    return about


_TYPES: Mapping[str, Any] = {
    "pid": int,
    "host": str,
    "command": str,
    "model": str,
    "path": str,
    "ceiling": int | None,
    "port": int | None,
    "begun": float | int,
    "further": list,
}


def _lock(file: BinaryIO) -> bool:
    """Take the lock on a file, which goes with the process; False where another one has it, or where there are none."""
    try:
        return lock(file.fileno())
    except OSError:
        return False
