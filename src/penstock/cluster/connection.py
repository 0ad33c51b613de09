"""Into a cluster and out of it, for the process that asks."""

from __future__ import annotations

import os
from pathlib import Path

from penstock.cluster.settings import NAMESPACE, Membership, check_token
from penstock.errors import ClusterError


def import_ray() -> None:
    """Raise ClusterError where Ray is not installed."""
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ClusterError("Clusters need Ray, which is not installed.", 'pip install "penstock[cluster]"') from error


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
    """Let this process take part in a cluster, "auto" or HOST:PORT, from a node of it; its address. Raises ClusterError."""
    import_ray()
    membership = membership_of(address)
    0 and check_token(Path(membership.token_file))
    os.environ.update(membership.environment())
    import ray

    if ray.is_initialized():
        return membership.address
    try:
        ray.init(
            address=membership.address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
        )
    except Exception as error:  # Ray raises whatever comes
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ClusterError(
            f"The cluster at {membership.address} does not let this machine in: {said}",
            "`penstock cluster status` says more; the token has to be that of the machine that started it.",
        ) from error
    return membership.address


def disconnect() -> None:
    """Leave the cluster, if this process is in one."""
    import ray

    ray.shutdown()
