"""The families that GGUF files are of: what each is called in a config.json, and how its tensors are stored.

Sources: gguf-py/gguf/{constants,tensor_mapping}.py and conversion/*.py of llama.cpp. A new family is one entry, with
keys of its metadata that no other has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from penstock.architectures.names import EMBEDDING, FINAL_NORM, HEAD

_WHOLE = {"token_embd.weight": EMBEDDING, "output_norm.weight": FINAL_NORM, "output.weight": HEAD}
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}

ROPE_FREQS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
NO_WEIGHTS = (ROPE_FREQS, LONG_FACTORS, SHORT_FACTORS)
"""Tensors that are a part of the config."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFamily:
    """One family: its name in config.json, and how its GGUF differs from the others'."""

    model_type: str
    architecture: str
    in_pairs: bool = False
    """Whether the rows of queries and keys lie interleaved within each head (stored.py)."""
    norm_shift: float = 0.0
    """What the weights of norms have been raised by."""
    always_biased: bool = False
    """Whether all models have biases, of which a config.json does not tell."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Parts of a layer that are called otherwise than in other families."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Its own keys of the metadata, without the family's name, and what they are in a config.json."""
    fixed: Mapping[str, object] = field(default_factory=dict)
    """What its config.json has and the metadata never says."""

    def canonical(self, name: str) -> str | None:
        """The canonical name of a tensor of the file; None for one that is no part of a model."""
        if name in _WHOLE:
            return _WHOLE[name]
        match = re.fullmatch(r"blk\.(0|[1-9][0-9]{0,8})\.([a-z_]+)\.(weight|bias)", name)
        part = match and (self.parts.get(match[2]) or _PARTS.get(match[2]))
        return f"model.layers.{match[1]}.{part}.{match[3]}" if match and part else None


_GEMMA = {"ffn_norm": "pre_feedforward_layernorm"}
_SOFTCAPS = {"final_logit_softcapping": "final_logit_softcapping"}

FAMILIES: Mapping[str, GgufFamily] = MappingProxyType(
    {
        "llama": GgufFamily(model_type="llama", architecture="LlamaForCausalLM", in_pairs=True),
        "qwen2": GgufFamily(model_type="qwen2", architecture="Qwen2ForCausalLM", always_biased=True),
        "qwen3": GgufFamily(model_type="qwen3", architecture="Qwen3ForCausalLM"),
        "smollm3": GgufFamily(model_type="smollm3", architecture="SmolLM3ForCausalLM", in_pairs=True),
        "granite": GgufFamily(
            model_type="granite",
            architecture="GraniteForCausalLM",
            in_pairs=True,
            keys={
                "attention.scale": "attention_multiplier",
                "embedding_scale": "embedding_multiplier",
                "residual_scale": "residual_multiplier",
                "logit_scale": "logits_scaling",
            },
        ),
        "phi3": GgufFamily(
            model_type="phi3",
            architecture="Phi3ForCausalLM",
            parts={"ffn_up": "mlp.gate_up_proj"},
            keys={"attention.sliding_window": "sliding_window"},
            fixed={"sliding_window": None},
        ),
        "olmo2": GgufFamily(model_type="olmo2", architecture="Olmo2ForCausalLM"),
        "exaone4": GgufFamily(
            model_type="exaone4",
            architecture="Exaone4ForCausalLM",
            keys={"attention.sliding_window": "sliding_window"},
            fixed={"sliding_window": None},
        ),
        "gemma2": GgufFamily(
            model_type="gemma2",
            architecture="Gemma2ForCausalLM",
            norm_shift=1.0,
            parts=_GEMMA,
            keys={
                **_SOFTCAPS,
                "attn_logit_softcapping": "attn_logit_softcapping",
                "attention.sliding_window": "sliding_window",
            },
            fixed={"hidden_activation": "gelu_pytorch_tanh"},
        ),
        "gemma3": GgufFamily(
            model_type="gemma3_text",
            architecture="Gemma3ForCausalLM",
            norm_shift=1.0,
            parts=_GEMMA,
            keys={
                **_SOFTCAPS,
                "attention.sliding_window": "sliding_window",
                "rope.freq_base_swa": "rope_local_base_freq",
            },
            fixed={"hidden_activation": "gelu_pytorch_tanh"},
        ),
    }
)
"""By `general.architecture`. Whether Penstock runs one, its own table of families decides (architectures/)."""
