"""What guessing takes of a ceiling, and what it brings, for acceptance that is assumed: a part of `penstock plan`.

The memory is shared out as an open model shares it out. How often guesses are right depends on the model and the text,
and is measured as a model runs; here it is assumed. Guesses from the text itself cost next to nothing and are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from penstock.architectures.base import Architecture
from penstock.compute.corrections import NO_COMPONENTS, Components
from penstock.errors import MemoryCeilingError
from penstock.forecast.guess_forecast import GuessForecast, forecast_guesses
from penstock.memory.budget import MOST_MISSING, Budget, Demand, Plan
from penstock.memory.room import StageBudget
from penstock.models.kv_cache import BLOCK_SLOTS
from penstock.speculate.drafters import working_bytes
from penstock.speculate.grow import MOST_NODES
from penstock.stages.probe import MANY_ROWS, seconds_of_rows
from penstock.weights.residency import COMMON_SHARE, draft_layers
from penstock.weights.sizes import COARSE_RATIO

if TYPE_CHECKING:
    from collections.abc import Iterable

    from penstock.checkpoints.checkpoint import Tensor
    from penstock.forecast.draft_shape import DraftShape
    from penstock.models.kv_planes import KvShape
    from penstock.speculate.draft_model import Form
    from penstock.stages.probe import DraftSpeed
    from penstock.stages.rates import Rates
    from penstock.weights.sizes import Matrix, StoredSize

T = TypeVar("T")

COARSE_TO_FINE = 3 / 7
"""Bytes of a packed piece's coarse tier to those of its fine one, which is as large as a buffer of the ring."""
ASSUMED = ((0.70, 0.12, 0.05), (0.85, 0.06, 0.02))
"""Chances that the next token is a drafter's first guess, its second, its third."""


def tiers_here(tensors: Iterable[Tensor]) -> dict[str, int]:
    """Bytes of what there is of each packed matrix to guess with, if there is anything."""
    return {tensor.name: nbytes for tensor in tensors if (nbytes := tensor.draft_bytes)}


def tiers_ahead(matrices: Iterable[Matrix]) -> dict[str, int]:
    """As `tiers_here`, of matrices that are not packed yet; estimated."""
    return {m.name: int(m.nbytes * COARSE_RATIO) if m.packs else m.nbytes for m in matrices}


@dataclass(frozen=True, slots=True)
class GuessSubject:
    """A model in one form, raw or packed, under a memory ceiling, and the speeds of this machine."""

    budget: Budget
    """Without guesses."""
    size: StoredSize
    tiers: Mapping[str, int]
    """Bytes of each matrix to guess with; empty where the model is raw."""
    kv_shape: KvShape
    context: int
    rates: Rates
    speed: DraftSpeed
    corrections: Components = NO_COMPONENTS
    """What the tiers are corrected by (`penstock tune`)."""

    @property
    def common_head(self) -> int:
        """Bytes of the head's tier without which there are no guesses (residency.py), in whole pieces."""
        whole, piece = self.tiers.get(self.budget.architecture.head, 0), self.budget.ring.piece_bytes * COARSE_TO_FINE
        return min(whole, int(COMMON_SHARE * whole + 2 * piece))

    @property
    def least_tier_bytes(self) -> int:
        """Of all tiers, what guesses cannot do without."""
        return sum(self.tiers.values()) - self.tiers.get(self.budget.architecture.head, 0) + self.common_head


