"""The garbage collector is as it was, however a block that goes without it ends."""

from __future__ import annotations

import gc

import pytest

from penstock.system.garbage import no_collections


@pytest.mark.parametrize("enabled", [True, False])
def test_it_is_as_before(enabled: bool) -> None:
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with no_collections():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
        with pytest.raises(ValueError, match="inside"), no_collections():
            raise ValueError("inside")
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()
