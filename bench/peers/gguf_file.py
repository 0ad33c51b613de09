"""A BF16 GGUF of a Llama checkpoint, written tensor by tensor: no weight changes, matrices keep their type.

What the architecture "llama" of llama.cpp asks for: rows of q and k in the order of interleaved RoPE pairs, norms in
F32, and the scaling of RoPE's frequencies as a tensor of divisors. No tokenizer, only the vocabulary's size.

Sources: the GGUF specification in the ggml repository; the names and keys of the `gguf` package.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from checkpoint import Tensor, read_tensors

OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ROPE_FREQUENCIES = "rope_freqs.weight"


def gguf_name(name: str) -> str:
    """The name in a GGUF of a tensor of a Hugging Face checkpoint. Raises KeyError for one that Llama has not."""
    if name in OUTER:
        return OUTER[name]
    _, _, index, rest = name.split(".", 3)
    return f"blk.{index}.{INNER[rest.removesuffix('.weight')]}.weight"


def interleave(words: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Rows of [heads * dim, k]: within each head, row i of the first half before row i of the second."""
    halves = words.reshape(heads, 2, -1, words.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(words.shape)


def rope_divisors(config: dict[str, Any]) -> npt.NDArray[np.float32] | None:
    """What llama3 scaling divides each frequency by, [head_dim / 2]; None without scaling."""
    scaling = config.get("rope_scaling")
    if not scaling:
        return None
    dim = head_dim(config)
    frequencies = config["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    divisors: npt.NDArray[np.float32] = (1 / (kept + (1 - kept) / scaling["factor"])).astype(np.float32)
    return divisors


def head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def contents(name: str, tensor: Tensor, config: dict[str, Any]) -> npt.NDArray[Any]:
    """The array that goes into the file: norms as float32, matrices as bit patterns."""
    if len(tensor.shape) == 1:
        return tensor.floats()
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(gguf_name(name).split(".")[-2])
    return interleave(tensor.words(), config[heads]) if heads else tensor.words()


def write_gguf(model: Path, out: Path) -> None:
    """Write the checkpoint `model` to the file `out`; needs the `gguf` package, and memory for one tensor."""
    import gguf

    config = json.loads((model / "config.json").read_text())
    tensors = {name: tensor for name, tensor in read_tensors(model).items() if not name.endswith("inv_freq")}
    divisors = rope_divisors(config)
    writer = gguf.GGUFWriter(out, "llama")
    add_config(writer, config)
    if divisors is not None:
        writer.add_tensor_info(ROPE_FREQUENCIES, divisors.shape, divisors.dtype, divisors.nbytes)
    for name, tensor in tensors.items():
        dtype = gguf.GGMLQuantizationType["F32" if len(tensor.shape) == 1 else tensor.dtype]
        size = math.prod(tensor.shape) * (2 if dtype.name.endswith("16") else 4)
        writer.add_tensor_info(gguf_name(name), tensor.shape, np.dtype(np.float32), size, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if divisors is not None:
        writer.write_tensor_data(divisors)
    for name, tensor in tensors.items():
        writer.write_tensor_data(contents(name, tensor, config))
    writer.close()


def add_config(writer: Any, config: dict[str, Any]) -> None:
    """The architecture's keys, from a config.json."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
