"""A folder of blocks that several processes share, under a limit of bytes; the least recently used ones go first.

A file has its name once all of it is there, and when it was used last is its time of change. One process at a time
makes room and writes, and lets others come to it before long; reading waits for nobody. Nothing here raises: what
cannot be read is computed, what cannot be written is not kept, and either is told once.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from penstock.prefix_cache.block_file import (
    DamagedBlockError,
    drop_pages,
    file_bytes,
    is_block,
    read_block,
    write_block,
)
from penstock.system.files import lock, lock_holder, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from penstock.compute.kernels import U8

SUBFOLDER = "prefixes-1"
"""Of the folder that the user names, which may have other things in it; with the version of its files."""
LOCK_SECONDS, POLL_SECONDS = 2.0, 0.01
"""How long to wait for another process that writes, and how often to look."""
IMPATIENT_SECONDS = 60.0
"""So long after it was waited for in vain it is only looked whether it is still at it: a prompt has many passes."""
RUN_BYTES = 64 << 20
"""Written at a time before others may: most disks do it within LOCK_SECONDS, and it takes longer than making room."""
SLACK_NS = 60 * 10**9
"""By so much a block may come from the future: others use it meanwhile, and clocks of machines differ."""
STEP_NS = 1000
"""By so much a block counts as older than the one before it: of a prompt the end goes first, which needs the begin."""
_BLOCK = re.compile(r"[0-9a-f]{64}\.kv")
_UNFINISHED = re.compile(r"[0-9a-f]{64}\.[0-9]+\.new")

log = logging.getLogger(__name__)


class _Kept(NamedTuple):
    used_ns: int
    nbytes: int
    path: str


class BlockFolder:
    """Blocks of `block_bytes` bytes each, by their keys; those of other models may be beside them."""

    def __init__(self, folder: Path, most_bytes: int, block_bytes: int) -> None:
        self.path = folder.expanduser() / SUBFOLDER
        self.most_bytes = most_bytes
        self.block_bytes = block_bytes
        self._told: set[str] = set()
        self._usable = False
        self._impatient_until = 0.0
        with self._telling("cannot be used"):
            self._prepare()
            with self._locked():
                self._make_room(0, set())  # the limit may have been another one

    def has(self, key: bytes) -> bool:
        """Whether there is a block of this key, sound or not."""
        return self._usable and is_block(self._path(key), self.block_bytes)

    def read(self, key: bytes, block: U8) -> bool:
        """Read a block into `block`, uint8 [block_bytes]. False where there is none, or another one than was written,
        which is dropped."""
        path = self._path(key)
        try:
            read_block(path, key, block)
        except FileNotFoundError:  # another process dropped it
            return False
        except (DamagedBlockError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EIO:  # it may be a sound one
                self._tell("unread", f"{path} cannot be read ({_reason(error)}); it is computed again.")
                return False
            self._tell("damaged", f"{path} is damaged; it is dropped, and computed again.")
            with suppress(OSError):
                path.unlink()
            return False
        return True

    def keep(self, keys: Sequence[bytes], block: Callable[[int], Sequence[U8]]) -> None:
        """Have the blocks of a prompt in the folder, or as many of the first ones as the limit allows; they count as
        used now.

        `keys`: from the very first block on, without which the others are of no use. `block(i)`: the parts of the block
        of keys[i], called for those that are missing.
        """
        size = file_bytes(self.block_bytes)
        keys, run = keys[: self.most_bytes // size], max(1, RUN_BYTES // size)
        with self._telling("cannot be written"):
            self._prepare()
            self.touch(keys)
            missing = [number for number, key in enumerate(keys) if not self.has(key)]
            for begin in range(0, len(missing), run):
                if begin:
                    time.sleep(2 * POLL_SECONDS)  # or those who wait would hardly ever look just then
                numbers = missing[begin : begin + run]
                with self._locked():
                    if not all(map(self.has, keys[: numbers[0]])):  # another process needed the room
                        break
                    self._write(keys, numbers, block)
                self.touch(keys)

    def touch(self, keys: Sequence[bytes]) -> None:
        """These, of a prompt's first blocks, were of use: they are dropped last."""
        now = time.time_ns()
        for number, key in enumerate(keys):
            used = now - number * STEP_NS
            with suppress(OSError):
                if self.has(key):
                    os.utime(self._path(key), ns=(used, used))

    def _write(self, keys: Sequence[bytes], numbers: Sequence[int], block: Callable[[int], Sequence[U8]]) -> None:
        """Blocks of a prompt that fits, those that nobody else has written meanwhile. Raises OSError."""
        missing = [number for number in numbers if not self.has(keys[number])]
        self._make_room(len(missing) * file_bytes(self.block_bytes), {self._path(key).name for key in keys})
        for number in missing:
            path = self._path(keys[number])
            new = path.with_suffix(f".{os.getpid()}.new")
            write_block(new, keys[number], block(number), self.block_bytes)
            try:
                _give_name(new, path)
            except BaseException:
                new.unlink()
                raise
        for number in missing:
            drop_pages(self._path(keys[number]))

    def _make_room(self, wanted: int, keep: set[str]) -> None:
        """Have room for so many bytes beside the blocks named in `keep`; others go, the least recently used first.
        Raises OSError."""
        kept = sorted(self._scan())
        total = sum(one.nbytes for one in kept)
        for one in kept:
            if total + wanted <= self.most_bytes:
                break
            ours = os.path.basename(one.path) in keep and one.nbytes == file_bytes(self.block_bytes)  # noqa: PTH119
            if not ours:
                with suppress(FileNotFoundError):
                    os.unlink(one.path)  # noqa: PTH108
                total -= one.nbytes

    def _scan(self) -> Iterator[_Kept]:
        """All blocks, what cannot be one of ours as if it were the oldest; what writers that died left behind goes."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if _UNFINISHED.fullmatch(entry.name):
                        os.unlink(entry.path)  # noqa: PTH108
                    elif _BLOCK.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        told = entry.stat(follow_symlinks=False)
                        ours = told.st_size <= self.most_bytes and told.st_mtime_ns <= time.time_ns() + SLACK_NS
                        yield _Kept(told.st_mtime_ns if ours else 0, told.st_size, entry.path)

    def _prepare(self) -> None:
        """Have a folder that is this user's alone. Raises OSError."""
        self._usable = False
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        told = self.path.lstat()
        if not stat.S_ISDIR(told.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if hasattr(os, "geteuid") and told.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it belongs to another user")
        if os.name == "posix" and stat.S_IMODE(told.st_mode) & 0o077:
            self.path.chmod(0o700)
        self._usable = True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from writing. Raises OSError, TimeoutError where another one is at it for long."""
        descriptor = lock_holder(self.path)
        try:
            begin = time.monotonic()
            until = begin if begin < self._impatient_until else begin + LOCK_SECONDS
            while not lock(descriptor):
                if time.monotonic() >= until:
                    self._impatient_until = until + IMPATIENT_SECONDS
                    raise TimeoutError(errno.ETIMEDOUT, "other processes are writing there")
                time.sleep(POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def _path(self, key: bytes) -> Path:
        return self.path / f"{key.hex()}.kv"

    @contextmanager
    def _telling(self, problem: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._tell(
                "failing", f"The prefix cache in {self.path} {problem}: {_reason(error)}. Answers go on without it."
            )

    def _tell(self, kind: str, text: str) -> None:
        """Once a kind: a full disk stays full for every prompt."""
        if kind not in self._told:
            self._told.add(kind)
            log.warning("%s", text)


def _give_name(new: Path, path: Path) -> None:
    """Raises OSError where a directory with something in it is there."""
    try:
        replace(new, path)
    except IsADirectoryError:
        path.rmdir()
        replace(new, path)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
