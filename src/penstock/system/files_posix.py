"""Opening, locking and replacing files on POSIX systems: `files.py` says what is asked for.

Sources: flock(2), rename(2).
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

if sys.platform == "win32":
    raise ImportError("nothing here is of Windows")  # says to mypy what the import of fcntl says to Python


def open_movable(path: str | Path, flags: int, mode: int = 0o666) -> int:
    return os.open(path, flags, mode)


def replace(source: Path, target: Path) -> None:
    source.replace(target)


def lock(descriptor: int, wait: bool = False) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def lock_holder(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY)
