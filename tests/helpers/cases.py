"""The checkpoints that the whole model is tested with: what varies between models, one case each, all tiny."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import penstock
from helpers.checkpoints import tiny_config, write_checkpoint
from penstock.text.tokenizer import Tokenizer

DEMO = Path(penstock.__file__).parent / "data" / "demo"

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


@dataclass(frozen=True)
class Case:
    """A tiny random checkpoint: changes to `tiny_config`, the weights' type, the layout of the files."""

    config: dict[str, Any]
    dtype: str = "BF16"
    files: dict[str, Any] = field(default_factory=dict)
    nulls: tuple[str, ...] = ()
    """Keys that are there, with null."""

    def write(self, path: Path, seed: int = 0) -> Path:
        config = {key: value for key, value in tiny_config(**self.config).items() if value is not None}
        config |= dict.fromkeys(self.nulls)
        write_checkpoint(path, config, dtype=self.dtype, seed=seed, **self.files)
        return path


def _attention(heads: int, kv_heads: int, head_dim: int = 8) -> dict[str, int]:
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}


def _family(model_type: str, architecture: str, **config: Any) -> dict[str, Any]:
    """Changes that make another family of a Llama; keys with None are left out of the file."""
    without = {"attention_bias": None, "mlp_bias": None}
    return without | {"model_type": model_type, "architectures": [architecture]} | config


SLIDING, FULL = "sliding_attention", "full_attention"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
GRANITE = {
    "attention_bias": True,
    "mlp_bias": True,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.3,
    "logits_scaling": 6.0,
}
GEMMA2 = _family(
    "gemma2",
    "Gemma2ForCausalLM",
    hidden_act=None,
    hidden_activation="gelu_pytorch_tanh",
    query_pre_attn_scalar=24,
    sliding_window=16,
    layer_types=[SLIDING, FULL],
    attn_logit_softcapping=2.0,
    final_logit_softcapping=1.5,
    tie_word_embeddings=True,
)
GEMMA3 = GEMMA2 | _family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    rope_theta=1e6,
    rope_local_base_freq=1e4,
    rope_scaling={"rope_type": "linear", "factor": 8.0},
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
)
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.5, 2.5],
    "long_factor": [1.0, 2.0, 9.0, 30.0],
}
PHI3 = _family("phi3", "Phi3ForCausalLM", sliding_window=None, pad_token_id=0)

QWEN2: dict[str, Any] = _family(
    "qwen2", "Qwen2ForCausalLM", use_sliding_window=False, sliding_window=128, max_window_layers=1
)
QWEN3 = _family("qwen3", "Qwen3ForCausalLM", attention_bias=False, use_sliding_window=False)

EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
QWEN3_MOE = _family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    attention_bias=False,
    use_sliding_window=False,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    router_aux_loss_coef=0.001,
    output_router_logits=False,
    **EXPERTS,
)
OLMOE = _family(
    "olmoe",
    "OlmoeForCausalLM",
    num_experts=8,
    num_experts_per_tok=3,
    norm_topk_prob=False,
    pad_token_id=0,
)
MIXTRAL = _family("mixtral", "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2, router_jitter_noise=0.0)
QWEN2_MOE = _family(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    shared_expert_intermediate_size=40,
    use_sliding_window=False,
    **EXPERTS | {"norm_topk_prob": False},
)
GLM4_MOE = _family(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    attention_bias=True,
    moe_intermediate_size=24,
    n_routed_experts=8,
    num_experts_per_tok=3,
    n_shared_experts=1,
    n_group=1,
    topk_group=1,
    norm_topk_prob=True,
    routed_scaling_factor=1.5,
    first_k_dense_replace=1,
    use_qk_norm=False,
    partial_rotary_factor=0.5,
    num_nextn_predict_layers=0,
)

MOE_CASES = {
    "qwen3-moe": Case(QWEN3_MOE | _attention(4, 2, 16)),
    "qwen3-moe-steps": Case(
        QWEN3_MOE
        | {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3], "norm_topk_prob": False}
        | {"tie_word_embeddings": True, "attention_bias": True}
    ),
    "olmoe": Case(OLMOE | _attention(4, 4)),
    "olmoe-renormalized": Case(OLMOE | {"norm_topk_prob": True}),
    "mixtral": Case(MIXTRAL, nulls=("sliding_window",)),
    "mixtral-window": Case(MIXTRAL | {"sliding_window": 17, "num_local_experts": 5}),
    "qwen2-moe": Case(QWEN2_MOE),
    "glm4-moe": Case(GLM4_MOE),
    "glm4-moe-groups": Case(
        GLM4_MOE
        | {"n_group": 4, "topk_group": 2, "use_qk_norm": True, "n_shared_experts": 2, "num_hidden_layers": 3}
        | {"attention_bias": False, "norm_topk_prob": False}
    ),
}
"""Mixtures of experts."""

