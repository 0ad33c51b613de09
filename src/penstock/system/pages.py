"""Arrays in pages of their own: they go back to the system at once when they are freed, each by itself."""

from __future__ import annotations

import mmap
import sys
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
    if sys.platform == "win32":
        return _private_of_heap(nbytes)
    pages = mmap.mmap(-1, max(1, nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared ones are never huge
    if nbytes >= HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8, nbytes)


def _private_of_heap(nbytes: int) -> npt.NDArray[np.uint8]:
    """The same on Windows, whose anonymous mappings are shared memory, which is not counted as a process's own.

    The heap takes large blocks from the system, and gives them back, one by one.
    """
    block = np.zeros(nbytes + mmap.PAGESIZE, np.uint8)
    return np.frombuffer(block.data, np.uint8, nbytes, -block.ctypes.data % mmap.PAGESIZE)
