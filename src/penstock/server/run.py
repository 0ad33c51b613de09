"""Serving until a signal comes."""

from __future__ import annotations

import signal
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from penstock.disk.new_files import own_directory
from penstock.errors import UsageError
from penstock.server.app import create_app
from penstock.server.connections import BACKLOG, Config
from penstock.server.metrics import Metrics
from penstock.server.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from penstock.server.chats.service import Chats
    from penstock.server.settings import Settings
    from penstock.server.shelf import Shelf

GRACE_SECONDS = 5
"""For connections to end once the server has said that it does."""


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 takes a free one. Raises UsageError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"Cannot listen at port {port} of {host}: {getattr(error, 'strerror', None) or error}.",
            "Choose another with --port or --host.",
        ) from None


def url(listening: socket.socket) -> str:
    """The address of a listening socket for browsers and clients."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Tells when it is ready, and ends what runs before it ends itself."""

    def __init__(self, config: uvicorn.Config, worker: Worker, chats: Chats, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._worker = worker
        self._chats = chats
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(BACKLOG)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._worker.close()
        await super().shutdown(sockets)
        await self._chats.close()


def server(
    shelf: Shelf, settings: Settings, chats: Path, ready: Callable[[], None] = lambda: None
) -> tuple[Server, Worker]:
    """A server for the models of a shelf, and its worker, which `run` starts. `chats`: the folder of conversations."""
    metrics = Metrics()
    worker = Worker(shelf, settings, metrics)
    app = create_app(worker, settings, metrics, chats)
    config = Config(
        app,
        settings,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return Server(config, worker, app.state.chats, ready), worker


def run(shelf: Shelf, settings: Settings, listening: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGTERM, then return, or until Ctrl-C, then raise KeyboardInterrupt. Streams end before that."""
    with chats_folder(settings) as chats:
        serving, worker = server(shelf, settings, chats, ready)
        before = signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it once more when it has ended
        worker.start()
        try:
            serving.run([listening])
        finally:
            worker.close(wait=True)
            signal.signal(signal.SIGTERM, before)


@contextmanager
def chats_folder(settings: Settings) -> Iterator[Path]:
    """Where conversations are kept, a folder of its own that is gone at the end where there is none for them."""
    if settings.chats is not None:
        yield settings.chats
        return
    problem, remedy = "There is no folder for conversations", "Name one with --chats."
    with own_directory("penstock-chats-", None, problem, remedy) as own:
        yield own
