"""What is said where the disk fails under a file of a batch."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from penstock.errors import PenstockError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GO_ON = "Make room or check the disk, and give the same command again: it goes on from here."


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise PenstockError where reading fails."""
    try:
        yield
    except OSError as error:
        raise PenstockError(
            f"{path} cannot be read: {error.strerror or error}.",
            "Check its disk, and give the same command again: it goes on from here.",
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise PenstockError where writing fails."""
    try:
        yield
    except OSError as error:
        raise PenstockError(f"{path} cannot be written: {error.strerror or error}.", GO_ON) from error
