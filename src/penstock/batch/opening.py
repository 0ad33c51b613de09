"""Where a batch stands when the command is given: not begun, interrupted, or complete; and whether it may go on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import xxhash

from penstock.adapters.named import open_adapters
from penstock.batch.disk_errors import reading
from penstock.batch.lines import id_of_line
from penstock.batch.records import Names, read_record
from penstock.batch.results import ordered_path, state_path
from penstock.batch.state import Counts
from penstock.checkpoints.checkpoint import generation_defaults, open_checkpoint
from penstock.checkpoints.store import find_model
from penstock.disk.files import read_file
from penstock.errors import UsageError
from penstock.gguf.model import gguf_files
from penstock.gguf.reader import read_gguf
from penstock.weights.identity import model_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from penstock.batch.requests import Line, RequestFile
    from penstock.batch.state import State

TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class Job:
    """All that the results depend on."""

    input_digest: str
    model_digest: str
    kv_dtype: str
    context: int | None
    max_tokens: int

    @property
    def names(self) -> Names:
        return Names(xxhash.xxh3_64_hexdigest(repr(asdict(self)).encode()))


@dataclass(frozen=True, slots=True)
class Labels:
    """What is told of the first call of the command in every result, whatever later ones are."""

    created: int
    """Seconds since 1970."""
    model: str


def describe(
    requests: RequestFile,
    model: str,
    kv_dtype: str,
    context: int | None,
    max_tokens: int,
    adapters: Sequence[str] = (),
) -> tuple[Job, int]:
    """The batch that is asked for, and when its requests were last changed, in seconds since 1970.

    Raises CheckpointError, ReadError and PenstockError.
    """
    contents = requests.contents()
    digest = model_digest(find_model(model), adapters)
    return Job(contents.digest, digest, kv_dtype, context, max_tokens), contents.modified


def model_digest(path: Path, adapters: Sequence[str]) -> str:
    """Of the weights, those of adapters by their names, and of what makes tokens of a text and says how to draw
    them. Raises CheckpointError, ReadError and UsageError."""
    checkpoint, digest = open_checkpoint(path), xxhash.xxh3_128()
    config = checkpoint.config
    said = [
        model_identity(config, checkpoint.tensors),
        asdict(generation_defaults(path)),
        config.max_position_embeddings,
    ]
    if adapters:
        said.append({name: one.digest for name, one in open_adapters(adapters, checkpoint.architecture).items()})
    digest.update(json.dumps(said, sort_keys=True).encode())
    if (files := gguf_files(path)) is not None:
        metadata = read_gguf(files[0], arrays=True).metadata
        text_side = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
        digest.update(json.dumps(text_side, sort_keys=True).encode())
    for name in TEXT_FILES:
        if (path / name).is_file():
            digest.update(name.encode() + xxhash.xxh3_128_digest(read_file(path / name)))
    return digest.hexdigest()


def check_paths(source: Path, out: Path) -> None:
    """Raise UsageError where the results have no place."""
    if out.exists() and not out.is_file():
        raise UsageError(f"{out} is not a regular file.", "Give OUT the name of a new file.")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is no directory.", "Create it first, or write OUT elsewhere.")
    if source.resolve() in {path.resolve() for path in (out, state_path(out), ordered_path(out))}:
        raise UsageError(f"{out} would overwrite the requests.", "Give OUT another name.")


def begin_or_resume(
    state: State,
    job: Job,
    labels: Labels,
    requests: RequestFile,
    tell: Callable[[int, int], None],
    *,
    anew: bool = False,
) -> Labels:
    """Have the state hold this batch: as it is there already, or from now on; its labels.

    Raises UsageError where it holds another one that has got somewhere, unless `anew`, and where nothing is asked.
    """
    if state.job is not None:
        differing = _differences(state.job, job)
        if not differing:
            return Labels(state.job["created"], state.job["model"])
        if state.has_progress and not anew:
            raise _other_batch(state, *differing[0])
    state.begin(asdict(job) | asdict(labels) | {"input": str(requests.path)}, _with_ids(requests, tell))
    if not state.counts().total:
        raise UsageError(f"{requests.path} has no requests.", "Give a file with one JSON object a line.")
    return labels


def counts_if_complete(out: Path, requests: RequestFile, names: Names) -> Counts:
    """Those of `out`, whose results are just those of this batch. Raises UsageError where it is anything else."""
    total = failed = tokens = 0
    with reading(out), out.open("rb") as file:
        for line, _ in requests.scan():
            record = read_record(file.readline())
            if record is None or record.id != names.record(line):
                raise _not_ours(out)
            total, failed, tokens = total + 1, failed + record.failed, tokens + record.tokens
        if file.read(1):
            raise _not_ours(out)
    return Counts(total, total, failed, tokens)


def _with_ids(requests: RequestFile, tell: Callable[[int, int], None]) -> Iterator[tuple[Line, str | None]]:
    for line, data in requests.scan(tell):
        yield line, None if data is None else id_of_line(data, line.number)


def _differences(held: dict[str, Any], job: Job) -> list[tuple[str, Any, Any]]:
    return [(name, held.get(name), value) for name, value in asdict(job).items() if held.get(name) != value]


def _not_ours(out: Path) -> UsageError:
    return UsageError(
        f"{out} is there already, and does not hold the results of this batch.",
        "Give OUT another name, or let --overwrite replace it.",
    )


def _other_batch(state: State, name: str, held: Any, asked: Any) -> UsageError:
    source, model = (state.job or {}).get("input"), (state.job or {}).get("model")
    option = f"--{name.replace('_', '-')}"
    problem = {
        "input_digest": f"The requests are not those that the interrupted batch began with ({source}).",
        "model_digest": f"The interrupted batch was begun with another model, or other adapters ({model}).",
    }.get(name, f"The interrupted batch was begun with {_with(option, held)}, not {_with(option, asked)}.")
    return UsageError(
        problem, "Go on with what it was begun with, write to another OUT, or let --overwrite begin anew."
    )


def _with(option: str, value: Any) -> str:
    return f"no {option}" if value is None else f"{option} {value}"
