"""Penstock is as near to the float64 reference as `transformers` is.

With f32 KV, maximum and RMS error of the logits are at most twice those of `transformers` in float32; with bf16 KV they
are below those of `transformers` in bfloat16.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.cases import CASES, DEMO, FAMILY_CASES, LLAMA3, Case, demo_tokens, random_tokens
from helpers.reference import F32, F64, Reference
from helpers.rounding_noise import LEAST_MARGIN
from penstock.architectures.config import RopeConfig
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.models.rope import inverse_frequencies

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")

GREEDY = 40
LONG = Case(
    {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": LLAMA3,
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
    }
)


@dataclass(frozen=True)
class Run:
    """What is computed by each side."""

    tokens: list[int]
    prompt: int
    """So many tokens at once, then one at a time."""
    first: int = 0
    """The position of the first token; others than 0 go without steps."""
    keep: int = 1000
    """Logits of the last so many tokens are compared."""
    greedy: int = 0
    context: int = 0
    """Positions that a sequence may have, where they are more than is usual."""

    def job(self, path: Path, kv: str, out: Path) -> dict[str, Any]:
        return self.__dict__ | {"path": str(path), "kv": kv, "out": str(out)}


def runs() -> dict[str, tuple[Case | None, Run]]:
    everything: dict[str, tuple[Case | None, Run]] = {
        name: (case, Run(random_tokens(48, 61), prompt=36, greedy=GREEDY)) for name, case in CASES.items()
    }
    for name in ("rope-llama3", "rope-parameters", "rope-linear", "gqa-4"):
        everything[f"{name}, far"] = (CASES[name], Run(random_tokens(48, 61), prompt=48, first=100_000))
    for name in ("phi3-longrope", "phi4-mini"):
        everything[f"{name}, long"] = (CASES[name], Run(random_tokens(120, 61), prompt=110, context=512))
    everything["long"] = (LONG, Run(random_tokens(9_000, 96), prompt=8_990, keep=100))
    everything["demo"] = (None, Run(demo_tokens(80), prompt=60, greedy=GREEDY))
    return everything


RUNS = runs()


class Checkpoints:
    """Each case in its own layout, and once more as the one file that `transformers` knows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str, single: bool = False) -> Path:
        case = RUNS[name][0]
        if case is None:
            return DEMO
        path = self.folder / f"{name} {'single' if single else 'own'}"
        if not path.exists():
            (replace(case, files={}) if single else case).write(path)
        return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def penstock(checkpoints: Checkpoints) -> dict[tuple[str, str], Any]:
    """Penstock's results by name and KV type, all from one process."""
    outs = {(name, kv): checkpoints.folder / f"{name} {kv}.npz" for name in RUNS for kv in ("f32", "bf16")}
    jobs = [RUNS[name][1].job(checkpoints.path(name), kv, out) for (name, kv), out in outs.items()]
    (checkpoints.folder / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).parent / "penstock_logits.py"
    subprocess.run([sys.executable, str(script), str(checkpoints.folder / "jobs.json")], check=True)
    return {key: np.load(out) for key, out in outs.items()}


class Transformers:
    """The same computations by `transformers`."""

    def __init__(self, path: Path, dtype: Any) -> None:
        torch.set_num_threads(2)
        model, loading = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation="eager", output_loading_info=True
        )
        assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        self.model = model.eval()
        _round_embedding_scale(self.model)

    def whole(self, run: Run) -> F32:
        positions = torch.arange(run.first, run.first + len(run.tokens))[None]
        with torch.inference_mode():
            out = self.model(torch.tensor([run.tokens]), position_ids=positions, logits_to_keep=run.keep)
        return _float32(out.logits)

    def steps(self, run: Run) -> F32:
        parts = [part for _, part in self._walk(run.tokens[: run.prompt], iter(run.tokens[run.prompt :]))]
        return np.concatenate(parts)[-run.keep :]

    def greedy(self, run: Run) -> list[int]:
        drawn: list[int] = []
        for _, logits in self._walk(run.tokens, iter(drawn)):
            drawn.append(int(logits[-1].argmax()))
            if len(drawn) == run.greedy:
                break
        return drawn

    def _walk(self, prompt: Sequence[int], following: Iterator[int]) -> Iterator[tuple[int, F32]]:
        """Logits of the prompt, then of each following token, through the cache."""
        tokens, past = list(prompt), transformers.DynamicCache(config=self.model.config)
        while True:
            with torch.inference_mode():
                out = self.model(torch.tensor([tokens]), past_key_values=past, use_cache=True)
            yield len(tokens), _float32(out.logits)
            token = next(following, None)
            if token is None:
                return
            tokens = [token]


def _round_embedding_scale(model: Any) -> None:
    """As the models that were published have it: in BF16."""
    embedding = model.model.embed_tokens
    if hasattr(embedding, "embed_scale"):
        embedding.embed_scale = embedding.embed_scale.to(torch.bfloat16).to(embedding.weight.dtype)


