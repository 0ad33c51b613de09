"""What running a model would take on this machine, without running it: what `penstock plan` tells.

A model that is here is opened, and its own files measure the disk. Of one that is not (a shape by name, or a repository
on the Hub, of which config.json is asked for) the sizes follow from its config; what its tokenizer takes is estimated,
and a file of random numbers measures the disk of Penstock's store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from penstock import machine
from penstock.checkpoint import expected_tensors
from penstock.config import ModelConfig, parse_config
from penstock.engine import MAX_ROWS
from penstock.errors import CheckpointError, MemoryCeilingError, UnsupportedError, UsageError
from penstock.forecast import Forecast, Rates, forecast_prompt, forecast_token, pass_weights
from penstock.hub import is_repo_id, repo_config
from penstock.kernels import Kernels
from penstock.kv_cache import BLOCK_SLOTS, KvShape
from penstock.llm import LLM
from penstock.machine import Footprint
from penstock.plan import LEAST_CHUNK_ROWS, Budget, Demand, Plan, check_context, parse_bytes
from penstock.probe import ComputeSpeed, DiskSpeed, measure_compute, measure_disk, probe_file, room_for_probe
from penstock.shapes import SHAPES, shape_config
from penstock.store import find_model, store_root
from penstock.strict_json import shown

PROBE_BYTES = 10**9
PROBE_SECONDS = 2.0
PROBE_FILE_BYTES = 512 * 10**6
CONTEXT = 2048
"""Positions that are planned for where nobody says how many."""
PROMPTS = (16, 512, 4096)
TOKENIZER_BYTES_PER_ENTRY = 410
"""Measured: tokenizers of 128,256 entries take 46 to 52 MB, once what loading them took has been given back."""
WEIGHT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of a weight, by the dtype that config.json names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """What is planned for; `memory`, `threads` and `kv_dtype` as for LLM.open."""

    memory: str | int | None = None
    context: int | None = None
    """Positions of the sequence; None is CONTEXT, or as many as there is room for."""
    prompts: Sequence[int] = PROMPTS
    """Lengths of prompts to forecast the first token for."""
    threads: int | None = None
    kv_dtype: str = "bf16"

    def __post_init__(self) -> None:
        if any(tokens < 1 for tokens in self.prompts):
            raise UsageError("A prompt has at least one token.", "Raise --prompt-tokens.")


@dataclass(frozen=True, slots=True)
class Outlook:
    """How memory is shared out for a pass of one row, what the machine can do, and how long a token takes."""

    model: str
    basis: str
    """What the sizes rest on."""
    plan: Plan
    tokenizer: int
    """Bytes of the tokenizer and the small tensors, part of the plan's `process`."""
    context: int
    """Positions that the plan has keys and values for."""
    most_context: int
    """The longest context that the ceiling has room for, or that the model was trained for."""
    disk: DiskSpeed
    disk_basis: str
    """What the disk was measured with."""
    compute: ComputeSpeed
    threads: int
    isa: str
    token: Forecast
    """A further token."""
    prompts: Mapping[int, Forecast | None]
    """The first token after prompts of so many tokens; None where the ceiling or the model has no room for them."""

    def as_object(self) -> dict[str, Any]:
        """For JSON; bytes and seconds."""
        return {
            "model": self.model,
            "basis": self.basis,
            "memory": asdict(self.plan) | {"tokenizer": self.tokenizer},
            "context": self.context,
            "most_context": self.most_context,
            "disk_bytes_per_second": self.disk.bytes_per_second,
            "probe_read_bytes": self.disk.read_bytes,
            "disk_basis": self.disk_basis,
            **asdict(self.compute),
            "threads": self.threads,
            "isa": self.isa,
            "seconds_per_token": self.token.seconds,
            "token": asdict(self.token),
            "first_token": {tokens: forecast and asdict(forecast) for tokens, forecast in self.prompts.items()},
        }


@dataclass(frozen=True, slots=True)
class _Subject:
    """A model as far as planning needs it."""

    name: str
    basis: str
    budget: Budget
    tokenizer: int
    kernels: Kernels


@dataclass(frozen=True, slots=True)
class _Described:
    """A model of which only the content of config.json is known, from `source`."""

    content: Mapping[str, Any]
    source: str


def look(model: str, settings: PlanSettings) -> Outlook:
    """Plan MODEL: a directory, a name on this machine, a shape's name in any case, or a repository on the Hub.

    Raises MemoryCeilingError, naming the least that works; ContextError; CheckpointError and its kin; ReadError.
    """
    process = machine.footprint()  # before what asking the Hub brings with it
    found = _find(model)
    if isinstance(found, Path):
        return _look_here(model, found, settings, process)
    return _look_ahead(model, found, settings, process)


def _find(model: str) -> Path | _Described:
    if model.lower() in SHAPES and not Path(model).exists():
        return _Described(shape_config(model), f"the shape {model.lower()} as published")
    try:
        path = find_model(model)
    except CheckpointError as error:
        if is_repo_id(model):
            return _on_hub(model)
        known = f"Shapes are known by name too: {', '.join(SHAPES)}."
        raise CheckpointError(error.problem, f"{error.remedy} {known}") from error
    in_hub_cache = is_repo_id(model) and not Path(model).exists()
    return _on_hub(model) if in_hub_cache and not any(path.glob("*.safetensors")) else path


