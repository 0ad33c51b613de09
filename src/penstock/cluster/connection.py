"""Into a cluster and out of it, for the process that asks."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.cluster.reach import check_reach
from penstock.cluster.settings import NAMESPACE, Membership, check_token
from penstock.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_connections: list[str] = []
"""Who is connected, by address: Ray has one connection a process."""


def require_ray() -> None:
    """Raise ClusterError where Ray is not installed. It is not imported: it reads the environment when it is."""
    if find_spec("ray") is None:
        raise ClusterError("Clusters need Ray, which is not installed.", 'pip install "penstock[cluster]"')


def membership_of(address: str) -> Membership:
    """How to take part in the cluster at `address`, or, for "auto", in that which this machine has started or joined.
    Raises ClusterError."""
    kept = Membership.read()
    if address != "auto":
        token = os.environ.get("RAY_AUTH_TOKEN_PATH") or (kept and kept.token_file) or str(default_token())
        same = kept is not None and kept.address == address
        return Membership(address, token, kept.certificates if same and kept is not None else None)
    if kept is None:
        raise ClusterError(
            "This machine is in no cluster.",
            "`penstock cluster start` on one machine, `penstock cluster join` on others.",
        )
    return kept


def default_token() -> Path:
    """Where the token is, unless said otherwise."""
    return Membership.path().with_name("cluster-token")


def connect(address: str) -> str:
    """Let this process take part in a cluster, "auto" or HOST:PORT, from a node of it; its address.

    Raises ClusterError.
    """
    require_ray()
    membership = membership_of(address)
    check_token(Path(membership.token_file))
    check_reach(membership.address, membership.certificates)
    os.environ.update(membership.environment())
    import ray

    if ray.is_initialized():
        if _connections and _connections[-1] != membership.address:
            raise ClusterError(
                f"This process is in the cluster at {_connections[-1]}.", "Close what is open there first."
            )
        _connections.append(membership.address)
        return membership.address
    said = ""
    try:
        with _standard_error_kept() as kept:
            try:
                ray.init(
                    address=membership.address,
                    namespace=NAMESPACE,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    configure_logging=False,
                )
            finally:
                said = kept()
        # What happens to its processes Ray writes to standard output, where answers are.
        ray._private.worker._worker_logs_enabled = False
    except Exception as error:  # Ray raises whatever comes
        raise refused(membership.address, f"{said}\n{error}") from error
    _connections.append(membership.address)
    return membership.address


def refused(address: str, said: str) -> ClusterError:
    """What is wrong where Ray said that."""
    text = said.lower()
    if "authtoken" in text or "authentication" in text:
        return ClusterError(
            f"The cluster at {address} has another token.", "Copy that of the machine that started it: --token-file."
        )
    if "version mismatch" in text:
        last = next(line.strip() for line in said.splitlines() if "version mismatch" in line.lower())
        return ClusterError(
            f"{last}", "Install the same Ray, and a Python of the same minor version, on every machine."
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return ClusterError(
        f"The cluster at {address} does not let this machine in: {lines[-1] if lines else 'Ray does not say why'}",
        "See whether it is there, and whether it was started with --tls, which joining needs then, too.",
    )


@contextmanager
def _standard_error_kept() -> Iterator[Callable[[], str]]:
    """Keep what is written to standard error meanwhile, by Ray's compiled parts too, which say the same once a second;
    gives what tells it."""
    with tempfile.TemporaryFile() as file:

        def kept() -> str:
            file.seek(0)
            return file.read().decode("utf-8", "replace")

        sys.stderr.flush()
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield kept
        finally:
            os.dup2(before, 2)
            os.close(before)


def disconnect() -> None:
    """Undo one `connect`; with the last of them this process leaves the cluster."""
    import ray

    if _connections:
        _connections.pop()
    if not _connections:
        ray.shutdown()