def _float32(logits: Any) -> F32:
    array: F32 = logits[0].float().numpy()
    return array


def errors(logits: F32, expected: F64) -> tuple[float, float]:
    """Maximum and RMS."""
    assert logits.shape == expected.shape
    error = logits - expected
    return float(np.abs(error).max()), math.sqrt(np.mean(error**2))


@pytest.fixture(params=RUNS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def expected(checkpoints: Checkpoints, name: str) -> F64:
    run = RUNS[name][1]
    reference = Reference(checkpoints.path(name), run.context)
    logits: F64 = reference.forward(run.tokens, first=run.first, rows=slice(-run.keep, None))
    assert reference.margin > LEAST_MARGIN, "float32 may choose another expert: take other weights"
    return logits


@pytest.mark.parametrize(("kv", "dtype", "factor"), [("f32", "float32", 2), ("bf16", "bfloat16", 1)])
def test_errors_of_the_logits(
    checkpoints: Checkpoints, penstock: Any, name: str, expected: F64, kv: str, dtype: str, factor: int
) -> None:
    run, ours = RUNS[name][1], penstock[name, kv]
    theirs = Transformers(checkpoints.path(name, single=True), getattr(torch, dtype))
    compared = {"whole": theirs.whole(run)} | ({} if run.first else {"steps": theirs.steps(run)})
    for way, logits in compared.items():
        our_worst, our_rms = errors(ours[way], expected)
        their_worst, their_rms = errors(logits, expected)
        told = f"{way}: worst {our_worst:.2e} and {their_worst:.2e}, rms {our_rms:.2e} and {their_rms:.2e}"
        print(f"{name}, {kv} KV, {told}")
        assert our_worst <= factor * their_worst, told
        assert our_rms <= factor * their_rms, told


@pytest.mark.parametrize("kv", ["f32", "bf16"])
@pytest.mark.parametrize("model", [name for name in RUNS if RUNS[name][1].greedy])
def test_greedy_tokens(checkpoints: Checkpoints, penstock: Any, model: str, kv: str) -> None:
    """They agree wherever the two largest logits are farther apart than twice what both sides may err together."""
    run, n = RUNS[model][1], len(RUNS[model][1].tokens)
    ours = penstock[model, kv]["greedy"].tolist()
    side = Transformers(checkpoints.path(model, single=True), torch.float32)
    expected = Reference(checkpoints.path(model)).forward(run.tokens + ours)
    error = sum(errors(logits, expected[:n])[0] for logits in (penstock[model, kv]["whole"], side.whole(run)))
    compared = 0
    for our_token, their_token, logits in zip(ours, side.greedy(run), expected[n - 1 : -1], strict=True):
        second, first = np.sort(logits)[-2:]
        if first - second > 2 * error:
            assert our_token == their_token == int(logits.argmax())
            compared += 1
        elif our_token != their_token:
            break  # a tie as far as rounding goes; what follows has another history
    # With rounded keys and values some random model has a near tie at once.
    assert compared >= GREEDY // 2 or kv == "bf16"


@pytest.mark.parametrize("name", ["gqa-4", "rope-linear", "rope-llama3", "rope-parameters", "demo", *FAMILY_CASES])
def test_inverse_frequencies(checkpoints: Checkpoints, name: str) -> None:
    """Those of `transformers`, but for its powers, which may be off by a unit in the last place."""
    config = open_checkpoint(checkpoints.path(name)).config
    rotary = Transformers(checkpoints.path(name, single=True), torch.float32).model.model.rotary_emb
    if rotary is None:
        assert not config.ropes
        return
    layers = {"main": "full_attention_", "local": "sliding_attention_"} if config.local_rope is not None else {}
    for which, rope in config.for_context(config.usual_context).ropes.items():
        ours = inverse_frequencies(rope, config.head_dim)
        theirs = getattr(rotary, f"{layers.get(which, '')}inv_freq").numpy()
        assert ours.dtype == theirs.dtype == np.float32
        assert (np.abs(ours - theirs) <= 2 * np.spacing(theirs)).all()
        factor = getattr(rotary, f"{layers[which]}attention_scaling" if layers else "attention_scaling")
        assert np.float32(factor) == np.float32(rope.attention_factor)


def test_inverse_frequencies_of_llama_3_1_8b() -> None:
    """Bit by bit, where the powers agree."""
    rope = {"rope_theta": 500000.0} | LLAMA3
    config = transformers.LlamaConfig(head_dim=128, rope_parameters=rope, max_position_embeddings=131072)
    theirs = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config).inv_freq.numpy()
    ours = inverse_frequencies(RopeConfig(500000.0, "llama3", 8.0, 1.0, 4.0, 8192), 128)
    assert (np.abs(ours - theirs) <= np.spacing(theirs)).all()
    assert np.mean(ours == theirs) > 0.5
