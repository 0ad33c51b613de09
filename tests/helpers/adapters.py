"""LoRA adapters as PEFT saves them, with random weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from helpers.checkpoints import as_dtype, safetensors_bytes
from helpers.family_reading import matrices, read, text_side
from helpers.reference import F64, read_safetensors

CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "base",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_dropout": 0.05,
    "modules_to_save": None,
    "peft_version": "0.21.2",
    "use_dora": False,
    "use_rslora": False,
}


@dataclass(frozen=True)
class LoraCase:
    """A random adapter: rank and alpha, what a module has instead, and which parts of the layers it is of."""

    rank: int = 4
    alpha: float = 12
    ranks: Mapping[str, int] = field(default_factory=dict)
    """By the end of a module's name, from a dot on, as rank_pattern has it."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    parts: tuple[str, ...] = ()
    """Ends of modules' names; none: all."""
    dtype: str = "F32"
    config: Mapping[str, Any] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        return next((rank for end, rank in self.ranks.items() if module.endswith(f".{end}")), self.rank)

    def scale_of(self, module: str) -> float:
        alpha = next((alpha for end, alpha in self.alphas.items() if module.endswith(f".{end}")), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def content(self, modules: list[str]) -> dict[str, Any]:
        """adapter_config.json."""
        return CONFIG | {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "rank_pattern": dict(self.ranks),
            "alpha_pattern": dict(self.alphas),
            "use_rslora": self.rslora,
            "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
            **self.config,
        }

    def write(self, path: Path, model: Path, seed: int = 0, size: float = 0.3) -> Path:
        """For the checkpoint `model`; what it adds is about `size` of what the matrices give."""
        rng, tensors = np.random.default_rng(seed), dict[str, np.ndarray]()
        shapes = adaptable(model)
        modules = [m for m in shapes if not self.parts or m.endswith(self.parts)]
        for module in modules:
            outputs, inputs = shapes[module]
            rank, scale = self.rank_of(module), self.scale_of(module)
            spread = size / (scale * math.sqrt(rank) * math.sqrt(inputs))
            for letter, values in (
                ("A", rng.standard_normal((rank, inputs))),
                ("B", rng.standard_normal((outputs, rank)) * spread),
            ):
                tensors[key(module, letter)] = as_dtype(values.astype(np.float32), self.dtype)
        return write_adapter(path, self.content(modules), tensors)


def write_adapter(path: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Path:
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps(config))
    (path / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors, {"format": "pt"}))
    return path


def key(module: str, letter: str) -> str:
    return f"base_model.model.{module}.lora_{letter}.weight"


def adaptable(model: Path) -> dict[str, tuple[int, int]]:
    """Shapes of the matrices of a checkpoint's layers, by the modules' names."""
    config = json.loads((model / "config.json").read_text())
    reading, own = read(config), text_side(config)
    layers = {layer: matrices(own, reading, layer) for layer in range(own["num_hidden_layers"])}
    return {f"model.layers.{layer}.{name}": shape for layer, found in layers.items() for name, shape in found.items()}


def read_adapter(path: Path, case: LoraCase) -> dict[str, tuple[F64, F64, float]]:
    """A, B and s by module, in float64."""
    tensors = read_safetensors(path / "adapter_model.safetensors")
    modules = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in tensors}
    return {m: (tensors[key(m, "A")], tensors[key(m, "B")], float(np.float32(case.scale_of(m)))) for m in modules}
