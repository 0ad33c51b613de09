"""What a machine of a cluster is to pull."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PullOrder:
    """What a machine is to pull; the fields are the parameters of `hub.pull.pull`."""

    repo: str
    out: str | None
    revision: str
    token: str | None
    threads: int | None
    layers: tuple[int, ...] | None
