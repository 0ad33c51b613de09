"""Where a model's name leads: a directory, the demo model, Penstock's own store, or the Hugging Face cache."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from penstock.errors import CheckpointError

DEMO = "demo"


def store_root() -> Path:
    """The directory that keeps pulled models: $PENSTOCK_HOME, or the user's data directory."""
    home = os.environ.get("PENSTOCK_HOME")
    if home:
        return Path(home)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "penstock"


def find_model(model: str | os.PathLike[str]) -> Path:
    """The path of MODEL. Raises CheckpointError where no model of that name is on this machine."""
    path = Path(model).expanduser()
    if str(model) == DEMO:
        return Path(str(files("penstock") / "data" / DEMO))
    if path.exists():
        return path
    stored = store_root() / "models" / path
    if not path.is_absolute() and stored.is_dir():
        return stored
    cached = _in_hub_cache(str(model))
    if cached is not None:
        return cached
    on_hub = (
        f"If it is on the Hugging Face Hub: penstock pull {model}. Otherwise give" if _is_repo(str(model)) else "Give"
    )
    raise CheckpointError(
        f"{model}: no such directory, and no model of this name in {store_root()} or in the Hugging Face cache.",
        f"{on_hub} the directory that holds config.json, or `demo` for the model that ships with Penstock.",
    )


def name_elsewhere(path: Path) -> str:
    """What another machine knows a model as that is here at `path`: its name, or else the same path."""
    path = path.absolute()
    if path == find_model(DEMO):
        return DEMO
    models = (store_root() / "models").absolute()
    if path.is_relative_to(models) and path != models:
        return path.relative_to(models).as_posix()
    folder = path.parents[1].name if path.parent.name == "snapshots" else ""
    if folder.startswith("models--"):  # as huggingface_hub keeps them
        return folder.removeprefix("models--").replace("--", "/")
    return str(path)


def _is_repo(name: str) -> bool:
    """Whether it may be "owner/name" on the Hub."""
    owner, slash, repo = name.partition("/")
    return bool(owner and slash and repo) and "/" not in repo


def _in_hub_cache(name: str) -> Path | None:
    """The snapshot of an "owner/name" repository that huggingface_hub has downloaded."""
    if not _is_repo(name):
        return None
    from huggingface_hub import try_to_load_from_cache  # takes a while to import, and is seldom needed
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None
