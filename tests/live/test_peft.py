"""Adapters that PEFT saves: Penstock is as near to the float64 reference through them as PEFT is.

As in test_transformers.py: with f32 KV the errors are at most twice PEFT's in float32, with bf16 KV below PEFT's in
bfloat16. PEFT itself writes the files, its own choice of ranks and factors included.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.cases import CASES, random_tokens
from helpers.reference import F32, F64, Reference, read_safetensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

TOKENS = random_tokens(48, 61)
ALL = "all-linear"


@dataclass(frozen=True)
class Run:
    """A model, and how PEFT is asked for an adapter."""

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    """Of the adapter's files."""


RUNS = {
    "llama": Run("gqa-4", {"r": 4, "lora_alpha": 10, "target_modules": ALL}),
    "llama, biases, rslora": Run("biases", {"r": 6, "lora_alpha": 5, "use_rslora": True, "target_modules": ALL}),
    "llama, patterns": Run(
        "gqa-4",
        {
            "r": 3,
            "lora_alpha": 7,
            "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj", "up_proj"],
            "rank_pattern": {"q_proj": 5, r"layers\.[01]\.mlp\.down_proj": 9, "^model.layers.1.self_attn.v_proj": 2},
            "alpha_pattern": {"layers.0.self_attn.o_proj": 20, "proj": 1, "(up|down)_proj": 3},
        },
    ),
    "llama, patterns, rslora": Run(
        "gqa-4",
        {"r": 8, "lora_alpha": 2, "use_rslora": True, "rank_pattern": {"k_proj": 17}, "target_modules": ["k_proj"]},
        "bfloat16",
    ),
    "qwen2": Run("qwen2-window", {"r": 16, "lora_alpha": 16, "target_modules": ALL}, "bfloat16"),
    "qwen3": Run("qwen3", {"r": 1, "lora_alpha": 2, "target_modules": ["q_proj", "k_proj"]}),
    "gemma3": Run("gemma3", {"r": 4, "lora_alpha": 8, "target_modules": ALL}),
    "phi3, fused": Run("phi3", {"r": 4, "lora_alpha": 8, "target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}),
    "phi3, fused, patterns": Run(
        "phi3", {"r": 4, "target_modules": ALL, "rank_pattern": {"qkv_proj": 6}, "alpha_pattern": {"up_proj": 100}}
    ),
    "granite 4, fused": Run("granite-4", {"r": 4, "lora_alpha": 32, "target_modules": ["input_linear", "o_proj"]}),
    "olmo2": Run("olmo2", {"r": 4, "layers_to_transform": [1], "target_modules": ["o_proj", "gate_proj"]}),
    "gaussian": Run("tied", {"r": 4, "init_lora_weights": "gaussian", "target_modules": ["v_proj"]}),
}


class Saved:
    """Each run's model, the adapter that PEFT saved for it, and what is to come of both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.factors: dict[str, dict[str, float]] = {}
        for name, run in RUNS.items():
            CASES[run.model].write(folder / name / "model")
            torch.manual_seed(len(name))
            model = peft.get_peft_model(
                base(folder / name / "model"), peft.LoraConfig(task_type="CAUSAL_LM", **run.options)
            )
            self.factors[name] = {
                module.removeprefix("base_model.model."): layer.scaling["default"]
                for module, layer in model.named_modules()
                if isinstance(layer, peft.tuners.lora.LoraLayer) and "default" in layer.lora_A
            }
            for parameter, values in model.named_parameters():
                if "lora_B" in parameter:
                    values.data = 0.2 * torch.randn_like(values) / math.sqrt(values.shape[1])
            model.to(getattr(torch, run.dtype)).save_pretrained(folder / name / "style")

    def adapter(self, name: str) -> dict[str, tuple[F64, F64, float]]:
        """A and B from the file, the factor from PEFT's own layers."""
        tensors = read_safetensors(self.folder / name / "style" / "adapter_model.safetensors")
        parts = {
            module: [tensors[f"base_model.model.{module}.lora_{letter}.weight"] for letter in "AB"]
            for module in self.factors[name]
        }
        assert len(tensors) == 2 * len(parts)
        return {module: (a, b, float(np.float32(self.factors[name][module]))) for module, (a, b) in parts.items()}


def base(path: Path, dtype: Any = None) -> Any:
    torch.set_num_threads(2)
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype or torch.float32, attn_implementation="eager"
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("adapters"))


SCRIPT = """
import json, sys, warnings
import numpy as np
from penstock import LLM
from penstock.errors import CheckpointWarning
warnings.simplefilter("error", CheckpointWarning)
for job in json.load(open(sys.argv[1])):
    with LLM.open(job["model"], kv_dtype=job["kv"], adapters=[job["adapter"]], draft="none") as llm:
        np.save(job["out"], llm.logits(job["tokens"], adapter="style"))
"""


@pytest.fixture(scope="module")
def penstock(saved: Saved) -> dict[tuple[str, str], F32]:
    """Penstock's logits by name and KV type, all from one process, which torch is not in."""
    outs = {(name, kv): saved.folder / f"{name} {kv}.npy" for name in RUNS for kv in ("f32", "bf16")}
    jobs = [
        {"model": f"{saved.folder / name / 'model'}", "adapter": f"{saved.folder / name / 'style'}"}
        | {"kv": kv, "out": str(out), "tokens": TOKENS}
        for (name, kv), out in outs.items()
    ]
    (saved.folder / "jobs.json").write_text(json.dumps(jobs))
    subprocess.run([sys.executable, "-c", SCRIPT, str(saved.folder / "jobs.json")], check=True)
    return {key: np.load(out) for key, out in outs.items()}


def with_peft(path: Path, dtype: Any) -> F32:
    """PEFT's logits."""
    model = peft.PeftModel.from_pretrained(base(path / "model", dtype), path / "style").to(dtype).eval()
    inner = model.base_model.model
    if hasattr(inner.model.embed_tokens, "embed_scale"):  # as the models that were published have it: in BF16
        scale = inner.model.embed_tokens.embed_scale
        inner.model.embed_tokens.embed_scale = scale.to(torch.bfloat16).to(dtype)
    with torch.inference_mode():
        logits: F32 = model(torch.tensor([TOKENS])).logits[0].float().numpy()
    return logits


def errors(logits: F32, expected: F64) -> tuple[float, float]:
    """Maximum and RMS."""
    assert logits.shape == expected.shape
    error = logits - expected
    return float(np.abs(error).max()), math.sqrt(np.mean(error**2))


@pytest.mark.parametrize(("kv", "dtype", "factor"), [("f32", "float32", 2), ("bf16", "bfloat16", 1)])
@pytest.mark.parametrize("name", RUNS)
def test_errors_of_the_logits(
    saved: Saved, penstock: dict[tuple[str, str], F32], name: str, kv: str, dtype: str, factor: int
) -> None:
    path = saved.folder / name
    expected = Reference(path / "model", adapter=saved.adapter(name)).forward(TOKENS)
    plain = Reference(path / "model").forward(TOKENS)
    assert np.abs(expected - plain).max() > 1e-3, "the adapter changes nothing"
    our_worst, our_rms = errors(penstock[name, kv], expected)
    their_worst, their_rms = errors(with_peft(path, getattr(torch, dtype)), expected)
    told = f"worst {our_worst:.2e} and {their_worst:.2e}, rms {our_rms:.2e} and {their_rms:.2e}"
    print(f"{name}, {kv} KV: {told}")
    assert our_worst <= factor * their_worst, told
    assert our_rms <= factor * their_rms, told
