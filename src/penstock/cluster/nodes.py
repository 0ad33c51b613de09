"""This machine's part in a cluster: start one, join one, see who is there, leave.

Ray's own command does the work; what is said here is how (settings.py).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.cluster.connection import connect, default_token, disconnect, refused, require_ray
from penstock.cluster.fleet import MEMORY, NO_CEILING, THREADS, every_node
from penstock.cluster.reach import check_reach
from penstock.cluster.settings import OBJECT_STORE_BYTES, PORT, Membership, check_token, new_token
from penstock.errors import ClusterError, UsageError
from penstock.system.sizes import MIB, parse_bytes

if TYPE_CHECKING:
    from penstock.cluster.fleet import RayNode

START_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What a machine brings. Raises UsageError for values that cannot be meant."""

    memory: str | None = None
    """The ceiling of a process of Penstock; None for what is free when one starts."""
    threads: int | None = None
    address: str | None = None
    """The one of this machine, in the network that the others are in; None for that of its default route."""
    token_file: Path | None = None
    certificates: Path | None = None

    def __post_init__(self) -> None:
        if self.memory is not None:
            parse_bytes(self.memory)
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads {self.threads}: at least 1 is needed.", "Leave it out to use every CPU.")
        if self.address is not None:
            _check_address(self.address)
        if self.certificates is not None:
            for name in ("ca.crt", "node.crt", "node.key"):
                if not (self.certificates / name).is_file():
                    raise UsageError(
                        f"{self.certificates} has no {name}.", "`penstock cluster certificates DIR` makes them."
                    )

    @property
    def token(self) -> Path:
        return (self.token_file or default_token()).expanduser().resolve()

    @property
    def resources(self) -> dict[str, int]:
        """As Ray is told."""
        memory = NO_CEILING if self.memory is None else parse_bytes(self.memory) // MIB
        return {MEMORY: memory, THREADS: self.threads or 0}


def start(settings: NodeSettings, port: int = PORT) -> Membership:
    """Make this machine the head of a new cluster. Raises ClusterError."""
    require_ray()
    new_token(settings.token)
    own = settings.address or own_address()
    membership = _membership(settings, f"{own}:{port}")
    _ray(["start", "--head", f"--port={port}", "--include-dashboard=false", "--no-monitor"], settings, own, membership)
    membership.keep()
    return membership


def join(address: str, settings: NodeSettings) -> Membership:
    """Let this machine be a part of the cluster at HOST:PORT. Raises ClusterError."""
    require_ray()
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(
            f"{address!r} is no address of a cluster.", "Give HOST:PORT, as `penstock cluster start` said."
        )
    own = settings.address or own_address(host)
    membership = _membership(settings, address)
    check_reach(address, membership.certificates)
    _ray(["start", f"--address={address}"], settings, own, membership)
    membership.keep()
    return membership


def stop() -> None:
    """Take this machine out of its cluster, and end what runs here for it. Raises ClusterError."""
    require_ray()
    membership = Membership.read()
    environment, address = (
        ({}, "this machine") if membership is None else (membership.environment(), membership.address)
    )
    _run([*_RAY, "stop"], environment, address)
    Membership.path().unlink(missing_ok=True)


def status(address: str = "auto") -> tuple[str, list[RayNode]]:
    """The cluster's address, and every machine in it. Raises ClusterError."""
    address = connect(address)
    try:
        return address, every_node()
    finally:
        disconnect()


def own_address(towards: str = "192.0.2.1") -> str:
    """This machine's address on the way to another one; nothing is sent (a datagram socket that only looks)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as looking:
        try:
            looking.connect((towards, 9))
        except OSError as error:
            raise ClusterError(
                f"This machine has no network on the way to {towards}: {error.strerror or error}.",
                "Give its address: --advertise.",
            ) from error
        return str(looking.getsockname()[0])


def _check_address(address: str) -> None:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError as error:
        raise UsageError(f"{address!r} is no address of a machine.", "Give one like 192.168.1.2.") from error
    if parsed.is_unspecified:
        raise UsageError(
            f"{address} stands for every network that this machine is in.",
            "Give its address in the one of the cluster.",
        )


def _membership(settings: NodeSettings, address: str) -> Membership:
    check_token(settings.token)
    folder = None if settings.certificates is None else str(settings.certificates.expanduser().resolve())
    return Membership(address, str(settings.token), folder)


_RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def _ray(arguments: list[str], settings: NodeSettings, own: str, membership: Membership) -> None:
    resources = ", ".join(f'"{name}": {count}' for name, count in settings.resources.items() if count)
    options = [
        f"--node-ip-address={own}",
        f"--node-name={socket.gethostname()}",
        f"--resources={{{resources}}}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        "--num-cpus=1",
        "--include-log-monitor=false",
        "--disable-usage-stats",
    ]
    _run([*_RAY, *arguments, *options], membership.environment(), membership.address)


def _run(command: list[str], environment: dict[str, str], address: str) -> None:
    """Raises ClusterError with the last that Ray said."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=START_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            f"Ray has not done it in {START_SECONDS:.0f} s.", "See whether the address is right, and reachable."
        ) from error
    if done.returncode != 0:
        raise refused(address, done.stdout + done.stderr)
