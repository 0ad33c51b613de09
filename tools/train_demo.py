"""Train the demo pair: a target and a small draft of one tokenizer, both of the Llama architecture, on Python code.

The text is the running interpreter's own standard library without its tests, so that anyone can repeat it offline.
OUT/target and OUT/draft are written in BF16 in the Hugging Face layout, with the config.json keys of the Llama 3.1
release. Every 50th file is held out: its loss is printed, and OUT/heldout.txt keeps the text.

Needs torch, transformers and tokenizers. The model that ships with Penstock was trained for 60 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, EOT = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
SPECIAL_TOKENS = [BOS, EOS, "<|start_header_id|>", "<|end_header_id|>", EOT]
VOCAB_SIZE = 4096
CHAT_TEMPLATE = """\
{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>

{{ m['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}\
<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "lib2to3"}
HELD_OUT_EVERY = 50
HELD_OUT_TOKENS = 40_960

WINDOW = 256
BATCH = 16
PEAK_RATE = 3e-3
WARMUP_STEPS = 100
FINAL_RATE_SHARE = 0.05


@dataclass(frozen=True)
class Shape:
    """What differs between target and draft."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 2
    head_dim: int = 32

    def config(self, tokenizer: Tokenizer) -> LlamaConfig:
        return LlamaConfig(
            **vars(self),
            vocab_size=VOCAB_SIZE,
            max_position_embeddings=131_072,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.token_to_id(BOS),
            eos_token_id=[tokenizer.token_to_id(EOS), tokenizer.token_to_id(EOT)],
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        )


TARGET = Shape(hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=8)
DRAFT = Shape(hidden_size=128, intermediate_size=320, num_hidden_layers=2, num_attention_heads=4)


def read_corpus() -> tuple[list[str], list[str]]:
    """Source files to train on, and those held out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [p for p in sorted(root.rglob("*.py")) if not SKIPPED_FOLDERS & set(p.relative_to(root).parts)]
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in paths]
    return [t for i, t in enumerate(texts) if i % HELD_OUT_EVERY], texts[::HELD_OUT_EVERY]


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE that begins every text with BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[bos])
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """All texts as one row of token ids, each closed by EOS."""
    end = tokenizer.token_to_id(EOS)
    return torch.tensor([i for encoding in tokenizer.encode_batch(texts) for i in (*encoding.ids, end)])


def optimizer_of(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves norms alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0, betas=(0.9, 0.95))


def learning_rate(step: int, done: float) -> float:
    """Linear warm-up, then half a cosine down to FINAL_RATE_SHARE; `done` is the share of the time that has passed."""
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return PEAK_RATE * min(1, (step + 1) / WARMUP_STEPS) * (FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * cosine)


def next_token_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits.float().flatten(0, 1), tokens.flatten())


def train(name: str, model: LlamaForCausalLM, data: torch.Tensor, minutes: float) -> int:
    """Train for `minutes`; returns the number of steps."""
    optimizer = optimizer_of(model)
    begin, step, average = time.monotonic(), 0, math.nan
    while (done := (time.monotonic() - begin) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, done)
        starts = torch.randint(len(data) - WINDOW - 1, (BATCH,)).tolist()
        windows = torch.stack([data[start : start + WINDOW + 1] for start in starts])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(windows[:, :-1]).logits
        loss = next_token_loss(logits, windows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        average = loss.item() if step == 1 else 0.98 * average + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"{name}: step {step}, loss {average:.3f}, {done:.0%} of the time", flush=True)
    return step


@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, tokens: torch.Tensor) -> float:
    """Mean loss over whole windows, nats a token."""
    windows = [w for w in tokens[:HELD_OUT_TOKENS].split(WINDOW) if len(w) == WINDOW]
    return sum(next_token_loss(model(w[None, :-1]).logits, w[None, 1:]).item() for w in windows) / len(windows)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write the model with the config.json keys of the Llama 3.1 release, and its tokenizer."""
    model.save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(out)
    path = out / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": config.pop("dtype")}
    path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--minutes-target", type=float, default=60)
    parser.add_argument("--minutes-draft", type=float, default=12)
    args = parser.parse_args()
    torch.manual_seed(0)

    texts, held_out = read_corpus()
    tokenizer = train_tokenizer(texts)
    data, held_out_data = encode(tokenizer, texts), encode(tokenizer, held_out)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "heldout.txt").write_text("\n\x0c\n".join(held_out), encoding="utf-8")
    print(f"{len(data) / 1e6:.2f} M training tokens, {sum(map(len, texts)) / len(data):.2f} characters a token")

    for name, shape, minutes in (("target", TARGET, args.minutes_target), ("draft", DRAFT, args.minutes_draft)):
        model = LlamaForCausalLM(shape.config(tokenizer))
        steps = train(name, model, data, minutes)
        model = model.to(torch.bfloat16).eval()
        save(model, tokenizer, args.out / name)
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        loss = held_out_loss(model, held_out_data)
        print(f"{name}: {parameters:.2f} M parameters, {steps} steps, held-out loss {loss:.3f}", flush=True)


if __name__ == "__main__":
    main()