@dataclass(frozen=True, slots=True)
class Guessing:
    """How the ceiling is shared out with guesses, and what to expect of them."""

    plan: Plan
    """With room for the most guesses that a pass may check."""
    most_guesses: int
    guess_bytes: int
    """Bytes for their rows and their slots in the KV caches; where draws need all logits they take more."""
    tier_bytes: int
    """What a packed model guesses with, part of its resident weights; 0 where the model is raw."""
    tier_layers: int
    """Layers that stay in memory of that, beside the head; 0 where there is too little to guess with."""
    layers: int
    draft_form: Form | None
    """How a draft model's weights are kept."""
    draft_bytes: int
    """Bytes of these weights, part of the plan's `draft`."""
    draft_kv: int
    """Bytes of its keys and values."""
    forecasts: tuple[GuessForecast, ...]
    """For each of ASSUMED, with the drafter that makes tokens come fastest."""

    @property
    def drafters(self) -> tuple[str, ...]:
        """For each of ASSUMED: "coarse", "draft", or "" for none at all."""
        return tuple(forecast.drafter for forecast in self.forecasts)

    def as_object(self) -> dict[str, Any]:
        """For JSON; bytes and seconds."""
        forecasts = [
            asdict(forecast) | {"assumed": chances, "seconds_per_token": forecast.seconds_per_token}
            for chances, forecast in zip(ASSUMED, self.forecasts, strict=True)
        ]
        return asdict(self) | {"forecasts": forecasts}


@dataclass(frozen=True, slots=True)
class Guesses:
    """With the model's own coarse tier alone, and with a draft model besides."""

    own: Guessing | None
    """None where the ceiling has no room for it."""
    drafted: Guessing | None = None
    """None where there is no room for the draft, or none was named."""
    draft: str | None = None
    pays: tuple[bool, ...] = ()
    """For each of ASSUMED: whether tokens come faster with the draft."""

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "own": self.own and self.own.as_object(),
            "draft": self.draft,
            "drafted": self.drafted and self.drafted.as_object(),
            "draft_pays": list(self.pays),
        }


def plan_guesses(subject: GuessSubject, plain_seconds: float, draft: DraftShape | None = None) -> Guesses:
    """What guessing takes and brings; a pass without guesses takes `plain_seconds`."""
    own = if_it_fits(lambda: _guessing(subject, None))
    if draft is None:
        return Guesses(own)
    drafted = if_it_fits(lambda: _guessing(subject, draft))
    without = [f.seconds_per_token for f in own.forecasts] if own else [plain_seconds] * len(ASSUMED)
    with_draft = [f.seconds_per_token for f in drafted.forecasts] if drafted else [float("inf")] * len(ASSUMED)
    return Guesses(own, drafted, draft.name, tuple(a < b for a, b in zip(with_draft, without, strict=True)))


def guess_budget(subject: GuessSubject, draft: DraftShape | None) -> tuple[Budget, Form | None]:
    """The budget of a model that is opened with guesses, and the form in which it keeps a draft model."""
    working = working_bytes(subject.budget.architecture, coarse=bool(subject.tiers))
    budget = replace(subject.budget, draft=working)
    stage = StageBudget(budget, subject.kv_shape, draft_weights=subject.least_tier_bytes)
    components = subject.corrections
    rank = stage.correction_rank(components.nbytes, components.rank)
    budget = replace(budget, draft=working + rank * components.nbytes)
    if subject.tiers and budget.indexed:  # the coarse tier stays beside rows that are quicker to multiply with
        budget = replace(budget, indexed=budget.indexed + subject.size.coarse)
    if draft is None:
        return budget, None
    whole = replace(budget, draft=budget.draft + draft.likely_bytes["whole"])
    if whole.holds_all():
        return whole, "whole"
    return replace(budget, draft=budget.draft + draft.likely_bytes["4 bits"]), "4 bits"


def if_it_fits(make: Callable[[], T]) -> T | None:
    """What `make` gives; None where it raises MemoryCeilingError."""
    try:
        return make()
    except MemoryCeilingError:
        return None


