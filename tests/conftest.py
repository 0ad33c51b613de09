"""Shared fixtures."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from penstock import _core
from penstock.system import machine

PROGRAMS = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[1] / "src"))

settings.register_profile("quick", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="run the long tests, too: those marked as thorough")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("thorough" if config.getoption("--thorough") else "quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Thorough tests are left out, but where they are asked for, all of them or by name."""
    if config.getoption("--thorough"):
        return
    left_out = [item for item in items if item.get_closest_marker("thorough") and not _is_named(item, config)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]


def _is_named(item: pytest.Item, config: pytest.Config) -> bool:
    """Whether the command line has the test itself, or its function or class: `PATH::NAME`."""
    for argument in config.args:
        path, separator, name = argument.partition("::")
        if separator and (config.invocation_params.dir / path).resolve() == item.path:
            test = item.nodeid.partition("::")[2]
            if test == name or test.startswith((f"{name}[", f"{name}::")):
                return True
    return False


@pytest.fixture(scope="session", autouse=True)
def _nothing_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests type in chats stays out of the user's own history, their processes out of `penstock ps`, and the
    user's configuration out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        patch.setenv("PENSTOCK_CONFIG", "")
        yield


@pytest.fixture(scope="session", autouse=True)
def _programs_are_counted_once() -> Iterator[None]:
    """How much of Python and its packages is in the page cache is asked whenever a model is opened, file by file, which
    takes as long as all the rest; it hardly changes."""
    if not hasattr(machine.system, "_cached_bytes"):  # only Linux counts it
        yield
        return
    count, kept = machine.system._cached_bytes, {}

    def cached_bytes(paths: Iterable[str]) -> int:
        own, others = set(), []
        for path in paths:
            (own.add if path.startswith(PROGRAMS) else others.append)(path)
        for path in own - kept.keys():
            kept[path] = count([path])
        return sum(kept[path] for path in own) + count(others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine.system, "_cached_bytes", cached_bytes)
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
