"""Whether a cluster is where it should be, and speaks as this machine does; Ray itself waits for ever where not.

What is spoken is HTTP/2 (RFC 9113), where both sides begin by telling their settings.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import closing
from pathlib import Path

from penstock.errors import ClusterError

SECONDS = 5.0
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""A client's first bytes, and settings that say nothing."""
FRAME_HEAD_BYTES, SETTINGS = 9, 4


def check_reach(address: str, certificates: str | None) -> None:
    """Raise ClusterError unless a server at HOST:PORT answers as Ray's do, encrypted with certificates if they are
    given."""
    host, _, port = address.rpartition(":")
    try:
        plain = socket.create_connection((host.strip("[]"), int(port)), SECONDS)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"No cluster answers at {address}: {error}.",
            "See whether it was started, and whether a firewall is between.",
        ) from error
    with closing(plain):
        plain.settimeout(SECONDS)
        if certificates is None:
            _check_plain(address, plain)
        else:
            _check_encrypted(address, plain, Path(certificates))


def _check_plain(address: str, connection: socket.socket) -> None:
    try:
        connection.sendall(HELLO)
        head = connection.recv(FRAME_HEAD_BYTES)
    except OSError:
        head = b""
    if len(head) != FRAME_HEAD_BYTES or head[3] != SETTINGS:
        raise ClusterError(
            f"What is at {address} does not speak as a cluster without encryption does.",
            "If it was started with --tls, join it with --tls and the same certificates.",
        )


def _check_encrypted(address: str, connection: socket.socket, folder: Path) -> None:
    try:
        context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        context.load_cert_chain(folder / "node.crt", folder / "node.key")
        context.set_alpn_protocols(["h2"])
        context.wrap_socket(connection, server_hostname=address.rpartition(":")[0].strip("[]")).close()
    except (OSError, ssl.SSLError) as error:
        raise ClusterError(
            f"{address} and this machine do not agree on certificates: {error}.",
            "Start and join with copies of one folder of `penstock cluster certificates`, which names every address.",
        ) from error
