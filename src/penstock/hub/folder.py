"""A repository on the Hub as the directory of a checkpoint: its names, its small files, its weights' headers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from penstock.disk.new_files import new_file
from penstock.errors import CheckpointError, FormatError
from penstock.hub.files import HubSource, Patience
from penstock.hub.repository import HubFile, Repository
from penstock.safetensors_header import Header, parse_header
from penstock.strict_json import MAX_JSON_BYTES, parse_json_object

_BLOCK = 1 << 20


class HubFolder:
    """The files of a repository; a `Folder`, to find the weights in. Reads nothing twice that it has to keep."""

    complete = "Give the repository of the original model; this one is incomplete."

    def __init__(
        self,
        repository: Repository,
        patience: Patience | None = None,
        on_trouble: Callable[[str], None] | None = None,
    ) -> None:
        """`on_trouble`: as of HubSource."""
        self.path = Path(repository.repo)
        self.repository = repository
        self._patience = patience
        self._on_trouble = on_trouble
        self._contents: dict[str, bytes] = {}

    def names(self, folder: str = "") -> list[str]:
        prefix = f"{folder}/" if folder else ""
        within = [name.removeprefix(prefix) for name in self.repository.files if name.startswith(prefix)]
        return sorted({name.partition("/")[0] for name in within})

    def has(self, name: str) -> bool:
        return name in self.repository.files

    def read_json(self, name: str) -> dict[str, Any]:
        """Raises CheckpointError too, as `HubSource.ranges` does."""
        return parse_json_object(self._content(name), str(self.path / name))

    def source(self, name: str) -> HubSource:
        """Where the file's bytes come from."""
        return HubSource(self.repository, self.repository.files[name], self._patience, self._on_trouble)

    def header(self, name: str) -> tuple[bytes, Header]:
        """The first bytes of a file of weights, length, header and padding, and what they say.

        Raises FormatError for anything but the begin of a sound safetensors file of just this size.
        """
        source = self.source(name)
        content = source.read(0, min(8, source.size))
        length = int.from_bytes(content[:8], "little")
        if length <= min(MAX_JSON_BYTES, source.size - 8):
            content += source.read(8, length)
        return content, parse_header(content, self.path / name, source.size)

    def save(self, name: str, path: Path, unfinished: Path) -> None:
        """Write the file to `path`, by way of `unfinished`. Raises CheckpointError where it is not what is listed."""
        file = self.repository.files[name]
        hasher = file.hasher()
        ranges = [(begin, min(_BLOCK, file.size - begin)) for begin in range(0, file.size, _BLOCK)]
        with closing(self.source(name).ranges(ranges)) as blocks, new_file(path, unfinished) as out:
            for block in blocks:
                hasher.update(block.data)
                out.write(block.data)
            self.check(file, hasher.hexdigest())

    def check(self, file: HubFile, checksum: str) -> None:
        """Raises CheckpointError where the bytes of `file` have another checksum than is listed."""
        if checksum != file.checksum:
            kind = "SHA-256" if file.sha256 else "Git hash"
            problem = (
                f"{file.name} of {self.repository.repo} came with {kind} {checksum}, but the Hub lists {file.checksum}"
            )
            raise CheckpointError(problem, "It was damaged on the way, and is not kept. Try again.")

    def _content(self, name: str) -> bytes:
        """Of a JSON file."""
        if name not in self._contents:
            file = self.repository.files[name]
            if file.size > MAX_JSON_BYTES:
                problem = f"{self.path / name} is larger than {MAX_JSON_BYTES:,} bytes, the limit for a JSON file"
                raise FormatError(problem, self.complete)
            content = self.source(name).read(0, file.size)
            hasher = file.hasher()
            hasher.update(content)
            self.check(file, hasher.hexdigest())
            self._contents[name] = content
        return self._contents[name]