def _guessing(subject: GuessSubject, draft: DraftShape | None) -> Guessing:
    """Raises MemoryCeilingError where it does not fit."""
    budget, form = guess_budget(subject, draft)
    shape, context = subject.kv_shape, subject.context
    tier_bytes = sum(subject.tiers.values())
    draft_kv = 0 if draft is None else draft.kv_shape.bytes_for(context)
    kv = shape.bytes_for(context) + draft_kv
    slot = 2 * (shape.block_bytes + (draft.kv_shape.block_bytes if draft else 0)) // BLOCK_SLOTS
    most = 0
    if tier_bytes or draft:
        kv += shape.block_bytes
        most = min(MOST_NODES, budget.most_guesses(kv, 1, 1, slot, subject.least_tier_bytes, logits=False))
    without, plan = budget.plan(Demand(kv=kv)), budget.plan(Demand(1 + most, 1, kv + most * slot, most))
    kept = kept_layers(subject, plan.resident)
    steps = _steps(subject, kept, draft, form)
    return Guessing(
        plan=plan,
        most_guesses=most,
        guess_bytes=plan.kv + plan.activations - without.kv - without.activations,
        tier_bytes=tier_bytes,
        tier_layers=len(kept),
        layers=budget.architecture.config.num_hidden_layers,
        draft_form=form,
        draft_bytes=draft.likely_bytes[form] if draft and form else 0,
        draft_kv=draft_kv,
        forecasts=tuple(_best(subject, plan, without, steps, chances, most) for chances in ASSUMED),
    )


def kept_layers(subject: GuessSubject, resident: int) -> list[int]:
    """Layers that the coarse drafter has where `resident` bytes of weights stay in memory; none where it rests."""
    architecture, tiers = subject.budget.architecture, subject.tiers
    count = architecture.config.num_hidden_layers
    left = resident - subject.common_head
    if architecture.head not in tiers or left < 0:
        return []
    kept = []
    for layer in draft_layers(count):
        names = architecture.layer_matrices(layer)
        left -= sum(tiers.get(name, 0) for name in names)
        if left < 0:
            break
        if all(name in tiers for name in names):
            kept.append(layer)
    return kept if len(kept) >= (1 - MOST_MISSING) * count else []


Steps = dict[str, Callable[[int], float]]
"""By drafter: the seconds of a drafting step, by its nodes."""


def _steps(subject: GuessSubject, kept: list[int], draft: DraftShape | None, form: Form | None) -> Steps:
    steps: Steps = {}
    if kept:
        config = replace(subject.budget.architecture.config, num_hidden_layers=len(kept))
        weights = Architecture(config).pass_weights
        steps["coarse"] = lambda rows: subject.speed.coarse_seconds(weights, rows)
    if draft is not None and form == "4 bits":
        nibbles = draft.architecture.pass_weights
        steps["draft"] = lambda rows: subject.speed.nibble_seconds(nibbles, rows)
    elif draft is not None:
        one, flops = draft.likely_bytes["whole"] / subject.rates.row_bytes, subject.rates.flops
        steps["draft"] = lambda rows: _compute_seconds(draft.architecture, one, flops, rows, subject.context)
    return steps


def _best(
    subject: GuessSubject, plan: Plan, without: Plan, steps: Steps, chances: tuple[float, ...], most: int
) -> GuessForecast:
    """What to expect of the drafter that makes tokens come fastest; `without`: the plan where none is asked."""

    def pass_seconds(plan: Plan, rows: int) -> float:
        rates, share = subject.rates, subject.budget.architecture.expert_share(rows)
        one = rates.row_seconds(plan, share)
        compute = _compute_seconds(subject.budget.architecture, one, rates.flops, rows, subject.context)
        return max(plan.streamed_with(share) / rates.disk_bytes, compute)

    found = [GuessForecast(1.0, 0, 0, 0.0, pass_seconds(without, 1))]
    for name, step_seconds in steps.items():
        forecast = forecast_guesses(chances, partial(pass_seconds, plan), step_seconds, most)
        found.append(replace(forecast, drafter=name))
    return min(found, key=lambda forecast: forecast.seconds_per_token)


def _compute_seconds(model: Architecture, one: float, flops: float, rows: int, positions: int) -> float:
    """Arithmetic of a pass of so many rows, each with its logits: on the line through what one row takes, and MANY."""
    many = (model.flops(MANY_ROWS, max(MANY_ROWS, positions)) + model.head_flops(MANY_ROWS - 1)) / flops
    return seconds_of_rows(rows, one, many, MANY_ROWS)
