"""Packed files whose checksums all hold, and which break the format somewhere: what a hostile writer might make."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from helpers.free_models import FreeModel, logits, opened
from helpers.packed_files import Parts
from penstock import LLM, SamplingParams
from penstock.architectures.base import Architecture
from penstock.compute.kernels import Kernels
from penstock.errors import PenstockError
from penstock.packed_format.reader import HEADER, is_packed_file
from penstock.packing.unpack import unpack
from penstock.packing.verify import verify
from penstock.safetensors_header import read_header
from penstock.speculate.draft_model import NibbleWeights
from penstock.weights.identity import model_identity

VALUES: tuple[Any, ...] = (
    *(0, 1, -1, 2, 63, 64, 255, 256, 65536, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, 10**400),
    *(1.0, 0.5, 1e308, float("nan"), float("inf"), True, False, None, "", "1", "planes", "raw", "U8", "BF16", "F32"),
    *("\ud800", "x" * 1000, [], [1], [[]], {}, {"a": 1}),
)

Rng = np.random.Generator


def _pick(rng: Rng, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _change_json(rng: Rng, value: Any) -> None:
    """Change, drop or add something within an object or a list of JSON."""
    keys = [*value] if isinstance(value, dict) else [*range(len(value))]
    if not keys:
        return
    key = _pick(rng, keys)
    if isinstance(value[key], (dict, list)) and value[key] and rng.random() < 0.85:
        _change_json(rng, value[key])
        return
    match int(rng.integers(6)):
        case 0:
            del value[key]
        case 1 if isinstance(value, dict):
            value["more"] = _pick(rng, VALUES)
        case 2 if type(value[key]) is int:
            value[key] += int(_pick(rng, (-64, -1, 1, 64, 4096)))
        case 3:
            other = _pick(rng, keys)
            value[key], value[other] = value[other], value[key]
        case _:
            value[key] = _pick(rng, VALUES)


def _index(rng: Rng, parts: Parts) -> None:
    _change_json(rng, parts.index)


def _rows_per_chunk(rng: Rng, parts: Parts) -> None:
    """Other chunks than there are, in the number that fits."""
    entry = _pick(rng, parts.index["tensors"])
    old = entry["chunks"]
    entry["rows_per_chunk"] = max(1, int(entry["rows_per_chunk"] * rng.choice([0.3, 0.5, 0.9, 1.1, 2])))
    rows = _rows(parts, entry["name"])
    if rows:
        entry["chunks"] = -(-rows // entry["rows_per_chunk"])
    first = sum(one["chunks"] for one in parts.index["tensors"][: parts.index["tensors"].index(entry)])
    own = np.resize(parts.records[first : first + old], entry["chunks"])
    parts.records = np.concatenate([parts.records[:first], own, parts.records[first + old :]])


def _rows(parts: Parts, name: str) -> int:
    content = parts.streams[HEADER]
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    shape = header[name]["shape"]
    return int(shape[0]) if len(shape) == 2 else 1


def _records(rng: Rng, parts: Parts) -> None:
    if not len(parts.records):
        return
    field = _pick(rng, ("fine_bytes", "fine_hash", "coarse_hash"))
    at = int(rng.integers(len(parts.records)))
    match int(rng.integers(5)):
        case 0:
            parts.records = np.delete(parts.records, at)
        case 1:
            parts.records = np.insert(parts.records, at, parts.records[at])
        case 2:
            parts.records = rng.permutation(parts.records)
        case 3:  # the sum stays as it is
            moved, other = int(_pick(rng, (64, 4096))), int(rng.integers(len(parts.records)))
            sizes = parts.records["fine_bytes"].astype(np.int64)
            sizes[at] += moved
            sizes[other] -= moved
            parts.records["fine_bytes"] = sizes % 2**32
        case _:
            parts.records[field][at] = int(_pick(rng, (0, 1, 63, 64, 4096, 2**31, 2**32 - 64, 2**32 - 1)))


def _streams(rng: Rng, parts: Parts) -> None:
    names = [*parts.streams]
    one, other = _pick(rng, names), _pick(rng, names)
    data, nbytes = parts.streams[one], int(_pick(rng, (1, 64, 4096)))
    match int(rng.integers(5)):
        case 0:
            parts.streams[one] = data + bytes(nbytes)
        case 1:
            parts.streams[one] = data[: max(0, len(data) - nbytes)]
        case 2 if one != HEADER:
            del parts.streams[one]
        case 3:
            parts.streams[one], parts.streams[other] = parts.streams[other], data
        case _ if one != HEADER:
            parts.streams["more.raw"] = data


def _original(rng: Rng, parts: Parts) -> None:
    """The original header says something else."""
    content = parts.streams[HEADER]
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    _change_json(rng, header)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    whole = len(text).to_bytes(8, "little") + text
    parts.streams[HEADER] = whole + bytes(-len(whole) % 64)
    parts.index["header_bytes"] = len(whole)


def _metadata(rng: Rng, parts: Parts) -> None:
    parts.metadata[_pick(rng, ("format", "version", "more"))] = _pick(rng, ("", "1", "2", "penstock", "pt"))


def _chunk(rng: Rng, parts: Parts) -> None:
    """Other bytes in a chunk, under a hash of its own."""
    entries = [entry for entry in parts.index["tensors"] if entry["chunks"]]
    entry = _pick(rng, entries)
    first = sum(one["chunks"] for one in parts.index["tensors"][: parts.index["tensors"].index(entry)])
    chunk = int(rng.integers(entry["chunks"]))
    sizes = parts.records["fine_bytes"][first : first + entry["chunks"]].astype(np.int64)
    coarse, name = rng.random() < 0.3 and entry["codec"] == "planes", entry["name"]
    if coarse:
        stream = np.frombuffer(parts.streams[f"{name}.coarse"], np.uint8).copy()
        rows, cols = _shape(parts, name)
        begin = chunk * _coarse_bytes(entry["rows_per_chunk"], cols)
        end = len(stream) if chunk == entry["chunks"] - 1 else begin + _coarse_bytes(entry["rows_per_chunk"], cols)
    else:
        suffix = "fine" if entry["codec"] == "planes" else "raw"
        stream = np.frombuffer(parts.streams[f"{name}.{suffix}"], np.uint8).copy()
        begin, end = int(sizes[:chunk].sum()), int(sizes[: chunk + 1].sum())
        rows = min(entry["rows_per_chunk"], _rows(parts, name))
    _spoil(rng, stream[begin:end], 4 * (rows + 1))
    parts.streams[f"{name}.coarse" if coarse else f"{name}.{suffix}"] = stream.tobytes()
    parts.records["coarse_hash" if coarse else "fine_hash"][first + chunk] = xxhash.xxh3_64_intdigest(
        stream[begin:end].tobytes()
    )


def _spoil(rng: Rng, data: np.ndarray, head: int) -> None:
    """Some bytes, a word of the table at the beginning, or all of it."""
    match int(rng.integers(6)):
        case 0:
            data[:] = rng.integers(0, 256, len(data))
        case 1:
            data[:] = _pick(rng, (0, 255))
        case 2:
            words = data[: min(head, len(data)) // 4 * 4].view("<u4")
            at, by = int(rng.integers(len(words))), int(_pick(rng, (1, -1, 2, 64, 2**31, 2**30, 2**31 - 1)))
            words[at] = (int(words[at]) + by) % 2**32
        case 3:
            at = int(rng.integers(len(data)))
            data[at:] = np.roll(data[at:], 1)
        case _:
            at = rng.integers(0, len(data), int(rng.integers(1, 20)))
            data[at] = rng.integers(0, 256, len(at))


def _shape(parts: Parts, name: str) -> tuple[int, int]:
    content = parts.streams[HEADER]
    shape = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])[name]["shape"]
    return int(shape[0]), int(shape[1])


def _coarse_bytes(rows: int, cols: int) -> int:
    return -(-(-(-rows // 8) * 8 + rows * -(-cols // 64) * 24) // 64) * 64


CHANGES: tuple[tuple[Callable[[Rng, Parts], None], float], ...] = (
    (_chunk, 0.45),
    (_index, 0.15),
    (_rows_per_chunk, 0.05),
    (_records, 0.1),
    (_streams, 0.1),
    (_original, 0.1),
    (_metadata, 0.05),
)


def spoil(model: FreeModel, folder: Path, seed: int) -> tuple[FreeModel, str]:
    """A copy of the model below `folder`, in which one packed file is not what the format asks for; and what was
    done."""
    rng = np.random.default_rng(seed)
    copy = replace(model, packed=folder / "spoilt")
    shutil.copytree(model.packed, copy.packed)
    path = _pick(rng, sorted(p for p in copy.packed.rglob("*.safetensors") if is_packed_file(read_header(p))))
    parts = Parts.of(path)
    names = [change.__name__ for change, _ in CHANGES]
    shares = [share for _, share in CHANGES]
    done = rng.choice(names, int(rng.integers(1, 3)), replace=False, p=shares).tolist()
    for change, _ in CHANGES:
        if change.__name__ in done:
            with suppress(IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
                change(rng, parts)  # after another change there may be nothing left to change
    path.unlink()
    parts.write(path)
    return copy, f"{path.name}: {', '.join(done)}"


def attack(model: FreeModel, kernels: Kernels, folder: Path) -> list[str]:
    """Do all that can be done with a model; what is refused is refused by an error of Penstock's. Returns their texts.

    What `verify` finds nothing wrong with can be used, and unpacked; but other weights need not give numbers.
    """
    errors: list[str] = []

    def attempt(action: Callable[[], Any]) -> bool:
        """Whether it works."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", UserWarning)
            try:
                action()
            except PenstockError as error:
                told = error
            else:
                return True
        assert told.problem
        assert told.remedy
        errors.append(told.problem)
        return "not finite numbers" in told.problem

    damage: list[str] = []
    attempt(lambda: damage.extend(verify(model.packed).damage))
    sound = not errors and not damage
    usable = [attempt(lambda action=action: action(model.packed, kernels)) for action in USES]
    assert all(usable) or not sound, errors
    if model.n_packed == model.n_files:
        assert attempt(lambda: unpack(model.packed, folder / "unpacked")) or not sound, errors
    return errors + damage


def _streamed(path: Path, kernels: Kernels) -> None:
    with opened(path, kernels) as (model, _):
        logits(model)


def _in_memory(path: Path, kernels: Kernels) -> None:
    with opened(path, kernels) as (model, weights):
        weights.limit_resident(2 * weights.indexed_bytes + weights.pass_bytes)
        logits(model)
        logits(model)


def _rows_and_names(path: Path, kernels: Kernels) -> None:
    with opened(path, kernels) as (model, weights):
        weights.rows("model.embed_tokens.weight", np.arange(model.config.vocab_size))
        model_identity(model.config, weights.tensors)


def _nibbles(path: Path, kernels: Kernels) -> None:
    with opened(path, kernels) as (model, weights):
        logits(model.over(NibbleWeights(weights, Architecture(model.config).pass_order, kernels)))


def _answers(path: Path, _: Kernels) -> None:
    with LLM.open(path, threads=1, context=64) as llm:
        llm.generate([[1, 2, 1]], SamplingParams(temperature=0, max_tokens=4))


USES = (_streamed, _in_memory, _rows_and_names, _nibbles, _answers)
