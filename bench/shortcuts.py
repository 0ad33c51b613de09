"""Shortcuts that change what is computed, and weights that get no input: what they would do to a trained model.

    python bench/shortcuts.py --text FILE [--model demo] [--positions 8192] [--json]

FILE is text that the model was not trained on (tools/train_demo.py writes heldout.txt). Every matrix but the embedding
is replaced by what a shortcut leaves of it, in float32; told are the share of positions whose likeliest token stays the
same, and how much worse the text is predicted. Then, how many inputs of the MLP's second half are zero, and how many
rows of lm_head a bound could rule out, were the best logit known.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors_file import write

from penstock import LLM
from penstock.checkpoints.store import DEMO, find_model

sys.path.append(str(Path(__file__).resolve().parent / "peers"))
from checkpoint import read_tensors

F32 = npt.NDArray[np.float32]
Shortcut = Callable[[F32], F32]
SEQUENCE = 256
KEPT = 0.672
"""Of the bytes: what lossless packing leaves, and what approximations of the same size may keep."""


def rounded(bits: int, group: int | None = None) -> Shortcut:
    """To the nearest of 2**bits - 1 equal steps, with a scale for each row, or for each `group` weights of one."""

    def shortcut(w: F32) -> F32:
        groups = w.reshape(len(w), -1, group or w.shape[1])
        most = 2 ** (bits - 1) - 1
        scale = np.abs(groups).max(2, keepdims=True) / most
        return (np.rint(groups / np.where(scale, scale, 1)) * scale).reshape(w.shape).astype(np.float32)

    return shortcut


def low_rank(share: float) -> Shortcut:
    """The nearest matrix that two thin factors of so large a share of its numbers can give."""

    def shortcut(w: F32) -> F32:
        u, s, v = np.linalg.svd(w, full_matrices=False)
        rank = max(1, int(share * w.size / sum(w.shape)))
        return ((u[:, :rank] * s[:rank]) @ v[:rank]).astype(np.float32)

    return shortcut


def cosines(n: int) -> F32:
    """The orthonormal discrete cosine transform (type II), [n, n]."""
    k, x = np.arange(n)[:, None], np.arange(n)
    rows = np.cos(np.pi * k * (2 * x + 1) / (2 * n)) * np.sqrt(2 / n)
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


def largest_cosines(share: float) -> Shortcut:
    """The largest coefficients of the two-dimensional cosine transform; where they are is told for free."""

    def shortcut(w: F32) -> F32:
        down, across = cosines(w.shape[0]), cosines(w.shape[1])
        c = down @ w @ across.T
        cut = np.quantile(np.abs(c), 1 - share)
        return (down.T @ np.where(np.abs(c) >= cut, c, 0) @ across).astype(np.float32)

    return shortcut


def largest_weights(share: float) -> Shortcut:
    """The largest weights as they are, zeros for the others."""
    return lambda w: np.where(np.abs(w) >= np.quantile(np.abs(w), 1 - share), w, 0).astype(np.float32)


SHORTCUTS: dict[str, Shortcut] = {
    "8 bits, a scale a row": rounded(8),
    "4 bits, a scale for 32": rounded(4, 32),
    f"low rank, {KEPT} of the numbers": low_rank(KEPT),
    f"cosines, the largest {KEPT}": largest_cosines(KEPT),
    f"weights, the largest {KEPT}": largest_weights(KEPT),
}


@dataclass(frozen=True)
class Effect:
    """Against the weights as they are: share of positions with the same likeliest token, and nats a token more."""

    name: str
    same_token: float
    nats: float


def save(model: Path, folder: Path, shortcut: Shortcut) -> None:
    """A copy of the checkpoint with every matrix but the embedding changed, in float32."""
    for file in model.glob("*.json"):
        if not file.name.endswith(".index.json"):
            shutil.copy(file, folder)
    tensors = {name: tensor.floats() for name, tensor in read_tensors(model).items()}
    keep = {name: values.ndim < 2 or "embed_tokens" in name for name, values in tensors.items()}
    shapes = {name: values.shape for name, values in tensors.items()}
    arrays = (values if keep[name] else shortcut(values) for name, values in tensors.items())
    write(folder / "model.safetensors", "F32", shapes, arrays)


@contextmanager
def changed(model: Path, shortcut: Shortcut) -> Iterator[LLM]:
    with tempfile.TemporaryDirectory(prefix="shortcuts-") as name:
        save(model, Path(name), shortcut)
        with LLM.open(name) as llm:
            yield llm


def sequences(llm: LLM, text: str, positions: int) -> list[list[int]]:
    """Runs of SEQUENCE tokens of the text, evenly spread over it."""
    tokens = llm.encode(text)
    count = max(1, min(positions, len(tokens)) // SEQUENCE)
    starts = [index * len(tokens) // count for index in range(count)]
    return [tokens[start : start + SEQUENCE] for start in starts]


def predictions(llm: LLM, runs: list[list[int]]) -> tuple[npt.NDArray[np.int64], float]:
    """The likeliest token at every position, and the mean nats of the tokens that follow."""
    best, nats = [], []
    for tokens in runs:
        logits = llm.logits(tokens).astype(np.float64)
        best.append(logits.argmax(1))
        shifted = logits - logits.max(1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        nats.append(-logs[np.arange(len(tokens) - 1), tokens[1:]])
    return np.concatenate(best), float(np.concatenate(nats).mean())


def effects(model: Path, llm: LLM, runs: list[list[int]]) -> list[Effect]:
    best, nats = predictions(llm, runs)
    results = []
    for name, shortcut in SHORTCUTS.items():
        with changed(model, shortcut) as other:
            their_best, their_nats = predictions(other, runs)
        results.append(Effect(name, float((best == their_best).mean()), their_nats - nats))
    return results


@dataclass(frozen=True)
class Idle:
    """Shares of what gets no input, or cannot matter."""

    zeros_in_mlp: float
    """Of silu(gate) * up: exact zeros, whose columns of down_proj could be skipped."""
    rows_by_norm: float
    """Of lm_head's rows: their length times the hidden row's is below the best logit."""
    rows_by_coarse: float
    """The same, for the row's distance from what its coarse tier stands for, and that one's product."""


def coarse(w: F32) -> F32:
    """What the coarse tier of each row says (docs/format.md): the mean of each class's magnitudes, with the sign."""
    unit = np.exp2(np.rint(np.log2(np.sqrt((w**2).mean(1, keepdims=True)) + 1e-30)))
    classes = np.digitize(np.abs(w) / unit, [0.5, 1, 2])
    means = np.zeros_like(w)
    for number in range(4):
        member = classes == number
        total = np.where(member, np.abs(w), 0).sum(1, keepdims=True)
        means += member * total / np.maximum(member.sum(1, keepdims=True), 1)
    return (np.sign(w) * means).astype(np.float32)


