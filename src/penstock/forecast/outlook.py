"""What running a model would take on this machine, raw and packed, without running it: what `penstock plan` tells.

A model that is here is opened, and its own files measure the disk. Of one that is not (a shape by name, or a repository
on the Hub, of which config.json is asked for) the sizes follow from its config; what its tokenizer takes is estimated,
and a file of random numbers measures the disk of Penstock's store. How large a raw model would be when it is packed is
estimated too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from penstock.adapters.named import open_adapters
from penstock.architectures.base import Architecture
from penstock.architectures.config import ModelConfig
from penstock.architectures.registry import parse_config
from penstock.checkpoints.checkpoint import Tensor
from penstock.checkpoints.store import find_model, store_root
from penstock.compute.corrections import NO_COMPONENTS, Components
from penstock.compute.kernels import Kernels
from penstock.engine.scheduler import MAX_ROWS
from penstock.errors import CheckpointError, UnsupportedError, UsageError
from penstock.forecast.draft_shape import DraftShape, draft_ahead, draft_here
from penstock.forecast.guess_plan import Guesses, GuessSubject, if_it_fits, plan_guesses, tiers_ahead, tiers_here
from penstock.forecast.seconds import Forecast, forecast_prompt, forecast_token
from penstock.hub.repository import is_repo_id, repo_config
from penstock.llm import LLM
from penstock.memory.budget import LEAST_CHUNK_ROWS, Budget, Demand, Plan, check_context
from penstock.models.kv_cache import BLOCK_SLOTS
from penstock.models.kv_planes import KvShape
from penstock.options import OpenOptions
from penstock.packed_format.draft_file import usable_corrections
from penstock.stages.probe import (
    PROBE_FILE_BYTES,
    DiskSpeed,
    DraftSpeed,
    measure_compute,
    measure_disk,
    measure_drafting,
    probe_file,
    room_for_probe,
)
from penstock.stages.rates import ComputeSpeed, Rates
from penstock.strict_json import shown
from penstock.synth.shapes import SHAPES, shape_config, shape_names
from penstock.system import machine
from penstock.system.machine import Footprint
from penstock.weights.sizes import Matrix, StoredSize, matrix_of, packed_size, pass_matrices, raw_size, size_here

PROBE_BYTES = 10**9
PROBE_SECONDS = 2.0
CONTEXT = 2048
"""Positions that are planned for where nobody says how many."""
PROMPTS = (16, 512, 4096)
TOKENIZER_BYTES_PER_ENTRY = 410
"""Measured: tokenizers of 128,256 entries take 46 to 52 MB, once what loading them took has been given back."""
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""What safetensors calls the types that config.json may name."""

