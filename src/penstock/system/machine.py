"""What this machine and this process have of memory. How a system tells is in a module of its own."""

from __future__ import annotations

import sys
from dataclasses import dataclass

if sys.platform == "win32":
    from penstock.system import memory_windows as system
elif sys.platform == "darwin":
    from penstock.system import memory_macos as system
else:
    from penstock.system import memory_linux as system


@dataclass(frozen=True, slots=True)
class Footprint:
    """What this process takes, bytes."""

    anonymous: int
    """Its own pages, and the kernel's tables of them."""
    cached: int
    """Page cache of its programs, libraries and modules, where that is counted as a process's: by Linux's control
    groups, whole, mapped or not."""

    @property
    def nbytes(self) -> int:
        return self.anonymous + self.cached


def footprint() -> Footprint:
    """What this process takes now, as its system would count it: on Linux a control group of its own."""
    return Footprint(system.anonymous_bytes(), system.cached_bytes())


def anonymous_bytes() -> int:
    """What this process has of its own now, bytes."""
    return system.anonymous_bytes()


def peak_process_bytes() -> int:
    """The most resident memory that this process ever had, bytes (without its parent's, which getrusage may tell)."""
    return system.peak_bytes()


def swapped_bytes() -> int:
    """Bytes that were swapped out: of this process, or of all where the system tells no more; 0 where it does not."""
    return system.swapped_bytes()


def available_bytes() -> int:
    """What this process may still take; a part of what is available is left alone."""
    return system.available_bytes()


def is_low() -> bool:
    """Whether the system itself says that memory is short."""
    return system.is_low()


def trim_heap() -> None:
    """Give freed heap pages back to the system, where the C library can."""
    system.trim_heap()


def return_large_arrays() -> None:
    """Let every array of 1 MiB or more go back to the system as soon as it is freed."""
    system.return_large_arrays()
