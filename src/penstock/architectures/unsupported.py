"""Families that Penstock does not run: what each has that Penstock lacks, and the nearest model that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.architectures.family import Family

_LATENT = "attention over a compressed cache (MLA)"
_EXPERTS = "a mixture of experts"
_LINEAR = "layers of linear attention, with a state in place of keys and values"
_MAMBA = "Mamba layers, with a state in place of keys and values"

_LACKS: Mapping[str, tuple[str, str]] = {
    "gpt_oss": ("4-bit experts and attention sinks", "Qwen3"),
    "deepseek_v2": (f"{_LATENT} and {_EXPERTS}", "DeepSeek-R1-Distill-Llama or -Qwen"),
    "deepseek_v3": (f"{_LATENT} and {_EXPERTS}", "DeepSeek-R1-Distill-Llama or -Qwen"),
    "deepseek_v32": (f"{_LATENT} and {_EXPERTS}", "DeepSeek-R1-Distill-Llama or -Qwen"),
    "kimi_k2": (f"{_LATENT} and {_EXPERTS}", "Qwen3"),
    "minicpm3": (_LATENT, "Qwen3"),
    "glm4": ("rope over pairs of neighbours", "Qwen3"),
    "glm4_moe_lite": (f"{_LATENT} and {_EXPERTS}", "Qwen3"),
    "gemma": ("the first Gemma's shape", "Gemma 2 or 3"),
    "gemma3n": ("embeddings for each layer", "Gemma 3"),
    "gemma4": ("keys and values of two shapes", "Gemma 3"),
    "gemma4_text": ("keys and values of two shapes", "Gemma 3"),
    "qwen3_next": (f"{_LINEAR}, and {_EXPERTS}", "Qwen3"),
    "qwen3_5": (_LINEAR, "Qwen3"),
    "qwen3_5_text": (_LINEAR, "Qwen3"),
    "qwen3_5_moe": (f"{_LINEAR}, and {_EXPERTS}", "Qwen3"),
    "qwen2_vl": ("a vision tower", "Qwen2.5"),
    "qwen2_5_vl": ("a vision tower", "Qwen2.5"),
    "qwen3_vl": ("a vision tower", "Qwen3"),
    "mllama": ("a vision tower and cross-attention", "Llama 3.1"),
    "llava": ("a vision tower", "Llama 3.1"),
    "llama4": (f"attention in chunks and {_EXPERTS}", "Llama 3.3"),
    "llama4_text": (f"attention in chunks and {_EXPERTS}", "Llama 3.3"),
    "ministral3": ("queries that are scaled by their position", "Mistral Small or Nemo"),
    "phimoe": (_EXPERTS, "Phi-3.5-mini"),
    "phi": ("layers whose attention and MLP stand side by side", "Phi-3 or 4"),
    "phi4_multimodal": ("vision and speech", "Phi-4-mini"),
    "granitemoe": (_EXPERTS, "Granite 3"),
    "mamba": (_MAMBA, "Llama 3.2"),
    "mamba2": (_MAMBA, "Llama 3.2"),
    "falcon_mamba": (_MAMBA, "Falcon3"),
    "falcon_h1": (_MAMBA, "Falcon3"),
    "jamba": (f"{_MAMBA}, and {_EXPERTS}", "Llama 3.1"),
    "bamba": (_MAMBA, "Llama 3.1"),
    "nemotron_h": (_MAMBA, "Llama 3.1"),
    "lfm2": ("short convolutions in place of attention", "SmolLM3"),
    "rwkv": ("a state in place of keys and values", "Llama 3.2"),
    "cohere": ("layers whose attention and MLP stand side by side", "Llama 3.1"),
    "cohere2": ("layers whose attention and MLP stand side by side", "Llama 3.1"),
    "starcoder2": ("an MLP without a gate", "Qwen2.5-Coder"),
    "gpt2": ("learned positions", "SmolLM2"),
    "gpt_neox": ("layers whose attention and MLP stand side by side", "SmolLM2"),
    "bert": ("layers that see what follows", "SmolLM2"),
    "t5": ("an encoder", "SmolLM2"),
    "internlm2": ("code of its own in place of a known architecture", "Qwen2.5"),
}
"""By model_type."""


def why_not(model_type: str | None, families: Sequence[Family]) -> str:
    """Why a model of this type is not run, and what is."""
    if model_type is not None and model_type in _LACKS:
        has, nearest = _LACKS[model_type]
        return f"It has {has}, which Penstock does not run. The nearest that it runs: {nearest}."
    return f"Penstock runs {'; '.join(family.known_as for family in families)}."
