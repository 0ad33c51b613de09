"""Runs Penstock on another build of its compiled core, as one with sanitizers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def use_core(path: Path) -> None:
    """Have `path` imported as penstock._core; to be called before anything of Penstock's is imported."""
    spec = importlib.util.spec_from_file_location("penstock._core", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no module")
    core = importlib.util.module_from_spec(spec)
    sys.modules["penstock._core"] = core
    spec.loader.exec_module(core)
    import penstock

    penstock._core = core  # type: ignore[attr-defined]