def _on_hub(repo: str) -> _Described:
    return _Described(repo_config(repo), f"config.json of {repo} on the Hub")


def _look_here(model: str, path: Path, settings: PlanSettings, before: Footprint) -> Outlook:
    with LLM.open(path, memory=settings.memory, threads=settings.threads, kv_dtype=settings.kv_dtype) as llm:
        budget = llm.memory.budget
        tokenizer = max(0, budget.process - before.nbytes)
        subject = _Subject(model, "the model's own files", budget, tokenizer, llm.kernels)
        _plan(subject, settings)  # before anything is measured
        disk = _measure_disk(llm.files, budget)
        return _outlook(subject, settings, disk, "direct reads of the model's own files")


def _look_ahead(model: str, described: _Described, settings: PlanSettings, process: Footprint) -> Outlook:
    config = parse_config(described.content, described.source)
    kernels = Kernels(settings.threads)
    tokenizer = config.vocab_size * TOKENIZER_BYTES_PER_ENTRY + _vector_bytes(config)
    free = machine.available_bytes() + process.anonymous
    budget = Budget(
        config=config,
        weights=pass_weights(config) * _weight_bytes(described),
        ceiling=free if settings.memory is None else parse_bytes(settings.memory),
        process=process.nbytes + tokenizer,
        scratch=kernels.scratch_bytes * kernels.threads,
    )
    subject = _Subject(model, f"{described.source}; the tokenizer is estimated", budget, tokenizer, kernels)
    _plan(subject, settings)  # before anything is written
    with probe_file(store_root(), PROBE_FILE_BYTES) as path:
        disk = _measure_disk([path], budget)
        place = path.parent.parent
    return _outlook(subject, settings, disk, f"direct reads of a new file of random numbers in {place}")


def _weight_bytes(described: _Described) -> int:
    """Bytes of a weight: as config.json has it, under its newer or its older name, or BF16's where it does not say.

    Raises UnsupportedError for types that Penstock does not run.
    """
    key = "torch_dtype" if described.content.get("dtype") is None else "dtype"
    dtype = described.content.get(key) or "bfloat16"
    if not isinstance(dtype, str) or dtype not in WEIGHT_BYTES:
        problem = f"{described.source}: {key} is {shown(dtype)}, so its weights are not BF16, F16 or F32"
        raise UnsupportedError(problem, "Use the original full-precision checkpoint, in one of these.")
    return WEIGHT_BYTES[dtype]


def _measure_disk(paths: Sequence[Path], budget: Budget) -> DiskSpeed:
    return measure_disk(paths, PROBE_BYTES, seconds=PROBE_SECONDS, memory=room_for_probe(budget))


def _vector_bytes(config: ModelConfig) -> int:
    """float32 bytes of norms and biases."""
    return sum(4 * shape[0] for shape in expected_tensors(config).values() if len(shape) == 1)


def _outlook(subject: _Subject, settings: PlanSettings, disk: DiskSpeed, disk_basis: str) -> Outlook:
    plan, context, most = _plan(subject, settings)
    compute = measure_compute(subject.kernels, memory=room_for_probe(subject.budget))
    rates = Rates(disk.bytes_per_second, compute.row_bytes_per_second, compute.flops_per_second)
    return Outlook(
        model=subject.name,
        basis=subject.basis,
        plan=plan,
        tokenizer=subject.tokenizer,
        context=context,
        most_context=most,
        disk=disk,
        disk_basis=disk_basis,
        compute=compute,
        threads=subject.kernels.threads,
        isa=subject.kernels.isa,
        token=forecast_token(plan, rates),
        prompts={tokens: _first_token(subject.budget, settings.kv_dtype, tokens, rates) for tokens in settings.prompts},
    )


def _plan(subject: _Subject, settings: PlanSettings) -> tuple[Plan, int, int]:
    """The plan of a pass of one row, the positions that it is for, and the most that could be.

    Raises ContextError for a context that the model was not trained for, MemoryCeilingError where it does not fit.
    """
    budget, trained = subject.budget, subject.budget.config.max_position_embeddings
    check_context(settings.context, trained)
    shape = KvShape.of(budget.config, budget.config.num_hidden_layers, settings.kv_dtype)
    most = min(trained, max(1, budget.most_kv(1) // shape.block_bytes) * BLOCK_SLOTS)
    context = settings.context or min(CONTEXT, most)
    return budget.plan(Demand(kv=shape.bytes_for(context))), context, most


def _first_token(budget: Budget, kv_dtype: str, tokens: int, rates: Rates) -> Forecast | None:
    config = budget.config
    if tokens >= config.max_position_embeddings:
        return None
    kv = KvShape.of(config, config.num_hidden_layers, kv_dtype).bytes_for(tokens)
    chunk = min(tokens, MAX_ROWS, max(LEAST_CHUNK_ROWS, budget.most_rows(kv, 1)))
    try:
        plan = budget.plan(Demand(rows=chunk, kv=kv))
    except MemoryCeilingError:
        return None
    return forecast_prompt(config, plan, tokens, chunk, rates)
