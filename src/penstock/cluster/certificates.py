"""Certificates for a cluster whose network is encrypted: an authority, and a pair for the machines.

As Ray asks for them (docs.ray.io, "TLS authentication"): one key pair may serve all nodes, whose addresses it names.
"""

from __future__ import annotations

import ipaddress
import os
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from penstock.errors import ClusterError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder, GeneralName

DAYS = 3650


def make_certificates(folder: Path, addresses: Sequence[str]) -> None:
    """Write ca.crt, node.crt and node.key for machines with these addresses into a new folder.

    The authority's own key is kept nowhere, so nobody can make more of them. Raises UsageError where something is
    there, ClusterError without the package `cryptography`.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise ClusterError("Certificates need the package cryptography.", 'pip install "penstock[cluster]"') from error
    names = _names(addresses)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty.", "Name a new folder.")
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _begun("Penstock cluster authority", "Penstock cluster authority", authority)
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    node = _begun("Penstock node", "Penstock cluster authority", key)
    node = node.add_extension(x509.SubjectAlternativeName(names), critical=False)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(folder / "ca.crt", _signed(ca, authority).public_bytes(pem))
    _write(folder / "node.crt", _signed(node, authority).public_bytes(pem))
    _write(folder / "node.key", private)


def _names(addresses: Sequence[str]) -> list[GeneralName]:
    from cryptography import x509

    try:
        parsed = [ipaddress.ip_address(address) for address in addresses]
    except ValueError as error:
        raise UsageError(f"{error}.", "Give addresses like 192.168.1.2, one for each machine.") from error
    return [x509.DNSName("localhost"), *map(x509.IPAddress, [ipaddress.ip_address("127.0.0.1"), *parsed])]


def _begun(subject: str, issuer: str, key: EllipticCurvePrivateKey) -> CertificateBuilder:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    now = datetime.now(timezone.utc)
    named = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (subject, issuer)]
    builder = x509.CertificateBuilder().subject_name(named[0]).issuer_name(named[1]).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=DAYS))


def _signed(builder: CertificateBuilder, key: EllipticCurvePrivateKey) -> Certificate:
    from cryptography.hazmat.primitives import hashes

    return builder.sign(key, hashes.SHA256())


def _write(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
