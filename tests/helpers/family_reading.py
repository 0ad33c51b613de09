"""A second reading of what a config.json means, in the tests' own words: flags of a layer, shapes, frequencies.

Written from the families' published descriptions, not from src; configs of tests name every key that counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

PRE = ("input_layernorm", None, "post_attention_layernorm", None)
POST = (None, "post_attention_layernorm", None, "post_feedforward_layernorm")
AROUND = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass
class Reading:
    """The flags of one model."""

    head_dim: int
    norms: tuple[str | None, str | None, str | None, str | None] = PRE
    one_more: bool = False
    """Norms multiply by 1 + weight."""
    qk_norm: str = ""
    """"head", "all", or neither."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    gelu: bool = False
    embedding: float = 1.0
    residual: float = 1.0
    scale: float = 0.0
    score_cap: float = 0.0
    logits_over: float = 1.0
    logits_cap: float = 0.0
    windows: list[int] = field(default_factory=list)
    """Of each layer; 0 sees everything."""
    ropes: list[str] = field(default_factory=list)
    """Of each layer: "main", "local" or "none"."""
    fused_qkv: bool = False
    fused_gate_up: bool = False
    inner: int = 0
    mixtures: list[bool] = field(default_factory=list)
    """Of each layer: whether its MLP is a mixture of experts."""
    experts: int = 0
    chosen: int = 0
    expert_inner: int = 0
    expert_names: tuple[str, str, str, str] = ("mlp", "gate_proj", "up_proj", "down_proj")
    """What they are in, and their parts."""
    sigmoid: bool = False
    renormalized: bool = False
    scaling: float = 1.0
    groups: tuple[int, int] = (1, 1)
    """How many there are, and how many are chosen from."""
    choice_bias: bool = False
    shared: str = ""
    """The MLP beside them."""
    shared_inner: int = 0
    shared_gate: bool = False
    mlp: tuple[str, str, str, str] = ("mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj", "mlp.down_proj")


def read(config: Mapping[str, Any]) -> Reading:
    """What `config` means: the text side, where there are others."""
    config = text_side(config)
    kind, layers = config["model_type"], config["num_hidden_layers"]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    reading = Reading(
        head_dim,
        scale=head_dim**-0.5,
        windows=[0] * layers,
        ropes=["main"] * layers,
        mixtures=[False] * layers,
        inner=config["intermediate_size"],
        qkv_bias=bool(config.get("attention_bias")),
        o_bias=bool(config.get("attention_bias")),
        mlp_bias=bool(config.get("mlp_bias")),
    )
    globals()[f"_{kind}"](config, reading)
    return reading


