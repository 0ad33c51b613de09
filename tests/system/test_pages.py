from __future__ import annotations

import mmap

import pytest

from penstock.system.machine import anonymous_bytes
from penstock.system.pages import HUGE_PAGE_BYTES, page_array


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 4097, HUGE_PAGE_BYTES, 3 * HUGE_PAGE_BYTES + 5])
def test_zeros_that_begin_at_a_page(nbytes: int) -> None:
    array = page_array(nbytes)
    assert array.shape == (nbytes,)
    assert not array.any()
    assert array.ctypes.data % mmap.PAGESIZE == 0
    array[:] = 7


def test_pages_go_back_when_the_last_view_is_gone() -> None:
    array = page_array(16 << 20)
    array[:] = 1
    view, before = array[: 1 << 20], anonymous_bytes()
    del array
    assert view[5].item() == 1
    del view
    assert before - anonymous_bytes() > 15 << 20
