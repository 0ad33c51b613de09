"""The models that have a name on this machine: those in Penstock's store, and those in the Hugging Face cache."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from penstock.checkpoints.layout import UNFINISHED
from penstock.checkpoints.store import DEMO, find_model, store_root
from penstock.errors import CheckpointError, PenstockError, UsageError

Where = Literal["store", "Hugging Face cache"]

_REMOVED = "removed-"
"""Begins the name of a folder in the store, beside that of the models, for what is being deleted."""


@dataclass(frozen=True, slots=True)
class Named:
    """A directory that a name leads to, whatever is in it."""

    name: str
    path: Path
    where: Where

    @property
    def unfinished(self) -> bool:
        """Whether what writes it was interrupted, or is at it."""
        return (self.path / UNFINISHED).exists()

    @property
    def nbytes(self) -> int:
        """Of all its files, those of the cache that it links to among them."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def models_here() -> list[Named]:
    """All of them, those of the store first, by name."""
    return [*_in_store(), *_in_cache()]


def _in_store() -> list[Named]:
    """What `pull` brought, and what else was put there, as NAME or OWNER/NAME."""
    models = store_root() / "models"
    found = []
    for path in (*_folders(models), *(inner for outer in _folders(models) for inner in _folders(outer))):
        if (path / "config.json").exists() or (path / UNFINISHED).exists():
            found.append(Named(path.relative_to(models).as_posix(), path, "store"))
    return sorted(found, key=lambda named: named.name)


def _in_cache() -> list[Named]:
    """Repositories of models, where their main branch has a config.json."""
    from huggingface_hub.constants import HF_HUB_CACHE

    found = []
    for folder in _folders(Path(HF_HUB_CACHE)):
        kind, *parts = folder.name.split("--")
        if kind != "models" or len(parts) != 2:
            continue
        name = "/".join(parts)
        with suppress(CheckpointError):
            path = find_model(name)
            if path.is_relative_to(folder):  # and no directory or stored model of this name comes first
                found.append(Named(name, path, "Hugging Face cache"))
    return sorted(found, key=lambda named: named.name)


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(one for one in path.iterdir() if one.is_dir() and one.name != UNFINISHED)
    except OSError:
        return []


def find_removable(name: str) -> Named:
    """The model of that name in the store. Raises UsageError for what is anywhere else, CheckpointError for nothing."""
    for named in _in_store():
        if name.rstrip("/") == named.name:
            return named
    path = find_model(name)  # says where it looked
    if name == DEMO:
        raise UsageError("The demo model is a part of Penstock.", "It cannot be removed.")
    if any(path.samefile(named.path) for named in _in_cache()):
        problem = f"{name} is in the Hugging Face cache, where other programs may use it."
        raise UsageError(problem, f"`hf cache rm model/{name}` removes it there.")
    problem = f"{name} is at {path}, not a model in Penstock's store, {store_root() / 'models'}."
    raise UsageError(problem, "Only what `penstock pull` brought is removed; delete other directories yourself.")


def remove(named: Named) -> None:
    """Delete a model of the store. It loses its name first, so that an interruption leaves nothing that could be taken
    for a model; what such a one left is deleted too. Raises PenstockError where the disk refuses."""
    root = store_root()
    try:
        if named.path.is_symlink():  # to somebody else's directory
            named.path.unlink()
        else:
            named.path.rename(Path(tempfile.mkdtemp(prefix=_REMOVED, dir=root)) / "model")
        with suppress(OSError):  # an owner's folder that is not empty stays
            if named.path.parent != root / "models":
                named.path.parent.rmdir()
        for left in root.glob(f"{_REMOVED}*"):
            shutil.rmtree(left)
    except OSError as error:
        problem = f"{error.filename or named.path} cannot be deleted: {error.strerror or error}."
        raise PenstockError(problem, "Check that you may write there; then give the same command again.") from error