def text_side(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("text_config") or config


def _sliding(config: Mapping[str, Any], reading: Reading) -> list[bool]:
    """Which layers have windows, and those of these; by `layer_types`, which tests' configs give."""
    sliding = [kind == "sliding_attention" for kind in config.get("layer_types") or ["full"] * len(reading.windows)]
    reading.windows = [config["sliding_window"] if slides else 0 for slides in sliding]
    return sliding


def _llama(config: Mapping[str, Any], reading: Reading) -> None:
    pass


def _qwen2(config: Mapping[str, Any], reading: Reading) -> None:
    reading.qkv_bias, reading.o_bias = True, False
    _sliding(config, reading)


def _qwen3(config: Mapping[str, Any], reading: Reading) -> None:
    reading.qk_norm = "head"
    _sliding(config, reading)


def _mistral(config: Mapping[str, Any], reading: Reading) -> None:
    reading.windows = [config["sliding_window"] or 0] * len(reading.windows)


def _smollm3(config: Mapping[str, Any], reading: Reading) -> None:
    reading.ropes = ["main" if rope else "none" for rope in config["no_rope_layers"]]
    _sliding(config, reading)


def _olmo2(config: Mapping[str, Any], reading: Reading) -> None:
    reading.norms, reading.qk_norm = POST, "all"


def _olmo3(config: Mapping[str, Any], reading: Reading) -> None:
    _olmo2(config, reading)
    reading.ropes = ["local" if slides else "main" for slides in _sliding(config, reading)]


def _granite(config: Mapping[str, Any], reading: Reading) -> None:
    reading.embedding, reading.residual = config["embedding_multiplier"], config["residual_multiplier"]
    reading.scale, reading.logits_over = config["attention_multiplier"], config["logits_scaling"]


def _granitemoehybrid(config: Mapping[str, Any], reading: Reading) -> None:
    _granite(config, reading)
    reading.fused_gate_up, reading.inner = True, config["shared_intermediate_size"]
    reading.mlp = ("", "", "shared_mlp.input_linear", "shared_mlp.output_linear")
    if config.get("position_embedding_type") != "rope":
        reading.ropes = ["none"] * len(reading.ropes)


def _exaone4(config: Mapping[str, Any], reading: Reading) -> None:
    reading.norms, reading.qk_norm = POST, "head"
    sliding = _sliding(config, reading)
    if config["sliding_window"]:
        reading.ropes = ["main" if slides else "none" for slides in sliding]


def _gemma2(config: Mapping[str, Any], reading: Reading) -> None:
    reading.norms, reading.one_more, reading.gelu = AROUND, True, True
    root = np.array([math.sqrt(config["hidden_size"])], np.float32).view(np.uint32)
    rounded = (root + 0x7FFF + (root >> 16 & 1)) & 0xFFFF0000
    reading.embedding = float(rounded.astype(np.uint32).view(np.float32)[0])
    reading.scale = config["query_pre_attn_scalar"] ** -0.5
    reading.score_cap = config.get("attn_logit_softcapping") or 0
    reading.logits_cap = config.get("final_logit_softcapping") or 0
    _sliding(config, reading)


def _gemma3_text(config: Mapping[str, Any], reading: Reading) -> None:
    _gemma2(config, reading)
    reading.qk_norm = "head"
    reading.ropes = ["local" if window else "main" for window in reading.windows]


def _phi3(config: Mapping[str, Any], reading: Reading) -> None:
    reading.fused_qkv, reading.fused_gate_up = True, True
    reading.windows = [config.get("sliding_window") or 0] * len(reading.windows)


def _mixture(config: Mapping[str, Any], reading: Reading, count: str, inner: str) -> None:
    reading.experts, reading.chosen, reading.expert_inner = config[count], config["num_experts_per_tok"], config[inner]
    reading.renormalized = config.get("norm_topk_prob", False)
    step, dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    reading.mixtures = [i not in dense and (i + 1) % step == 0 for i in range(len(reading.mixtures))]


def _qwen3_moe(config: Mapping[str, Any], reading: Reading) -> None:
    reading.qk_norm = "head"
    _mixture(config, reading, "num_experts", "moe_intermediate_size")


def _qwen2_moe(config: Mapping[str, Any], reading: Reading) -> None:
    reading.qkv_bias = config.get("qkv_bias", True)
    _sliding(config, reading)
    _mixture(config, reading, "num_experts", "moe_intermediate_size")
    reading.shared, reading.shared_gate = "mlp.shared_expert", True
    reading.shared_inner = config["shared_expert_intermediate_size"]


def _olmoe(config: Mapping[str, Any], reading: Reading) -> None:
    reading.qk_norm = "all"
    _mixture(config, reading, "num_experts", "intermediate_size")


def _mixtral(config: Mapping[str, Any], reading: Reading) -> None:
    reading.windows = [config["sliding_window"] or 0] * len(reading.windows)
    _mixture(config, reading, "num_local_experts", "intermediate_size")
    reading.expert_names, reading.renormalized = ("block_sparse_moe", "w1", "w3", "w2"), True


def _glm4_moe(config: Mapping[str, Any], reading: Reading) -> None:
    reading.o_bias = False
    reading.qk_norm = "head" if config.get("use_qk_norm") else ""
    _mixture(config, reading, "n_routed_experts", "moe_intermediate_size")
    reading.mixtures = [i >= config["first_k_dense_replace"] for i in range(len(reading.mixtures))]
    reading.sigmoid = reading.choice_bias = True
    reading.scaling, reading.groups = config["routed_scaling_factor"], (config["n_group"], config["topk_group"])
    reading.shared, reading.shared_inner = "mlp.shared_experts", config["n_shared_experts"] * reading.expert_inner


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape, by the names that the family's files have."""
    reading, config = read(config), text_side(config)
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for norm in reading.norms:
            if norm is not None:
                shapes[f"{prefix}{norm}.weight"] = (hidden,)
        for name, shape in matrices(config, reading, layer).items():
            shapes[f"{prefix}{name}.weight"] = shape
            if has_bias(reading, name):
                shapes[f"{prefix}{name}.bias"] = shape[:1]
        if reading.mixtures[layer] and reading.choice_bias:
            shapes[f"{prefix}{reading.expert_names[0]}.gate.e_score_correction_bias"] = (reading.experts,)
        if reading.qk_norm:
            heads = [config["num_attention_heads"], config["num_key_value_heads"]]
            for name, count in zip("qk", heads, strict=True):
                length = reading.head_dim * (count if reading.qk_norm == "all" else 1)
                shapes[f"{prefix}self_attn.{name}_norm.weight"] = (length,)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def matrices(config: Mapping[str, Any], reading: Reading, layer: int = 0) -> dict[str, tuple[int, int]]:
    hidden, inner = config["hidden_size"], reading.inner
    queries = config["num_attention_heads"] * reading.head_dim
    keys = config["num_key_value_heads"] * reading.head_dim
    gate, up, gate_up, down = reading.mlp
    attention = {"self_attn.q_proj": (queries, hidden)}
    attention |= {"self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden)}
    if reading.fused_qkv:
        attention = {"self_attn.qkv_proj": (queries + 2 * keys, hidden)}
    if reading.mixtures[layer]:
        mixture = _mixture_matrices(hidden, reading)
        return attention | {"self_attn.o_proj": (hidden, queries)} | mixture
    mlp = {gate_up: (2 * inner, hidden)} if reading.fused_gate_up else {gate: (inner, hidden), up: (inner, hidden)}
    return attention | {"self_attn.o_proj": (hidden, queries)} | mlp | {down: (hidden, inner)}


def _mixture_matrices(hidden: int, reading: Reading) -> dict[str, tuple[int, int]]:
    within, gate, up, down = reading.expert_names
    found = {f"{within}.gate": (reading.experts, hidden)}
    mlps = [(f"{within}.experts.{number}", reading.expert_inner) for number in range(reading.experts)]
    if reading.shared_gate:
        found[f"{reading.shared}_gate"] = (1, hidden)
    for name, inner in [*mlps, *([(reading.shared, reading.shared_inner)] if reading.shared else [])]:
        found |= {f"{name}.{gate}": (inner, hidden), f"{name}.{up}": (inner, hidden), f"{name}.{down}": (hidden, inner)}
    return found


def has_bias(reading: Reading, name: str) -> bool:
    """Whether a matrix of a layer has one."""
    if "experts" in name or "expert_gate" in name or name.endswith(("mlp.gate", "moe.gate")):
        return False
    if "mlp" in name:
        return reading.mlp_bias
    return reading.o_bias if "o_proj" in name else reading.qkv_bias


def frequencies(config: Mapping[str, Any], context: int = 0) -> dict[str, tuple[F32, float]]:
    """Inverse frequencies float32 [turning / 2] and the factor of cosines and sines, for each rope; every step in
    float32, as `transformers` takes it, powers correctly rounded. `context`: positions that a sequence may have."""
    reading, config = read(config), text_side(config)
    rope = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    local = {"rope_theta": config.get("rope_local_base_freq", config.get("rope_theta"))}
    if "full_attention" in rope:
        rope, local = rope["full_attention"], rope["sliding_attention"]
    if config["model_type"] == "phi3":
        rope["original_max_position_embeddings"] = config.get("original_max_position_embeddings")
        if context > (rope["original_max_position_embeddings"] or context):
            rope["short_factor"] = rope["long_factor"]
    if config.get("partial_rotary_factor"):
        rope["partial_rotary_factor"] = config["partial_rotary_factor"]
    main = rope_frequencies(rope, config, reading.head_dim)
    return {"main": main, "local": rope_frequencies(local, config, reading.head_dim)}


def rope_frequencies(rope: Mapping[str, Any], config: Mapping[str, Any], head_dim: int) -> tuple[F32, float]:
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    turning = int(head_dim * rope.get("partial_rotary_factor", 1))
    exponents = (np.arange(0, turning, 2) / turning).astype(np.float32)
    powers = np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    inv_freq = np.float32(1) / powers
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "linear":
        return inv_freq / np.float32(rope["factor"]), 1.0
    if kind == "llama3":
        return np.array([_llama3_scaled(f, rope) for f in inv_freq], np.float32), 1.0
    if kind == "yarn":
        return _yarn(powers, rope, theta, turning)
    if kind == "longrope":
        most, original = config["max_position_embeddings"], rope["original_max_position_embeddings"]
        factors = np.array(rope["short_factor"], np.float32)
        return np.float32(1) / (factors * powers), math.sqrt(1 + math.log(most / original) / math.log(original))
    return inv_freq, 1.0


def _llama3_scaled(frequency: np.float32, rope: Mapping[str, Any]) -> np.float32:
    """One inverse frequency after Llama 3.1's scaling."""
    one, factor = np.float32(1), np.float32(rope["factor"])
    low, high = np.float32(rope["low_freq_factor"]), np.float32(rope["high_freq_factor"])
    context = np.float32(rope["original_max_position_embeddings"])
    wavelength = one / frequency * np.float32(2 * math.pi)
    if wavelength < context / high:
        return frequency
    if wavelength > context / low:
        return np.float32(frequency / factor)
    smooth = (one / wavelength * context - low) / (high - low)
    return np.float32((one - smooth) * frequency / factor + smooth * frequency)


def _yarn(powers: F32, rope: Mapping[str, Any], theta: float, turning: int) -> tuple[F32, float]:
    def dimension(turns: float) -> float:
        positions = rope["original_max_position_embeddings"]
        return turning * math.log(positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(rope.get("beta_fast", 32))), 0)
    high: float = min(math.ceil(dimension(rope.get("beta_slow", 1))), turning - 1)
    high = high + 0.001 if low == high else high
    one, factor = np.float32(1), np.float32(rope["factor"])
    out = []
    for i, power in enumerate(powers):
        ramp = np.clip((np.float32(i) - np.float32(low)) / (np.float32(high) - np.float32(low)), np.float32(0), one)
        kept = one - ramp
        out.append(one / (factor * power) * (one - kept) + one / power * kept)
    return np.array(out, np.float32), rope.get("attention_factor") or 0.1 * math.log(rope["factor"]) + 1
