"""Layers of the true size of an 8B, for the demo: made, packed, and deleted again when they have been timed."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penstock.architectures.registry import parse_config
from penstock.checkpoints.store import store_root
from penstock.disk.new_files import own_directory
from penstock.errors import PenstockError
from penstock.packing.pack import pack
from penstock.synth.shapes import shape_config
from penstock.synth.synth import plan_shards, synthesize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    Progress = Callable[[str, int, int], None]
    """Told what is being done, and how many bytes of how many are."""

SHAPE = "llama-3.1-8b"
LAYERS = 2
ROOM_BYTES = 3_000_000_000
"""Free disk that the layers are made in: their size, raw and packed, and as much again to spare."""
MAKE_SECONDS, PACK_SECONDS = 20.0, 20.0
VOCABULARY = 256
"""Entries, so that embedding and head come to next to nothing."""


@dataclass(frozen=True, slots=True)
class Layers:
    """The same layers twice: a checkpoint with a file for each, and one that is packed."""

    raw: Path
    packed: Path


class TooSlowError(PenstockError):
    """A disk on which the layers cannot be made within the demo's time."""


def find_room(nbytes: int = ROOM_BYTES) -> Path:
    """A directory on the disk that models would be kept on. Raises PenstockError where it has no room for them."""
    root = store_root()
    folder = next(place for place in (root, *root.parents) if place.is_dir())
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise PenstockError(
            f"{folder} has {free / 1e9:.1f} GB of disk free, and two layers need {nbytes / 1e9:.1f} GB.",
            "Free some space, or let PENSTOCK_HOME name a directory on another disk.",
        )
    return folder


@contextmanager
def made_layers(
    folder: Path, config: Mapping[str, Any], on_progress: Progress = lambda doing, done, total: None
) -> Iterator[Layers]:
    """Checkpoints of `config`'s layers in a directory of their own in `folder`, gone in the end.

    Fewer layers on a disk that cannot take all of them in MAKE_SECONDS and PACK_SECONDS. Raises TooSlowError where not
    even one, and PenstockError where the disk fails.
    """
    problem, remedy = f"{folder} cannot be written", "Let PENSTOCK_HOME name a directory that you may write to."
    with _termination_as_interrupt(), own_directory(".penstock-demo-", folder, problem, remedy) as own:
        for layers in range(config["num_hidden_layers"], 0, -1):
            made = Layers(own / f"{layers}", own / f"{layers}-packed")
            try:
                make(made.raw, {**config, "num_hidden_layers": layers}, on_progress)
                pack_layers(made, on_progress)
                break
            except TooSlowError:
                if layers == 1:
                    raise
                shutil.rmtree(made.raw, ignore_errors=True)
                shutil.rmtree(made.packed, ignore_errors=True)
        yield made


def layers_config() -> dict[str, Any]:
    """The config.json of a model with LAYERS layers of the 8B and a tiny vocabulary."""
    return {**shape_config(SHAPE, LAYERS), "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}


def make(out: Path, config: Mapping[str, Any], on_progress: Progress) -> None:
    """Write a checkpoint of random weights, a file a layer. Raises TooSlowError after MAKE_SECONDS."""
    told = _within(MAKE_SECONDS, "making layers", on_progress)
    synthesize(config, out, tokenizer=False, shard_bytes=_layer_file_bytes(config), on_progress=told)


def pack_layers(layers: Layers, on_progress: Progress) -> None:
    """Pack them. Raises TooSlowError after PACK_SECONDS."""
    pack(layers.raw, layers.packed, on_progress=_within(PACK_SECONDS, "packing them", on_progress))


def _within(seconds: float, doing: str, on_progress: Progress) -> Callable[[int, int], None]:
    """A callback for progress that raises TooSlowError once it is clear that the work takes longer than `seconds`."""
    begin = time.perf_counter()

    def check(done: int, total: int) -> None:
        if done > total // 8 and (time.perf_counter() - begin) * total / done > seconds:
            raise TooSlowError(
                f"{doing.capitalize()} would take more than {seconds:.0f} s on this disk.",
                "Let PENSTOCK_HOME name a directory on a faster one.",
            )
        on_progress(doing, done, total)

    return check


def _layer_file_bytes(config: Mapping[str, Any]) -> int:
    """A size that makes shards of a layer each; the embedding goes with the first, norm and head with the last."""
    [whole] = plan_shards(parse_config({**config, "num_hidden_layers": 1}, "the layers' config"), 1 << 62)
    return whole.data_bytes


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Turn signals that end a process (SIGTERM, SIGHUP) into KeyboardInterrupt, so that the files are deleted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = [signal.signal(number, signal.default_int_handler) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
