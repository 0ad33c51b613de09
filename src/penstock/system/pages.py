"""Arrays in pages of their own: they go back to the system at once when they are freed, each by itself."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

HUGE_PAGE_BYTES = 2 << 20


def page_array(nbytes: int) -> npt.NDArray[np.uint8]:
    """Zeros, uint8 [nbytes], beginning at a page; in huge pages where they are long enough and the system has them.

    Huge pages make for fewer page faults and misses of the TLB, and for fewer segments in a direct read.
    """
    pages = _private(max(1, nbytes))
    if nbytes >= HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8, nbytes)


def _private(nbytes: int) -> mmap.mmap:
    """Anonymous memory of this process alone; shared memory, Python's default, gets no huge pages."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, nbytes)