Form = Literal["raw", "packed"]
Place = Literal["here", "hub", "shape"]
"""On this machine; on the Hub; nowhere in particular."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings(OpenOptions):
    """What is planned for, and how the model would be opened; without a context, CONTEXT positions, or as many as there
    is room for. `draft` may name a model that is not here."""

    prompts: Sequence[int] = PROMPTS
    """Lengths of prompts to forecast the first token for."""
    hit_rate: float | None = None
    """How often an expert that a token needs is in memory; None: as if each were needed as often."""

    def __post_init__(self) -> None:
        OpenOptions.__post_init__(self)
        if any(tokens < 1 for tokens in self.prompts):
            raise UsageError("A prompt has at least one token.", "Raise --prompt-tokens.")
        if self.hit_rate is not None and not 0 <= self.hit_rate <= 1:
            raise UsageError(f"A hit rate of {self.hit_rate} is no share.", "Give one from 0 to 1.")


@dataclass(frozen=True, slots=True)
class Prospect:
    """A model in one form, raw or packed: its size, how memory is shared out for a pass of one row, and how long
    tokens take without guesses."""

    size: StoredSize
    plan: Plan
    token: Forecast
    """A further token."""
    prompts: Mapping[int, Forecast | None]
    """The first token after prompts of so many tokens; None where the ceiling or the model has no room for them."""
    guesses: Guesses | None = None
    """What guesses take and bring; None where there are to be none."""

    def as_object(self) -> dict[str, Any]:
        """For JSON; bytes and seconds."""
        return {
            "stored_bytes": self.size.nbytes,
            "estimated": self.size.estimated,
            "coarse_bytes": self.size.coarse,
            "resident_bytes": self.plan.resident,
            "streamed_bytes_per_pass": self.plan.streamed,
            "seconds_per_token": self.token.seconds,
            "token": asdict(self.token),
            "first_token": {tokens: forecast and asdict(forecast) for tokens, forecast in self.prompts.items()},
            "guesses": self.guesses and self.guesses.as_object(),
        }


@dataclass(frozen=True, slots=True)
class Subject:
    """A model as far as planning needs it."""

    name: str
    place: Place
    basis: str
    """What the sizes rest on."""
    size: StoredSize
    """Of the model as it is; of one that is not here, raw."""
    other_size: StoredSize | None
    """In the other form; None where nothing of it packs."""
    budget: Budget
    """Without guesses."""
    tokenizer: int
    """Bytes of the tokenizer and the small tensors, part of the budget's `process`."""
    kernels: Kernels
    matrices: Sequence[Matrix]
    """All that a pass needs, in its order, as the original checkpoint has them."""
    tensors: Sequence[Tensor]
    """The same as they are stored; none of a model that is not here."""
    tiers: Mapping[str, int]
    """What there is, packed, of each matrix to guess with, in bytes."""
    draft: DraftShape | None
    corrections: Components = NO_COMPONENTS
    """What a model was tuned with."""

    @property
    def form(self) -> Form:
        """The form that `size` is of."""
        return "packed" if self.size.decoded else "raw"

    @property
    def packs(self) -> bool:
        """Whether any of its matrices packs."""
        return self.form == "packed" or self.other_size is not None

    @property
    def weight_bytes(self) -> int:
        """All weights that a pass needs, in BF16."""
        return 2 * self.budget.architecture.pass_weights


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the machine can do, and what it makes of a model in either form."""

    subject: Subject
    own: Prospect
    """Of the model as it is; of one that is not here, raw."""
    other: Prospect | None
    """In the other form: None where nothing of it packs, or where that does not fit under the ceiling."""
    context: int
    """Positions that the plans have keys and values for."""
    most_context: int
    """The longest context that the ceiling has room for, or that the model was trained for."""
    disk: DiskSpeed
    disk_basis: str
    """What the disk was measured with."""
    compute: ComputeSpeed
    drafting: DraftSpeed

    @property
    def kv_past_windows(self) -> int:
        """Bytes of keys and values that are kept although no query sees them any more."""
        return int(self.own.plan.kv * self.subject.budget.architecture.share_past_windows(self.context))

    @property
    def forms(self) -> dict[Form, Prospect | None]:
        """The model raw and packed."""
        raw, packed = (self.other, self.own) if self.subject.form == "packed" else (self.own, self.other)
        return {"raw": raw, "packed": packed}

    def as_object(self) -> dict[str, Any]:
        """For JSON; bytes and seconds. `memory`, `token` and `first_token` are of the model as it is."""
        subject, own = self.subject, self.own.as_object()
        return {
            "model": subject.name,
            "basis": subject.basis,
            "form": subject.form,
            "weight_bytes": subject.weight_bytes,
            "memory": asdict(self.own.plan) | {"tokenizer": subject.tokenizer, "kv_past_windows": self.kv_past_windows},
            "context": self.context,
            "most_context": self.most_context,
            "disk_bytes_per_second": self.disk.bytes_per_second,
            "probe_read_bytes": self.disk.read_bytes,
            "disk_basis": self.disk_basis,
            **asdict(self.compute),
            "draft_weights_per_second": asdict(self.drafting),
            "threads": subject.kernels.threads,
            "isa": subject.kernels.isa,
            **{key: own[key] for key in ("seconds_per_token", "token", "first_token", "guesses")},
            **{form: prospect and prospect.as_object() for form, prospect in self.forms.items()},
        }


class _Described(NamedTuple):
    """A model of which only the content of config.json is known, from `source`."""

    content: Mapping[str, Any]
    source: str
    place: Place


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
        return _Described(shape_config(model), f"the shape {model.lower()} as published", "shape")
    try:
        path = find_model(model)
    except CheckpointError as error:
        if is_repo_id(model):
            return _on_hub(model)
        known = f"Shapes are known by name too: {shape_names()}."
        raise CheckpointError(error.problem, f"{error.remedy} {known}") from error
    in_hub_cache = is_repo_id(model) and not Path(model).exists()
    return _on_hub(model) if in_hub_cache and not any(path.glob("*.safetensors")) else path


def _on_hub(repo: str) -> _Described:
    return _Described(repo_config(repo), f"config.json of {repo} on the Hub", "hub")


def _look_here(model: str, path: Path, settings: PlanSettings, before: Footprint) -> Outlook:
    with LLM.open_with(path, replace(settings, draft="none", context=None)) as llm:
        tensors = [llm.weights.tensors[name] for name in llm.architecture.pass_matrices]
        matrices, size = [matrix_of(tensor) for tensor in tensors], size_here(tensors)
        budget = replace(llm.memory.budget, draft=0)
        subject = Subject(
            name=model,
            place="here",
            basis="the model's own files",
            size=size,
            other_size=raw_size(matrices) if size.decoded else packed_size(matrices),
            budget=budget,
            tokenizer=max(0, budget.process - before.nbytes),
            kernels=llm.kernels,
            matrices=matrices,
            tensors=tensors,
            tiers=_tiers(llm.config, tiers_here(tensors) if size.decoded else tiers_ahead(matrices)),
            draft=_draft(settings, llm.config, path, llm.kernels),
            corrections=Components.of(usable_corrections(llm.path, llm.files, llm.weights.tensors)),
        )
        contexts = _contexts(subject.budget, settings)
        return _outlook(subject, settings, contexts, llm.files, "direct reads of the model's own files")


def _look_ahead(model: str, described: _Described, settings: PlanSettings, process: Footprint) -> Outlook:
    config = parse_config(described.content, described.source)
    architecture, kernels = Architecture(config), Kernels(settings.threads)
    matrices = pass_matrices(config, _dtype(described))
    size = raw_size(matrices)
    tokenizer = config.vocab_size * TOKENIZER_BYTES_PER_ENTRY + architecture.vector_bytes
    free = machine.available_bytes() + process.anonymous
    adapters = open_adapters(settings.adapters, architecture).values()
    subject = Subject(
        name=model,
        place=described.place,
        basis=f"{described.source}; the tokenizer is estimated",
        size=size,
        other_size=packed_size(matrices),
        budget=Budget(
            architecture=architecture,
            weights=size.nbytes,
            ceiling=free if settings.ceiling is None else settings.ceiling,
            process=process.nbytes + tokenizer,
            scratch=kernels.scratch_bytes * kernels.threads,
            adapters=sum(adapter.nbytes for adapter in adapters),
            adapter_rank=max((adapter.rank for adapter in adapters), default=0),
        ),
        tokenizer=tokenizer,
        kernels=kernels,
        matrices=matrices,
        tensors=(),
        tiers=_tiers(config, tiers_ahead(matrices)),
        draft=_draft(settings, config, None, kernels),
    )
    contexts = _contexts(subject.budget, settings)
    with probe_file(store_root(), PROBE_FILE_BYTES) as path:
        basis = f"direct reads of a new file of random numbers in {path.parent.parent}"
        return _outlook(subject, settings, contexts, [path], basis)


def _tiers(config: ModelConfig, tiers: Mapping[str, int]) -> Mapping[str, int]:
    """Those that guesses are made with: none of a mixture of experts."""
    return tiers if config.experts is None else {}


def _draft(settings: PlanSettings, config: ModelConfig, path: Path | None, kernels: Kernels) -> DraftShape | None:
    """The draft model for a target with this config, at `path` where it is here."""
    if settings.draft in (None, "none"):
        return None
    found = _find(settings.draft)
    if isinstance(found, Path):
        return draft_here(settings.draft, found, config, path, kernels, settings.kv_dtype)
    return draft_ahead(settings.draft, parse_config(found.content, found.source), config, settings.kv_dtype)


def _dtype(described: _Described) -> str:
    """The type of the weights: as config.json has it, under its newer or its older name, or BF16 where it does not say.

    Raises UnsupportedError for types that Penstock does not run.
    """
    key = "torch_dtype" if described.content.get("dtype") is None else "dtype"
    dtype = described.content.get(key) or "bfloat16"
    if not isinstance(dtype, str) or dtype not in DTYPES:
        problem = f"{described.source}: {key} is {shown(dtype)}, so its weights are not BF16, F16 or F32"
        raise UnsupportedError(problem, "Use the original full-precision checkpoint, in one of these.")
    return DTYPES[dtype]


def _outlook(
    subject: Subject, settings: PlanSettings, contexts: tuple[int, int], files: Sequence[Path], disk_basis: str
) -> Outlook:
    """Measure the machine, the disk with these files, and forecast; `contexts` as `_contexts` gives them."""
    room, (context, most_context) = room_for_probe(subject.budget), contexts
    disk = measure_disk(files, PROBE_BYTES, seconds=PROBE_SECONDS, memory=room)
    compute = measure_compute(subject.kernels, memory=room)
    drafting = measure_drafting(subject.kernels, memory=room)

    def prospect(size: StoredSize) -> Prospect:
        """Raises MemoryCeilingError where it does not fit."""
        rates = Rates.of(size, disk.bytes_per_second, compute)
        budget = replace(subject.budget.storing(size), hit_rate=settings.hit_rate or 0.0)
        shape = _kv_shape(budget, settings)
        plan = budget.plan(Demand(kv=shape.bytes_for(context)))
        token = forecast_token(plan, rates, budget.architecture.expert_share(1))
        prompts = {tokens: first_token(budget, settings, tokens, rates) for tokens in settings.prompts}
        guesses = None
        if settings.draft != "none":
            tiers = subject.tiers if size.decoded else {}
            corrections = subject.corrections if tiers else NO_COMPONENTS
            guessing = GuessSubject(budget, size, tiers, shape, context, rates, drafting, corrections)
            guesses = plan_guesses(guessing, token.seconds, subject.draft)
        return Prospect(size, plan, token, prompts, guesses)

    own, other_size = prospect(subject.size), subject.other_size
    other = None if other_size is None else if_it_fits(lambda: prospect(other_size))
    return Outlook(subject, own, other, context, most_context, disk, disk_basis, compute, drafting)


def _kv_shape(budget: Budget, settings: PlanSettings) -> KvShape:
    return KvShape.of(budget.architecture.config, settings.kv_dtype)


def _contexts(budget: Budget, settings: PlanSettings) -> tuple[int, int]:
    """Positions to plan for, and the most that could be; to be known before anything is measured or written.

    Raises ContextError for a context that the model was not trained for, MemoryCeilingError where it does not fit.
    """
    config, shape = budget.architecture.config, _kv_shape(budget, settings)
    check_context(settings.context, config)
    most = min(config.max_position_embeddings, max(1, budget.most_kv(1) // shape.block_bytes) * BLOCK_SLOTS)
    context = settings.context or min(CONTEXT, most)
    budget.plan(Demand(kv=shape.bytes_for(context)))
    return context, most


def first_token(budget: Budget, settings: PlanSettings, tokens: int, rates: Rates) -> Forecast | None:
    """The first token after a prompt of `tokens` tokens; None where the ceiling or the model has no room for it."""
    if tokens >= budget.architecture.config.max_position_embeddings:
        return None
    kv = _kv_shape(budget, settings).bytes_for(tokens)
    chunk = min(tokens, MAX_ROWS, max(LEAST_CHUNK_ROWS, budget.most_rows(kv, 1)))
    plan = if_it_fits(lambda: budget.plan(Demand(rows=chunk, kv=kv)))
    return None if plan is None else forecast_prompt(budget.architecture, plan, tokens, chunk, rates)
