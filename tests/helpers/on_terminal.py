"""`penstock` as a user has it: on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable

from helpers.terminals import Terminal

PATIENCE = 120.0
"""Seconds until what is waited for counts as never coming."""


class OnTerminal:
    """`penstock` on a terminal of its own; a context manager that ends it."""

    def __init__(
        self, *arguments: str, columns: int = 80, stderr: int | None = None, environment: dict[str, str] | None = None
    ) -> None:
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "penstock", *arguments],
            stdin=follower,
            stdout=follower,
            stderr=follower if stderr is None else stderr,
            env=os.environ | {"TERM": "xterm-256color", "NO_COLOR": ""} | (environment or {}),
            start_new_session=True,
        )
        os.close(follower)
        self._leader = leader
        self._columns = columns
        self._raw = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> OnTerminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.end()
        os.close(self._leader)

    def wait_for(self, done: Callable[[str], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done(self.raw) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert done(self.raw)

    def type(self, text: str) -> None:
        os.write(self._leader, text.encode())

    def end(self) -> int:
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    @property
    def raw(self) -> str:
        """All that has come so far."""
        return self._raw.decode(errors="replace")

    @property
    def rows(self) -> list[str]:
        """What the screen, and what has scrolled off it, shows."""
        terminal = Terminal(self._columns)
        terminal.write(self.raw.replace("\r\n", "\n"))
        return terminal.rows

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._leader, 1 << 16)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            self._raw += data
            if b"\x1b[6n" in data:  # where is the cursor?
                self.type("\x1b[1;1R")
