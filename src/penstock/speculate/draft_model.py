"""A second, smaller model that guesses for the first: whole in memory, as it is or with 4 bits a weight.

What a draft's weights are rounded to changes how often its guesses are right, and nothing else.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from penstock.architectures.base import Architecture
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.compute.codec import MOST_COLUMNS
from penstock.compute.levels import nibble_bytes
from penstock.disk.files import read_file
from penstock.disk.reader import Ring
from penstock.errors import UsageError
from penstock.events import Events
from penstock.gguf.model import gguf_files
from penstock.models.decoder import Decoder
from penstock.models.kv_cache import Blocks
from penstock.models.kv_planes import KvPlanes, KvShape
from penstock.text.tokenizer import Tokenizer
from penstock.weights.pieces import PlainData, largest_chunk
from penstock.weights.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

    from penstock.architectures.config import ModelConfig
    from penstock.checkpoints.checkpoint import Tensor
    from penstock.compute.kernels import F32, I64, Kernels
    from penstock.compute.levels import NibbleRows
    from penstock.weights.pieces import PieceData, StoredData

Form = Literal["whole", "4 bits"]
LOADING = Ring(depth=4, piece_bytes=4 << 20, reads=4)


@dataclass(frozen=True, slots=True)
class NibbleData:
    """A piece in 4 bits a weight."""

    rows: slice
    nibbles: NibbleRows

    @property
    def nbytes(self) -> int:
        return self.nibbles.data.nbytes + self.nibbles.scales.nbytes

    def matmul(self, kernels: Kernels, x: F32, out: F32, bias: F32 | None, accumulate: bool) -> None:
        kernels.matmul_nibbles(x, self.nibbles, out, bias=bias, accumulate=accumulate)


class NibbleWeights:
    """A model's matrices, those in BF16 in 4 bits a weight; the embedding's rows come from the files."""

    def __init__(self, weights: Weights, order: Sequence[str], kernels: Kernels) -> None:
        """Reads all matrices, in `order`. Raises ReadError, FormatError."""
        self.events = Events()
        self._weights = weights
        self._pieces: dict[str, list[NibbleData | PlainData]] = {}
        for name in order:
            cols = weights.tensors[name].shape[1]
            with closing(weights.stored(name)) as pieces:
                self._pieces[name] = [_rounded(piece, cols, kernels) for piece in pieces]

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self._weights.tensors

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for pieces in self._pieces.values() for piece in pieces)

    def expect(self, names: Sequence[str]) -> None:
        """Nothing to do: they are in memory."""

    def pieces(self, name: str) -> Generator[PieceData]:
        yield from self._pieces[name]

    def rows(self, name: str, indices: I64) -> F32:
        return self._weights.rows(name, indices)


def check_same_tokens(draft: Path, draft_config: ModelConfig, path: Path, config: ModelConfig) -> None:
    """Raise UsageError unless the model at `draft` has the tokens of the one at `path`, as far as both have any: models
    of one family may fill up their vocabularies to other sizes."""
    remedy = "A draft has to have the target's tokenizer: give a smaller model of the same family."
    sizes = draft_config.vocab_size, config.vocab_size
    files = [folder / "tokenizer.json" for folder in (draft, path)]
    there = [file.exists() for file in files]
    if all(there) and read_file(files[0]) == read_file(files[1]):
        return
    may_have = all(is_there or gguf_files(file.parent) for is_there, file in zip(there, files, strict=True))
    own, other = (Tokenizer.open(file.parent) if may_have else None for file in files)
    if own is None or other is None:
        if sizes[0] != sizes[1]:
            told = f"{sizes[0]} tokens, and the model has {sizes[1]}"
            raise UsageError(f"The draft {draft} has a vocabulary of {told}.", remedy)
        return
    if not own.has_same_tokens(other, min(sizes)):
        raise UsageError(f"The draft {draft} has another tokenizer than the model.", remedy)


class DraftModel:
    """An open draft model."""

    def __init__(self, path: Path, kernels: Kernels, kv_dtype: str, context: int | None = None) -> None:
        """Opens the checkpoint and reads its headers, for sequences of so many positions; `load` reads the
        rest. Raises CheckpointError and its kin."""
        checkpoint = open_checkpoint(path)
        checkpoint = checkpoint.for_context(context or checkpoint.config.usual_context)
        self.path, self.config = checkpoint.path, checkpoint.config
        self.architecture = Architecture(self.config)
        self._order = self.architecture.pass_order
        self._kernels = kernels
        chunk = largest_chunk([checkpoint.tensors[name] for name in self._order])
        self._ring = Ring(LOADING.depth, max(LOADING.piece_bytes, chunk), LOADING.reads)
        self._weights = Weights(checkpoint.tensors, self._order, kernels, self._ring)
        self._shapes = [checkpoint.tensors[name].shape for name in self._order]
        self.kv_shape = KvShape.of(self.config, kv_dtype)
        self.blocks = Blocks()
        self.nbytes = 0
        """What it takes in memory, once it is loaded."""

    def check_tokens_of(self, path: Path, config: ModelConfig) -> None:
        """Raise UsageError unless this model has the tokens of the one at `path`, as far as both have any."""
        check_same_tokens(self.path, self.config, path, config)

    def likely_bytes(self, form: Form) -> int:
        """What it will take in memory."""
        if form == "whole":
            return (self._weights.indexed_bytes or self._weights.pass_bytes) + self._ring.nbytes
        return sum(nibble_bytes(*shape) for shape in self._shapes) + self._ring.nbytes

    def load(self, form: Form) -> Decoder:
        """The model, with its matrices in memory. Raises ReadError, FormatError."""
        matrices: Weights | NibbleWeights
        if form == "whole":
            self._weights.limit_resident(self.likely_bytes("whole"))
            for name in self._order:
                self._read(name)
            matrices, self.nbytes = self._weights, self._weights.resident_bytes + self._ring.nbytes
        else:
            matrices = NibbleWeights(self._weights, self._order, self._kernels)
            self.nbytes = matrices.nbytes + self._ring.nbytes
        planes = KvPlanes(self.kv_shape, range(self.config.num_hidden_layers), self.blocks.outbox())
        return Decoder(self.config, matrices, self._kernels, self._weights.vectors(), planes)

    def _read(self, name: str) -> None:
        """Walk over a matrix, so that it stays in memory."""
        with closing(self._weights.pieces(name)) as pieces:
            for _ in pieces:
                pass

    def close(self) -> None:
        self._weights.close()


def _rounded(piece: StoredData, cols: int, kernels: Kernels) -> NibbleData | PlainData:
    """4 bits a weight of a piece in BF16, if its rows are of a length that the kernels take; another one as it is."""
    plain, dtype = piece.plain()
    if dtype != "BF16" or cols > MOST_COLUMNS:
        return PlainData(piece.rows, plain.copy(), dtype)
    return NibbleData(piece.rows, kernels.quantize_nibbles(plain, piece.rows.stop - piece.rows.start, cols))