def idle(model: Path, llm: LLM, runs: list[list[int]]) -> Idle:
    zeros = products = 0
    gated, final_norm, hidden = llm.kernels.gated, llm.model.final_norm, []

    def counting(gate: F32, up: F32, activation: str, out: F32) -> None:
        nonlocal zeros, products
        gated(gate, up, activation, out)
        zeros, products = zeros + int((out == 0).sum()), products + out.size

    def keeping(x: F32) -> F32:
        rows = final_norm(x)
        hidden.append(rows.copy())
        return rows

    watched: Any = llm
    watched.kernels.gated, watched.model.final_norm = counting, keeping
    for tokens in runs:
        llm.logits(tokens)
    x = np.concatenate(hidden)
    tensors = read_tensors(model)
    w = tensors["lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"].floats()
    return Idle(zeros / products, *ruled_out(x, w))


def ruled_out(x: F32, w: F32) -> tuple[float, float]:
    """Shares of (position, row) pairs: by the rows' norms, and by their coarse tiers and the norms of the rest."""
    best = (x @ w.T).max(1, keepdims=True)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    known = coarse(w)
    by_norm = lengths * np.linalg.norm(w, axis=1) < best
    by_coarse = x @ known.T + lengths * np.linalg.norm(w - known, axis=1) < best
    return float(by_norm.mean()), float(by_coarse.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--model", default=DEMO)
    parser.add_argument("--positions", type=int, default=8192)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args()
    model = find_model(args.model)
    with LLM.open(args.model) as llm:
        runs = sequences(llm, args.text.read_text(encoding="utf-8"), args.positions)
        results = effects(model, llm, runs)
        rest = idle(model, llm, runs)
    if args.json:
        return print(json.dumps({"effects": [asdict(one) for one in results], "idle": asdict(rest)}, indent=1))
    print(f"{sum(map(len, runs))} positions{'':14s}{'same token':>12s}{'nats more':>12s}")
    for one in results:
        print(f"{one.name:30s}{100 * one.same_token:8.1f} %{one.nats:12.3f}")
    print(f"zeros among the inputs of down_proj: {100 * rest.zeros_in_mlp:.3f} %")
    print(f"rows of lm_head ruled out by their norms: {100 * rest.rows_by_norm:.1f} %")
    return print(f"by their coarse tier and the norm of the rest: {100 * rest.rows_by_coarse:.1f} %")


if __name__ == "__main__":
    main()
