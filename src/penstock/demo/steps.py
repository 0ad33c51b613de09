"""What `penstock demo` does, step by step; cli/demonstration.py shows it.

First, text from a model most of whose weights stay on the disk, and the same bits from a resident run, from a packed
copy, and from one whose passes check guesses. Then a bit of that copy is flipped, and it is run again. The third step
is in layers.py and timing.py.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.checkpoints.store import DEMO, find_model
from penstock.disk.new_files import own_directory
from penstock.errors import PenstockError
from penstock.llm import LLM
from penstock.options import OpenOptions
from penstock.packed_format.tensor import PackedTensor
from penstock.packing.pack import pack
from penstock.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from penstock.completion import Piece
    from penstock.compute.kernels import F32

PROMPT = '''class Point:
    """A point in the plane."""

    def __init__(self, x, y):
        self.x = x
        self.y = y

    def __repr__(self):
        return'''
PARAMS = SamplingParams(temperature=0.6, seed=4, max_tokens=96)
STREAMED, GUESSING, RESIDENT = 0.2, 0.5, 1.0
"""Shares of the weights that the runs may keep in memory; what guesses are made with is a part of it."""


@dataclass(frozen=True)
class Run:
    """A completion of PROMPT, and the logits after each of its tokens, float32 [n_tokens, vocab_size]."""

    pieces: list[Piece]
    logits: F32

    @property
    def token_ids(self) -> list[int]:
        """The tokens after the prompt."""
        return [token for piece in self.pieces for token in piece.token_ids]

    def same_bits(self, other: Run) -> bool:
        """Whether the tokens, and every bit of every logit, are equal."""
        return self.token_ids == other.token_ids and self.logits.tobytes() == other.logits.tobytes()


@dataclass(frozen=True, slots=True)
class FlippedBit:
    """Where a packed file was damaged: a bit of the byte at `offset`, in a tier ("coarse" or "fine") of a tensor."""

    file: Path
    offset: int
    bit: int
    tensor: str
    tier: str


def complete(
    path: Path, resident_share: float, on_piece: Callable[[Piece], None] = lambda piece: None, *, guesses: bool = False
) -> Run:
    """Complete PROMPT with at most this share of the model's weights in memory, the rest read in every pass.

    `guesses`: let every pass check some.
    """
    options = OpenOptions(max_resident=int(weight_file_bytes(path) * resident_share), draft=None if guesses else "none")
    with LLM(path, options) as llm:
        pieces = []
        for piece in llm.stream(PROMPT, PARAMS):
            on_piece(piece)
            pieces.append(piece)
        tokens = [token for piece in pieces for token in piece.token_ids]
        return Run(pieces, llm.logits(llm.encode(PROMPT) + tokens))


def weight_file_bytes(path: Path) -> int:
    """Bytes of all safetensors files in a directory."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


@contextmanager
def packed_copy() -> Iterator[Path]:
    """The demo model packed, in a directory of its own that is gone in the end. Raises PenstockError."""
    remedy = "Let TMPDIR name a directory that you may write to."
    with own_directory("penstock-demo-", None, "No temporary directory can be made", remedy) as own:
        out = own / "packed"
        pack(find_model(DEMO), out)
        yield out


def flip_a_bit(path: Path, random: Random) -> FlippedBit:
    """Damage a packed checkpoint: at random, in a matrix that a pass uses."""
    checkpoint = open_checkpoint(path)
    tensors = [checkpoint.tensors[name] for name in checkpoint.architecture.pass_matrices]
    places = [
        (tensor.name, tier, extent(0, tensor.n_chunks))
        for tensor in tensors
        if isinstance(tensor, PackedTensor) and tensor.in_tiers
        for tier, extent in (("coarse", tensor.coarse_extent), ("fine", tensor.fine_extent))
    ]
    [(name, tier, extent)] = random.choices(places, [extent.nbytes for _, _, extent in places])
    flipped = FlippedBit(extent.path, extent.offset + random.randrange(extent.nbytes), random.randrange(8), name, tier)
    with flipped.file.open("r+b") as file:
        file.seek(flipped.offset)
        [byte] = file.read(1)
        file.seek(flipped.offset)
        file.write(bytes([byte ^ 1 << flipped.bit]))
    return flipped


def refusal(path: Path) -> PenstockError | None:
    """The error that ends a run of a damaged checkpoint before its first token; None where none does."""
    pieces: list[Piece] = []
    try:
        complete(path, STREAMED, pieces.append)
    except PenstockError as error:
        return None if pieces else error
    return None
