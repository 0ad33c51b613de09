"""Shared fixtures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from penstock import _core

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(scope="session", autouse=True)
def _no_history_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests type in chats stays out of the user's own history."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(params=_core.isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every instruction set that this CPU can run, active for the length of the test, new Kernels included."""
    before = _core.isa()
    _core.set_isa(request.param)
    monkeypatch.setenv("PENSTOCK_ISA", request.param)
    yield request.param
    _core.set_isa(before)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """An error that is a parameter outlives its test, and its traceback all that was there when it was raised."""
    for value in getattr(getattr(item, "callspec", None), "params", {}).values():
        if isinstance(value, BaseException):
            value.__traceback__ = value.__context__ = None
