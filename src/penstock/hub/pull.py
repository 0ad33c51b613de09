"""Pulls a model from the Hugging Face Hub: its weights are packed as they arrive, so that no file of theirs is ever on
the disk as it was.

All files are of one commit, which the first call settles on; after an interruption the same call goes on with it. Each
packed file is decoded again from the disk, in the order of the original, and compared with the checksum that the Hub
lists, before it gets its name: that covers the way here, the packing and the disk. The result is what `pack` makes of
the same files.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.architectures.config import ModelConfig
from penstock.architectures.registry import parse_config
from penstock.checkpoints.checkpoint import Stored, assemble
from penstock.checkpoints.layout import INDEX, UNFINISHED, Layout, check_folder, find_layout
from penstock.checkpoints.share_file import SHARE, share_bytes
from penstock.checkpoints.store import store_root
from penstock.compute.kernels import default_threads
from penstock.errors import CheckpointWarning, FormatError, UnsupportedError, UsageError
from penstock.hub.folder import HubFolder
from penstock.hub.pull_share import of_layers
from penstock.hub.pull_weights import WeightFile
from penstock.hub.repository import MAIN, Repository, check_repo_id, find_repository
from penstock.packed_format.reader import is_packed_file, read_packed
from penstock.packing.pack import packed_size, pass_ranks
from penstock.packing.pack_folder import Original, PackFolder, open_pack_folder
from penstock.packing.side_files import CONFIG, ORIGINAL_INDEX, is_side_file, packed_index
from penstock.safetensors_header import read_header
from penstock.strict_json import read_json_object
from penstock.system.machine import return_large_arrays

if TYPE_CHECKING:
    from penstock.hub.files import Patience
    from penstock.hub.repository import HubFile
    from penstock.safetensors_header import Header

_PULL = "pull.json"
_SPARE_BYTES = 16 << 20  # what the file system itself needs


class PullWatcher:
    """Told how a pull goes on, by any thread. This one does nothing."""

    def file(self, name: str, number: int, count: int) -> None:
        """A file of weights is next."""

    def progress(self, done: int, total: int) -> None:
        """So many bytes of all files of weights are here and packed."""

    def checking(self, name: str) -> None:
        """A file is being read again, to compare its checksum."""

    def notice(self, text: str) -> None:
        """Something the user should know."""

    def settled(self, commit: str) -> None:
        """All files are going to be of this commit."""


@dataclass(frozen=True, slots=True)
class PullResult:
    """What was pulled: where it is, of which commit; bytes of the weight files as they are on the Hub and here."""

    path: Path
    commit: str
    original_bytes: int
    packed_bytes: int
    downloaded_bytes: int
    """Of the weights, by this call; earlier ones may have got the others."""
    seconds: float


@dataclass(frozen=True, slots=True)
class _Begun:
    """What an unfinished directory is going to hold."""

    repo: str
    revision: str
    commit: str


def pull(
    repo: str,
    out: str | PathLike[str] | None = None,
    *,
    revision: str = MAIN,
    token: str | None = None,
    threads: int | None = None,
    layers: Collection[int] | None = None,
    patience: Patience | None = None,
    watcher: PullWatcher | None = None,
) -> PullResult:
    """Download the model `repo` ("owner/name") from the Hub and pack it into the directory `out`.

    `out`: None for Penstock's store, where `repo` is then the model's name. `revision`: a branch, a tag or a commit.
    `token`: rather than HF_TOKEN, or that of the user's login. `threads`: None for every CPU. `layers`: of the weights
    only the files that have something of these layers, for a machine that has a part in a pass; None for all files.
    Raises UsageError for what cannot be meant, CheckpointError where the model is none that Penstock runs, or the Hub
    refuses it or cannot be reached, PenstockError where the disk is too full or fails. The same call then goes on from
    there.
    """
    begin = time.perf_counter()
    check_repo_id(repo)
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot do anything", "Give at least 1, or leave the number out.")
    out, watcher = place_of(repo, out), watcher or PullWatcher()
    return_large_arrays()
    with open_pack_folder(out) as folder, ThreadPoolExecutor(threads or default_threads()) as pool:
        _check_begun(folder)
        repository = _find(folder, repo, revision, token, watcher)
        watcher.settled(repository.commit)
        model = _look(HubFolder(repository, patience, watcher.notice), pool, layers)
        _begin(folder, _Begun(repo, revision, repository.commit), model)
        downloaded = _fetch_weights(folder, model, pool, watcher)
        _fetch_side_files(folder, model)
        folder.finish()
    sizes = [(out / original.name).stat().st_size for original in model.originals]
    seconds = time.perf_counter() - begin
    return PullResult(out, repository.commit, model.original_bytes, sum(sizes), downloaded, seconds)


def finished(repo: str, out: str | PathLike[str] | None = None) -> bool:
    """Whether that was pulled already, as a whole or a share."""
    folder = place_of(repo, out)
    return (folder / CONFIG).exists() and not (folder / UNFINISHED).exists()


def place_of(repo: str, out: str | PathLike[str] | None = None) -> Path:
    """Where a model is pulled to."""
    return Path(out or store_root() / "models" / repo)


@dataclass(frozen=True)
class _Model:
    """What there is to fetch: files of weights with their first bytes and headers, and the rest."""

    hub: HubFolder
    config: ModelConfig
    layout: Layout
    originals: tuple[Original, ...]
    headers: Mapping[str, tuple[bytes, Header]]
    is_packed: bool
    """Whether the files of weights are packed ones, to be taken as they are."""
    layers: tuple[int, ...] | None
    """All of whose tensors are in these files; None for the whole model."""

    @property
    def original_bytes(self) -> int:
        return sum(original.size for original in self.originals)

    @property
    def side_files(self) -> list[HubFile]:
        """What goes along with the weights, config.json last."""
        files = [
            file
            for name, file in self.hub.repository.files.items()
            if is_side_file(name, file.size) and name not in (UNFINISHED, SHARE)
        ]
        return sorted(files, key=lambda file: (file.name == CONFIG, file.name))

    def size_here(self) -> int:
        """About what all of it takes on the disk, bytes."""
        weights = self.original_bytes if self.is_packed else sum(packed_size(head) for _, head in self.headers.values())
        return weights + sum(file.size for file in self.side_files)


def _check_begun(folder: PackFolder) -> None:
    """Raise UsageError where the directory is finished already; whatever else it may hold is looked at later."""
    if folder.originals is None and (folder.path / CONFIG).exists():
        problem = f"{folder.path} is there already, and finished"
        raise UsageError(problem, "Use it as it is, or delete it to pull the model again.")


def _find(folder: PackFolder, repo: str, revision: str, token: str | None, watcher: PullWatcher) -> Repository:
    """The repository as of the commit that was settled on: by an earlier call that was interrupted, or now."""
    begun = _remembered(folder)
    if begun is None:
        return find_repository(repo, revision, token)
    if begun.repo != repo or revision not in (begun.revision, begun.commit):
        asked, was = f"{repo}, revision {revision}", f"{begun.repo}, revision {begun.revision}"
        problem = f"{folder.path} is an unfinished pull of {was} (commit {begun.commit}), not of {asked}"
        raise UsageError(problem, f"Finish that one first, or delete {folder.path}, or give another directory.")
    now = find_repository(repo, revision, token)
    if now.commit == begun.commit:
        return now
    watcher.notice(f"{revision} of {repo} has moved on to {now.commit}; going on with commit {begun.commit}, as begun")
    return find_repository(repo, begun.commit, token)


def _remembered(folder: PackFolder) -> _Begun | None:
    path = folder.unfinished / _PULL
    if not path.exists():
        return None
    try:
        return _Begun(**read_json_object(path))
    except (FormatError, TypeError) as error:
        problem = f"{path} is damaged, so that it cannot be told what {folder.path} was begun with"
        raise UsageError(problem, f"Delete {folder.path} and begin again.") from error


def _look(hub: HubFolder, pool: ThreadPoolExecutor, layers: Collection[int] | None) -> _Model:
    """Everything about the model but its weights, checked: a model that Penstock does not run is refused here."""
    check_folder(hub)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)  # what a pass would pass over is packed all the same
        config = parse_config(hub.read_json(CONFIG), f"{hub.path / CONFIG}")
        layout = find_layout(hub, config)
        names = {path: path.relative_to(hub.path).as_posix() for path in layout.prefixes}
        headers = dict(zip(names.values(), pool.map(hub.header, names.values()), strict=True))
        packed = [is_packed_file(header) for _, header in headers.values()]
        if not any(packed):
            stored = {path: Stored(headers[name][1], headers[name][1].tensors) for path, name in names.items()}
            assemble(hub.path, config, layout, stored)
        elif not all(packed):
            problem = f"{hub.path} has packed files of weights beside others"
            raise UnsupportedError(problem, "Give the repository of the original model.")
    files = hub.repository.files
    originals = [
        Original(name, layout.prefixes[path], files[name].size, files[name].checksum) for path, name in names.items()
    ]
    held = None
    if layers is not None and layout.index:  # without one, nobody would know of a file that is missing
        all_layers = range(config.num_hidden_layers)
        originals, held = of_layers(
            originals, {name: header for name, (_, header) in headers.items()}, layers, all_layers
        )
    return _Model(hub, config, layout, tuple(originals), headers, all(packed), held)


def _begin(folder: PackFolder, begun: _Begun, model: _Model) -> None:
    folder.begin(model.originals)
    if not (folder.unfinished / _PULL).exists():
        with folder.new_file(_PULL, folder.unfinished) as file:
            file.write(json.dumps(asdict(begun)).encode())
    need = model.size_here() + _SPARE_BYTES - folder.bytes_written()
    folder.check_room(need, "Free some space, or choose another disk with --out.")


def _fetch_weights(folder: PackFolder, model: _Model, pool: ThreadPoolExecutor, watcher: PullWatcher) -> int:
    """How many bytes were downloaded."""
    ranks, done, downloaded = pass_ranks(model.config), 0, 0

    def on_bytes(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        watcher.progress(done, model.original_bytes)

    for number, original in enumerate(model.originals, 1):
        watcher.file(original.name, number, len(model.originals))
        job = WeightFile(folder, model.hub, original, pool, on_bytes, partial(watcher.checking, original.name))
        if model.is_packed:
            downloaded += job.fetch()
        else:
            downloaded += job.fetch_and_pack(model.headers[original.name][0], ranks)
    if model.is_packed:
        _check_packed(folder, model)
    return downloaded


def _check_packed(folder: PackFolder, model: _Model) -> None:
    """Check the tensors of packed files, which their headers alone do not tell."""
    files = {model.hub.path / original.name: folder.path / original.name for original in model.originals}
    stored = {path: Stored(read_header(here), read_packed(here).tensors) for path, here in files.items()}
    assemble(model.hub.path, model.config, model.layout.only(files), stored, model.layers)


def _fetch_side_files(folder: PackFolder, model: _Model) -> None:
    """What goes along with the weights, as `pack` writes it, config.json last."""
    names = [file.name for file in model.side_files]
    renamed = {} if model.is_packed or INDEX not in names else {INDEX: ORIGINAL_INDEX}
    for name in names:
        if name == CONFIG and renamed and model.layout.index:
            with folder.new_file(INDEX) as file:
                file.write(packed_index((o.name, read_packed(folder.path / o.name)) for o in model.originals))
        if name == CONFIG and model.layers is not None:
            with folder.new_file(SHARE) as file:
                file.write(share_bytes(model.layers))
        target = renamed.get(name, name)
        model.hub.save(name, folder.path / target, folder.partial(f"{target}.new"))