FAMILY_CASES = {
    **MOE_CASES,
    "qwen2-window": Case(
        QWEN2 | {"use_sliding_window": True, "sliding_window": 20, "layer_types": [FULL, SLIDING]} | _attention(4, 2)
    ),
    "qwen3": Case(QWEN3 | _attention(4, 2, 16)),
    "qwen3-biases": Case(QWEN3 | {"attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-yarn": Case(QWEN3 | {"rope_scaling": YARN, "rope_theta": 1e6}),
    "mistral-v1": Case(_family("mistral", "MistralForCausalLM", sliding_window=17)),
    "mistral-nemo": Case(_family("mistral", "MistralForCausalLM") | _attention(4, 1, 12), nulls=("sliding_window",)),
    "smollm3": Case(
        _family(
            "smollm3",
            "SmolLM3ForCausalLM",
            num_hidden_layers=3,
            no_rope_layers=[1, 0, 1],
            pad_token_id=0,
            tie_word_embeddings=True,
        )
    ),
    "smollm3-window": Case(
        _family(
            "smollm3",
            "SmolLM3ForCausalLM",
            attention_bias=True,
            no_rope_layers=[1, 0],
            use_sliding_window=True,
            sliding_window=16,
            layer_types=[FULL, SLIDING],
            pad_token_id=0,
        )
    ),
    "olmo2": Case(_family("olmo2", "Olmo2ForCausalLM", pad_token_id=0) | _attention(4, 2, 8)),
    "olmo2-biases": Case(_family("olmo2", "Olmo2ForCausalLM", attention_bias=True, pad_token_id=0)),
    "olmo3": Case(
        _family(
            "olmo3",
            "Olmo3ForCausalLM",
            num_hidden_layers=3,
            sliding_window=16,
            layer_types=[SLIDING, FULL, SLIDING],
            rope_theta=5e5,
            rope_scaling=YARN | {"attention_factor": 1.2},
            pad_token_id=0,
        )
    ),
    "granite": Case(_family("granite", "GraniteForCausalLM", **GRANITE)),
    "granite-4": Case(
        _family(
            "granitemoehybrid",
            "GraniteMoeHybridForCausalLM",
            **GRANITE | {"mlp_bias": None, "attention_bias": False},
            layer_types=["attention", "attention"],
            num_local_experts=0,
            mamba_n_heads=4,
            shared_intermediate_size=40,
            position_embedding_type="rope",
            tie_word_embeddings=True,
        )
    ),
    "granite-4-no-rope": Case(
        _family(
            "granitemoehybrid",
            "GraniteMoeHybridForCausalLM",
            **GRANITE | {"mlp_bias": None, "attention_bias": None, "residual_multiplier": 1.0},
            layer_types=["attention", "attention"],
            num_local_experts=0,
            mamba_n_heads=4,
            shared_intermediate_size=48,
        )
    ),
    "exaone4": Case(_family("exaone4", "Exaone4ForCausalLM", layer_types=[FULL, FULL]), nulls=("sliding_window",)),
    "exaone4-window": Case(
        _family("exaone4", "Exaone4ForCausalLM", sliding_window=16, layer_types=[SLIDING, FULL], rope_scaling=LLAMA3)
    ),
    "gemma2": Case(GEMMA2),
    "gemma2-no-caps": Case(
        GEMMA2 | {"attention_bias": True, "tie_word_embeddings": False} | _attention(4, 1, 16),
        nulls=("attn_logit_softcapping", "final_logit_softcapping"),
    ),
    "gemma3": Case(GEMMA3 | {"num_hidden_layers": 3, "layer_types": [SLIDING, FULL, SLIDING]}),
    "gemma3-rope-parameters": Case(
        GEMMA3
        | {
            "rope_theta": None,
            "rope_local_base_freq": None,
            "rope_scaling": None,
            "rope_parameters": {
                FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                SLIDING: {"rope_type": "default", "rope_theta": 1e4},
            },
        }
    ),
    "phi3": Case(PHI3),
    "phi3-window": Case(PHI3 | {"sliding_window": 15, "tie_word_embeddings": True}),
    "phi3-longrope": Case(
        PHI3
        | {"rope_scaling": LONGROPE, "original_max_position_embeddings": 96, "max_position_embeddings": 512}
        | _attention(4, 2, 8)
    ),
    "phi4-mini": Case(
        PHI3
        | {"rope_scaling": LONGROPE, "original_max_position_embeddings": 96, "max_position_embeddings": 512}
        | {"partial_rotary_factor": 0.5, "hidden_size": 64}
        | _attention(4, 2, 16)
    ),
}
"""What sets the families apart from a Llama; windows are shorter than the tests' texts."""

CASES = {
    "gqa-1": Case(_attention(4, 4)),
    "gqa-4": Case(_attention(8, 2, 16)),
    "gqa-8": Case(_attention(8, 1)),
    "tied": Case({"tie_word_embeddings": True}),
    "odd-sizes": Case({"hidden_size": 40, "intermediate_size": 52, "vocab_size": 131} | _attention(4, 1, 10)),
    "odder-sizes": Case({"hidden_size": 21, "intermediate_size": 37, "vocab_size": 61} | _attention(3, 3, 6)),
    "rope-linear": Case({"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "rope-llama3": Case(
        {"rope_scaling": LLAMA3, "rope_theta": 500000.0, "max_position_embeddings": 131072} | _attention(2, 1, 32)
    ),
    "rope-parameters": Case(
        {
            "rope_parameters": LLAMA3
            | {"rope_theta": 500000.0, "original_max_position_embeddings": 64, "factor": 32.0},
            "rope_theta": None,
            "max_position_embeddings": 131072,
        }
        | _attention(2, 2, 32)
    ),
    "biases": Case({"attention_bias": True, "mlp_bias": True}),
    "attention-bias": Case({"attention_bias": True, "hidden_size": 36}),
    "qwen2": Case(QWEN2 | _attention(4, 2, 10)),
    "qwen2-tied": Case(QWEN2 | {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "f16": Case({}, "F16"),
    "f32": Case({"hidden_size": 40} | _attention(4, 2, 10), "F32"),
    "shards": Case({}, files={"layout": "numbered"}),
    "indexed": Case({"tie_word_embeddings": True}, files={"layout": "indexed", "shards": 5}),
    "split": Case({"num_hidden_layers": 3}, files={"layout": "split"}),
    "split-bare": Case({"attention_bias": True}, files={"layout": "split", "names": "bare"}),
    **FAMILY_CASES,
}


def random_tokens(count: int, vocab_size: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, vocab_size, count)]


def demo_tokens(count: int) -> list[int]:
    """Token ids of a text that the demo model's tokenizer knows how to read."""
    tokenizer = Tokenizer.open(DEMO)
    assert tokenizer is not None
    text = "def add(a, b):\n    return a + b\n\n\nclass Stack:\n    def push(self, x):\n        self.items.append(x)\n"
    return tokenizer.encode(text * (1 + count // 20))[:count]
