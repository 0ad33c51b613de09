"""How Ray is set up here: nothing that costs memory for no use, nothing open to whoever has no token.

Names and defaults are those of Ray 2.60 (src/ray/common/ray_config_def.h; docs.ray.io, "Ray security").
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from penstock.checkpoints.store import store_root
from penstock.errors import ClusterError

PORT = 6379
OBJECT_STORE_BYTES = 128 << 20
"""Of memory that nodes share with their processes; pages of it are taken as messages first need them."""
NAMESPACE = "penstock"


@dataclass(frozen=True, slots=True)
class Membership:
    """How this machine takes part in a cluster, as `cluster.json` keeps it for the next commands."""

    address: str
    token_file: str
    certificates: str | None = None
    """The folder of certificates where the network is encrypted."""

    @staticmethod
    def path() -> Path:
        return store_root() / "cluster.json"

    @classmethod
    def read(cls) -> Membership | None:
        """What was kept. Raises ClusterError where that cannot be read."""
        try:
            kept = json.loads(cls.path().read_text("utf-8"))
            return cls(**kept)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise ClusterError(f"{cls.path()} cannot be read: {error}.", "Remove it, and join again.") from error

    def keep(self) -> None:
        """Write it."""
        self.path().parent.mkdir(parents=True, exist_ok=True)
        self.path().write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")

    def environment(self) -> dict[str, str]:
        """What Ray is to find in the environment."""
        settings = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": self.token_file,
            # Penstock keeps to its ceiling itself, and gives weights back where others need memory.
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_worker_niceness": "0",
            "RAY_prestart_worker_first_driver": "0",
            "RAY_enable_metrics_collection": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            # A machine that is gone is known to be within 10 s, not 65.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "3000",
            "RAY_health_check_failure_threshold": "3",
            "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        }
        if self.certificates is not None:
            folder = Path(self.certificates)
            settings |= {
                "RAY_USE_TLS": "1",
                "RAY_TLS_SERVER_CERT": str(folder / "node.crt"),
                "RAY_TLS_SERVER_KEY": str(folder / "node.key"),
                "RAY_TLS_CA_CERT": str(folder / "ca.crt"),
            }
        return settings


def new_token(path: Path) -> None:
    """A file that only its owner may read, with 32 random bytes in hexadecimal digits; one that is there stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(file, "w") as out:
        out.write(secrets.token_hex(32))


def check_token(path: Path) -> None:
    """Raise ClusterError unless a token is there that only its owner may read."""
    try:
        mode, token = path.stat().st_mode, path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(
            f"The cluster's token cannot be read from {path}: {error}.", "Copy it from the machine that started it."
        ) from error
    if not token:
        raise ClusterError(f"{path} is empty.", "Copy the token from the machine that started the cluster.")
    if os.name == "posix" and mode & 0o077:
        raise ClusterError(f"Others may read {path}, and run code on every machine with it.", f"chmod 600 {path}")
