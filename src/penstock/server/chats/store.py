"""Conversations in a folder: one JSON file each, replaced as a whole, and checked whenever it is read.

Several servers may use one folder. A lock file is held while a conversation is changed, and a change names the version
that it is of, so nobody overwrites what they have not seen.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from penstock.disk.new_files import give_name
from penstock.disk.system_files import system
from penstock.errors import FormatError
from penstock.openai_api.errors import RequestError
from penstock.server.chats.conversation import Chat
from penstock.strict_json import open_regular
from penstock.system.files import lock, open_movable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MOST_CHATS = 2000
MOST_BYTES = 2 << 20
"""Of one file. The longest answer takes less than half of that, so there is room for it where half is free."""
UNDO_SECONDS = 600
"""What is deleted can be had back for so long."""
ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Entry:
    """What a list of conversations shows of one."""

    id: str
    title: str
    updated: float
    """Seconds since 1970."""
    version: int
    error: str | None = None
    """Why it cannot be read."""


class ChatStore:
    """The conversations in a folder, which is made when the first one is. Any thread may use it, one at a time.

    Raises RequestError: 404 for those that are not there, 412 for versions that are past, 500 where the disk or a file
    is to blame.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[tuple[int, int], Entry]] = {}
        """Entries by name, with the time and size of the file that they are from."""

    def make(self) -> None:
        """Make the folder, for this user alone."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._failed(error) from None

    def list(self) -> list[Entry]:
        """All of them, those changed last first. What was deleted a while ago is gone for good by then."""
        self.forget_removed()
        found: dict[str, tuple[tuple[int, int], Entry]] = {}
        for path in self._files(".json"):
            with suppress(FileNotFoundError):  # deleted just now
                status = path.stat()
                stamp = (status.st_mtime_ns, status.st_size)
                known = self._known.get(path.stem)
                fresh = known is not None and known[0] == stamp
                found[path.stem] = known if known and fresh else (stamp, self._entry(path.stem, status.st_mtime))
        self._known = found
        return sorted((entry for _, entry in found.values()), key=lambda entry: -entry.updated)

    def load(self, id: str) -> Chat:
        """One of them, as it is in its file."""
        path = self._path(id)
        try:
            with open_regular(path) as file:
                data = file.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                raise self._broken(path, f"it is longer than {MOST_BYTES} bytes")
            chat = Chat.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise self._broken(path, f"{place}: {first['msg']}" if place else first["msg"]) from None
        except FormatError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise absent(id) from None
            raise self._broken(path, error.problem) from None
        if chat.id != id:
            raise self._broken(path, f"its id is {chat.id}")
        return chat

    def create(self, chat: Chat) -> Chat:
        """Keep a new one."""
        self.make()
        with self._locked():
            if sum(1 for _ in self._files(".json")) >= MOST_CHATS:
                raise RequestError(f"There are {MOST_CHATS} conversations already.", "Delete some.", status=409)
            self._write(chat)
        return chat

    def change(self, id: str, version: int | None, edit: Callable[[Chat], None], *, count: bool = True) -> Chat:
        """Change one by a function, and return it. `version`: of which this is a change; None for any.

        `count`: whether this makes a new version.
        """
        if not self.folder.is_dir():
            raise absent(id)
        with self._locked():
            chat = self.load(id)
            check_version(chat, version)
            edit(chat)
            if count:
                chat.version += 1
                chat.updated = time.time()
            self._write(chat)
        return chat

    def remove(self, id: str) -> None:
        """Delete one; `restore` gets it back for a while."""
        path = self._path(id)
        try:
            os.utime(path)  # when it was deleted
            path.replace(path.with_suffix(".deleted"))
        except FileNotFoundError:
            raise absent(id) from None
        except OSError as error:
            raise self._failed(error) from None

    def restore(self, id: str) -> None:
        """Have a deleted one again."""
        path = self._path(id)
        try:
            path.with_suffix(".deleted").rename(path)
        except FileNotFoundError:
            raise absent(id) from None
        except OSError as error:
            raise self._failed(error) from None

    def forget_removed(self) -> None:
        """Remove for good what was deleted a while ago."""
        for path in self._files(".deleted"):
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - UNDO_SECONDS:
                    path.unlink()

    def _files(self, suffix: str) -> Iterator[Path]:
        try:
            for path in self.folder.iterdir():
                if path.suffix == suffix and ID.fullmatch(path.stem):
                    yield path
        except FileNotFoundError:  # nothing was ever kept
            return
        except OSError as error:
            raise self._failed(error) from None

    def _entry(self, id: str, changed: float) -> Entry:
        try:
            chat = self.load(id)
        except RequestError as error:
            if error.status == 404:
                raise FileNotFoundError from None
            return Entry(id, "Unreadable", changed, 0, error.problem)
        return Entry(id, chat.title, chat.updated, chat.version)

    def _path(self, id: str) -> Path:
        if not ID.fullmatch(id):
            raise absent(id)
        return self.folder / f"{id}.json"

    def _write(self, chat: Chat) -> None:
        data = chat.model_dump_json().encode()
        if len(data) > MOST_BYTES:
            raise RequestError(
                f"The conversation would take more than {MOST_BYTES} bytes.", "Begin a new one.", status=413
            )
        path = self._path(chat.id)
        unfinished = path.with_suffix(".new")
        try:
            descriptor = open_movable(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                system.sync(file.fileno())
            give_name(unfinished, path)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            raise self._failed(error) from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            descriptor = open_movable(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._failed(error) from None
        try:
            lock(descriptor, wait=True)
            yield
        finally:
            os.close(descriptor)

    def _failed(self, error: OSError) -> RequestError:
        why = error.strerror or str(error)
        remedy = "Make room or set its rights, or serve with another --chats."
        return RequestError(f"The folder of conversations, {self.folder}: {why}.", remedy, status=500)

    def _broken(self, path: Path, why: str) -> RequestError:
        remedy = "Delete the conversation, or move the file elsewhere."
        return RequestError(f"{path.name} is no conversation: {why}.", remedy, status=500)


def check_room(chat: Chat) -> None:
    """Raise RequestError, 413, where a conversation has no room for another answer."""
    if len(chat.model_dump_json().encode()) > MOST_BYTES // 2:
        raise RequestError("The conversation is full.", "Begin a new one.", status=413)


def check_version(chat: Chat, version: int | None) -> None:
    """Raise RequestError, 412, where a conversation is no longer of the version that somebody saw."""
    if version is not None and version != chat.version:
        raise RequestError("The conversation was changed elsewhere.", "Load it again.", status=412, code="changed")


def absent(id: str) -> RequestError:
    return RequestError(f"There is no conversation {id[:40]!r}.", status=404)
