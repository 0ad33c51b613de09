"""Text that the demo model was not trained on: every 50th file of the interpreter's own library, read at run time."""

from __future__ import annotations

import os
import random
import sysconfig
from functools import cache
from pathlib import Path

SKIPPED = {"test", "tests", "idle_test", "site-packages", "lib2to3"}


@cache
def files() -> list[Path]:
    """Which of the library's files were held out depends on its version; in others than 3.11 some may be known."""
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = []
    for folder, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in SKIPPED]
        sources += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(sources)[::50]


@cache
def held_out() -> str:
    return "\n\f\n".join(path.read_text("utf-8", errors="ignore") for path in files())


def cut(seed: int, characters: int) -> str:
    """Some of it, from a random place on."""
    text = held_out()
    begin = random.Random(seed).randrange(len(text) - characters)
    return text[begin : begin + characters]
