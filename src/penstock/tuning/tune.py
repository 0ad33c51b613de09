"""`penstock tune`: one pass over a text, and what it teaches, in a file beside the packed weights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.compute.corrections import component_bytes
from penstock.errors import PenstockError, UsageError
from penstock.llm import LLM
from penstock.models.rows import Rows, SequenceRows
from penstock.options import OpenOptions
from penstock.packed_format.draft_file import identity, write_corrections
from penstock.tuning.listening import Listening

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from penstock.architectures.base import Architecture
    from penstock.architectures.config import ModelConfig
    from penstock.compute.corrections import Correction

MOST_TOKENS, LEAST_TOKENS = 400, 64
MOST_CHARACTERS = 64 * MOST_TOKENS
"""Of a text, more than so many tokens have."""
LOGIT_ROWS = 4
"""One row in so many has logits, for the head's correction."""
PIECE_BYTES = 128 << 20
"""Of a piece that is unpacked, the exact and the coarse weights as float32."""
MOST_RANK = 32
"""Components of a matrix."""
BITS, SMALL_BYTES = 0.15, 16 << 20
"""What all corrections may take: so much a weight, or so many bytes, where that is more."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """What came of it."""

    path: Path
    nbytes: int
    bits: float
    """A weight that a pass multiplies with."""
    tokens: int
    seconds: float


def tune(
    model: Path,
    text: str | None = None,
    memory: str | int | None = None,
    threads: int | None = None,
    on_layer: Callable[[int, int], None] = lambda done, all_layers: None,
) -> Tuned:
    """Fit corrections to a packed model, over a text of ours or one that is more like what the model will be used for.

    `on_layer`: told how many of how many layers are done. Raises UsageError where the model is not packed, or the text
    too short; as `LLM.open` does; PenstockError where the file cannot be written.
    """
    begin = time.perf_counter()
    text = _own_text() if text is None else text[:MOST_CHARACTERS]
    checkpoint = open_checkpoint(model)
    own, architecture = identity(checkpoint.files), checkpoint.architecture
    if own is None:
        raise UsageError(
            f"{model} is not packed: it has no coarse tier to guess with.", "Pack it first: penstock pack."
        )
    if not can_be_tuned(architecture.config):
        raise UsageError(
            f"{model} is a mixture of experts: it does not guess with its own coarse weights.",
            "Nothing needs to be tuned; a smaller model with the same tokenizer may guess for it: --draft.",
        )
    layers = architecture.config.num_hidden_layers
    options = OpenOptions(draft="none", max_resident=0, threads=threads, memory=memory, reserve=_needs(architecture))
    with LLM.open_with(str(model), options, lambda layer, *_: on_layer(layer + 1, layers)) as llm:
        tokens = llm.encode(text)[: min(MOST_TOKENS, llm.context)]
        if len(tokens) < min(LEAST_TOKENS, llm.context):
            raise UsageError(f"The text has {len(tokens)} tokens.", f"Give one of {LEAST_TOKENS} to {MOST_TOKENS}.")
        found = listen(llm, tokens, rank_for(architecture))
        try:
            path = write_corrections(model, own, found)
        except OSError as error:
            problem = f"{error.filename or model} cannot be written: {error.strerror or error}"
            raise PenstockError(problem, "Check the disk and your permissions there.") from error
    nbytes = sum(correction.nbytes for correction in found.values())
    return Tuned(path, nbytes, 8 * nbytes / architecture.pass_weights, len(tokens), time.perf_counter() - begin)


def can_be_tuned(config: ModelConfig) -> bool:
    """Whether a packed model guesses with its own coarse weights. A mixture's would need as many experts for a guess as
    for the token itself."""
    return config.experts is None


def _own_text() -> str:
    return resources.files("penstock.tuning").joinpath("calibration.txt").read_text("utf-8")


def _needs(architecture: Architecture) -> int:
    """Bytes besides a pass's own: products and their errors, what fitting takes, and the corrections."""
    rows = max(shape[0] for shape in architecture.pass_matrices.values())
    layer_rows = max(shape[0] for name, shape in architecture.pass_matrices.items() if name != architecture.head)
    products = max(MOST_TOKENS * layer_rows, MOST_TOKENS // LOGIT_ROWS * rows) * 4 * 2
    rank = rank_for(architecture)
    corrections = rank * _component_bytes(architecture)
    return products + 4 * rank * rows + PIECE_BYTES + 8 * MOST_TOKENS**2 + corrections


def rank_for(architecture: Architecture) -> int:
    """How many components every correction gets. All get as many: shared out by what each spares of its product's
    error, they make guesses worse (docs/log.md)."""
    most = max(int(BITS * architecture.pass_weights / 8), SMALL_BYTES)
    return max(1, min(MOST_RANK, most // _component_bytes(architecture)))


def _component_bytes(architecture: Architecture) -> int:
    """Of all matrices together."""
    return sum(component_bytes(*shape) for shape in architecture.pass_matrices.values())


def listen(llm: LLM, tokens: Sequence[int], rank: int) -> dict[str, Correction]:
    """The corrections of a packed model's matrices, of `rank` components at most, by one pass over these tokens.

    `llm`: opened without guesses and with no weights resident; it answers nothing afterwards.
    """
    found: dict[str, Correction] = {}
    for stage in llm.stages:
        listening = Listening(stage.weights, stage.decoder.kernels, rank, found.__setitem__)
        stage.decoder = stage.decoder.over(listening)
    cache, count = llm.memory.new_cache(len(tokens)), len(tokens)
    wanted = range(LOGIT_ROWS - 1, count, LOGIT_ROWS)
    need = llm.memory.need({cache: count}, count, len(wanted))
    llm.chain.run(Rows([SequenceRows.plain(cache, tokens, wanted)]), need)
    cache.truncate(0)
    llm.chain.settle()
    return found
