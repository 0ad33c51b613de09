"""What a command does last of all, with nothing between it and the end of the process.

An interpreter takes a few tenths of a second to tear itself down. A kill in that time finds a command that is over and
yet did not end well, and whoever repeats it would have its work done twice.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_acts: list[Callable[[], object]] = []


def at_the_end(act: Callable[[], object]) -> None:
    """Have `act` done where the command ends well."""
    _acts.append(act)


def leave() -> None:
    """The command has ended well: do what is to be done at the end, and then end the process at once, with 0.

    Returns where there is nothing to be done.
    """
    if not _acts:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    for act in _acts:
        act()
    os._exit(0)
