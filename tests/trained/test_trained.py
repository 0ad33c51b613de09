"""Trained models beside `transformers`: perplexity, greedy answers, conversations as their templates write them.

Run by `./scripts/test --trained`, which fetches them; PENSTOCK_TRAINED names their directory, and
PENSTOCK_TRAINED_MODELS those to test, separated by spaces.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.text.tokenizer import Tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FOLDER = Path(os.environ.get("PENSTOCK_TRAINED", "build/trained"))
MODELS = os.environ.get("PENSTOCK_TRAINED_MODELS", "smollm2 gemma270").split()
ROOT = Path(__file__).parents[2]
TEXT_TOKENS, ANSWER_TOKENS = 4000, 64
QUESTIONS = [
    "What is the capital of France?",
    "Write a function in Python that reverses a list.",
    "Name three primary colours.",
    "Why is the sky blue?",
    "Translate 'good morning' into German.",
    "What is 17 times 23?",
    "Give me a recipe for pancakes.",
    "Explain recursion to a child.",
    "Who wrote Hamlet?",
    "List the planets of the solar system.",
    "What does HTTP stand for?",
    "Write a haiku about rain.",
    "How do I boil an egg?",
    "What is the boiling point of water in Fahrenheit?",
    "Write a regular expression for an e-mail address.",
    "Summarise the French Revolution in two sentences.",
    "What are the first ten prime numbers?",
    "def fibonacci(n):",
    "The quick brown fox",
    "SELECT name FROM users WHERE",
]
CONVERSATIONS = [
    [{"role": "user", "content": "Hello!"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!\n\nHow are you?"}],
    [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2 "},
        {"role": "user", "content": "  and 2 + 2? 🙂"},
    ],
]


@dataclass
class Sides:
    """What both compute of one model."""

    name: str
    path: Path
    tokenizer: Any
    model: Any
    text: list[int]
    prompts: list[list[int]]
    ours: Any

    def logits(self, tokens: list[int]) -> Any:
        with torch.inference_mode():
            return self.model(torch.tensor([tokens])).logits[0]


@pytest.fixture(scope="module", params=MODELS)
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sides:
    path = FOLDER / request.param
    if not path.exists():
        pytest.fail(f"{path} is not there: ./scripts/test --trained fetches it")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    text = "\n\n".join(file.read_text() for file in sorted((ROOT / "docs").glob("*.md")))
    tokens = tokenizer(text)["input_ids"][:TEXT_TOKENS]
    prompts = [tokenizer(question)["input_ids"] for question in QUESTIONS]
    folder = tmp_path_factory.mktemp("answers")
    job = {"path": str(path), "text": tokens, "prompts": prompts, "tokens": ANSWER_TOKENS, "out": f"{folder}/out.npz"}
    (folder / "job.json").write_text(json.dumps(job))
    script = Path(__file__).parent / "penstock_answers.py"
    subprocess.run([sys.executable, str(script), str(folder / "job.json")], check=True)
    torch.set_num_threads(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    embedding = model.model.embed_tokens
    if hasattr(embedding, "embed_scale"):  # as the models that were published have it
        embedding.embed_scale = embedding.embed_scale.to(torch.bfloat16).float()
    return Sides(request.param, path, tokenizer, model, tokens, prompts, np.load(folder / "out.npz"))


def test_perplexity(sides: Sides) -> None:
    """Within 1e-4 of it."""
    cache, losses = transformers.DynamicCache(config=sides.model.config), []
    for begin in range(0, len(sides.text) - 1, 500):
        end = min(begin + 500, len(sides.text) - 1)
        with torch.inference_mode():
            out = sides.model(torch.tensor([sides.text[begin:end]]), past_key_values=cache, use_cache=True)
        wanted = torch.tensor(sides.text[begin + 1 : end + 1])
        losses.append(torch.nn.functional.cross_entropy(out.logits[0].double(), wanted, reduction="none"))
    theirs, ours = float(torch.cat(losses).mean().exp()), float(np.exp(sides.ours["losses"].mean()))
    print(f"{sides.name}: perplexity {ours:.6f} and {theirs:.6f}, apart by {ours / theirs - 1:.1e}")
    assert len(sides.ours["losses"]) == TEXT_TOKENS - 1
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_greedy_answers(sides: Sides) -> None:
    """Equal wherever their two largest logits are farther apart than twice what the two sides differ by."""
    error = float(np.abs(sides.ours["logits"] - sides.logits(sides.prompts[0]).numpy()).max())
    compared = 0
    for prompt, answer in zip(sides.prompts, sides.ours["answers"].tolist(), strict=True):
        logits = sides.logits(prompt + answer)[len(prompt) - 1 : -1]
        two = logits.topk(2)
        clear = (two.values[:, 0] - two.values[:, 1]) > 2 * error
        compared += int(clear.sum())
        assert torch.equal(two.indices[clear, 0], torch.tensor(answer)[clear])
    print(f"{sides.name}: {compared} tokens compared, logits apart by {error:.1e}")
    assert compared > 0.95 * len(QUESTIONS) * ANSWER_TOKENS


def test_tokens(sides: Sides) -> None:
    ours = Tokenizer.open(sides.path)
    assert ours is not None
    for question in QUESTIONS:
        assert ours.encode(question) == sides.tokenizer(question)["input_ids"]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_conversations(sides: Sides, conversation: list[dict[str, str]]) -> None:
    ours = Tokenizer.open(sides.path)
    assert ours is not None
    if sides.tokenizer.chat_template is None:
        pytest.skip("a base model, without a template")
    expected = sides.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert ours.chat_template().render(conversation) == expected
