"""Guesses change no token and no bit of a logit: 200 random settings of speculation against plain decoding."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.cases import CASES, DEMO, Case, random_tokens
from helpers.checkpoints import tensor_shapes, write_checkpoint
from helpers.held_out import cut
from helpers.rooms import keep_at_most
from helpers.thorough import quick
from helpers.tuning import tune_to
from penstock import LLM, SamplingParams
from penstock.completion import Output
from penstock.compute.kernels import F32
from penstock.engine.sequence import Sequence
from penstock.models.logits import Likeliest
from penstock.options import OpenOptions
from penstock.packing.pack import pack
from penstock.safetensors_header import read_header
from penstock.speculate.recycling import Recycling

COUNT, QUICK, LEAST, TOKENS = 200, 16, 20, 24
TUNED_TO = 80
"""Tokens."""

# Large enough to be packed, but for keys and values.
PACKABLE = {
    "hidden_size": 280,
    "intermediate_size": 500,
    "vocab_size": 700,
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
    "head_dim": 28,
}
RANDOM = {
    "packable": Case(PACKABLE),
    "packable, tied": Case(PACKABLE | {"tie_word_embeddings": True, "attention_bias": True}),
}
RAW_ONLY = {name: CASES[name] for name in ("gqa-4", "odd-sizes", "tied", "f16")}
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "penalty": {"repetition_penalty": 1.3},
    "top_k and top_p": {"top_k": 40, "top_p": 0.9},
    "min_p": {"min_p": 0.05},
}
STOPS = ("self", "\n", ")", " in")


@dataclass(frozen=True)
class Setting:
    text: str
    model: str
    temperature: float
    drafters: str
    draft_nodes: int | None
    packed: bool
    streamed: bool
    sequences: int
    filter: str
    stop: bool
    draft: str
    kv: str
    threads: int
    max_rows: int
    """Few make the chunks of one prompt share passes with the tree of another."""
    seed: int

    @property
    def tuned(self) -> bool:
        """Whether its coarse tier, where it has one, is corrected."""
        return self.packed and self.seed % 3 < 2

    def params(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature,
            max_tokens=TOKENS if self.draft_nodes != 256 else 16,
            seed=self.seed,
            stop=STOPS if self.stop else (),
            **FILTERS[self.filter],
        )


def settings() -> list[Setting]:
    """COUNT of them, the same ones every time."""
    rng = random.Random(7)
    return [_setting(rng, seed) for seed in range(COUNT)]


def _setting(rng: random.Random, seed: int) -> Setting:
    text = ("held-out", "random")[seed % 2]
    drafters = rng.choice(["lookup", "recycling", "coarse", "draft", "all"])
    packed = drafters == "coarse" or rng.random() < 0.5
    random_models = list(RANDOM) if packed or rng.random() < 0.3 else list(RAW_ONLY)
    return Setting(
        text=text,
        model="demo" if text == "held-out" else rng.choice(random_models),
        temperature=rng.choice([0, 0.7, 1]),
        drafters=drafters,
        draft_nodes=rng.choice([1, 4, 16, 64, 256, None]),
        packed=packed,
        streamed=rng.random() < 0.5,
        sequences=rng.choice([1, 3]),
        filter=rng.choice(list(FILTERS)),
        stop=text == "held-out" and rng.random() < 0.5,
        draft=rng.choice(["itself", "another"]),
        kv=rng.choice(["bf16", "f32"]),
        threads=rng.choice([1, 2]),
        max_rows=rng.choice([4096, 50]),
        seed=seed,
    )


SETTINGS = settings()


def test_every_value_is_drawn_often_enough() -> None:
    assert len(SETTINGS) == COUNT
    for name in {field.name for field in fields(Setting)} - {"seed", "model"}:
        counts = Counter(getattr(setting, name) for setting in SETTINGS)
        assert len(counts) >= 2, name
        assert min(counts.values()) >= LEAST, (name, counts)
        assert {getattr(setting, name) for setting in SETTINGS[:QUICK]} == counts.keys()
    assert {setting.tuned for setting in SETTINGS[:QUICK] if setting.drafters == "coarse"} == {True, False}
    models = Counter(setting.model for setting in SETTINGS)
    assert models.keys() == {"demo", *RANDOM, *RAW_ONLY}


class Models:
    """Checkpoints, written when first asked for, and what plain decoding draws from them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._open: dict[tuple[str, str], LLM] = {}

    def raw(self, name: str, seed: int = 0) -> Path:
        if name == "demo":
            return DEMO
        path = self._folder / f"{name} {seed}"
        return path if path.exists() else ({**RANDOM, **RAW_ONLY}[name].write(path, seed))

    def packed(self, name: str) -> Path:
        path = self._folder / f"{name} packed"
        if not path.exists():
            pack(self.raw(name), path)
        return path

    def tuned(self, name: str) -> Path:
        path = self._folder / f"{name} tuned"
        if not path.exists():
            shutil.copytree(self.packed(name), path)
            tune_to(path, TUNED_TO)
        return path

    def draft(self, setting: Setting) -> Path:
        """The model itself, with which guesses are mostly right, or one that knows nothing of it."""
        if setting.draft == "itself":
            return self.raw(setting.model)
        return _fewer_layers(self._folder / "small") if setting.model == "demo" else self.raw(setting.model, seed=1)

    def plain(self, setting: Setting) -> LLM:
        """The raw model, all of it resident, which does not guess."""
        key = setting.model, setting.kv
        if key not in self._open:
            options = OpenOptions(threads=1, kv_dtype=setting.kv, draft="none")
            self._open[key] = self._stack.enter_context(LLM(self.raw(setting.model), options))
        return self._open[key]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    with ExitStack() as stack:
        yield Models(tmp_path_factory.mktemp("models"), stack)


def _fewer_layers(path: Path, layers: int = 2) -> Path:
    """The demo model's first layers alone, with its tokenizer."""
    if not path.exists():
        config = json.loads((DEMO / "config.json").read_text()) | {"num_hidden_layers": layers}
        shapes, header = tensor_shapes(config), read_header(DEMO / "model.safetensors")
        whole = np.fromfile(DEMO / "model.safetensors", np.uint8)
        tensors = {
            name: whole[header.tensors[name].begin : header.tensors[name].end].view(np.uint16).reshape(shape)
            for name, shape in shapes.items()
        }
        write_checkpoint(path, config, tensors=tensors)
        for file in DEMO.glob("tokenizer*"):
            shutil.copy(file, path)
    return path


@contextmanager
def guessing(models: Models, setting: Setting) -> Iterator[LLM]:
    """The model with the drafters and the residency of a setting."""
    packed = models.tuned if setting.tuned else models.packed
    path = packed(setting.model) if setting.packed else models.raw(setting.model)
    options = OpenOptions(
        threads=setting.threads,
        kv_dtype=setting.kv,
        draft=models.draft(setting) if setting.drafters in ("draft", "all") else None,
        draft_nodes=setting.draft_nodes,
    )
    with LLM(path, options) as llm:
        speculator = llm.engine.speculator
        drafters = {drafter.name: drafter for drafter in speculator.drafters}
        drafters.setdefault("recycling", Recycling(llm.config.vocab_size))
        assert drafters.keys() >= {"lookup", "recycling"} | ({"coarse"} if setting.packed else set())
        speculator.drafters = [d for name, d in drafters.items() if setting.drafters in (name, "all")]
        assert len(speculator.drafters) >= (3 if setting.drafters == "all" else 1)
        if setting.streamed:
            kept = llm.weights.draft_bytes
            keep_at_most(llm, kept + (llm.weights.pass_bytes - kept) // 5)
        llm.engine.scheduler.max_rows = setting.max_rows
        yield llm


def prompts(setting: Setting, llm: LLM) -> list[list[int]]:
    rng = random.Random(setting.seed)
    lengths = [rng.randrange(2, 90) for _ in range(setting.sequences)]
    if setting.model == "demo":
        texts = [cut(setting.seed + i * COUNT, 8 * length) for i, length in enumerate(lengths)]
        return [llm.encode(text)[:length] for text, length in zip(texts, lengths, strict=True)]
    vocab = llm.config.vocab_size
    return [random_tokens(length, vocab, setting.seed + i * COUNT) for i, length in enumerate(lengths)]


@pytest.fixture
def drawn_from(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, ...], list[F32 | Likeliest]]:
    """By prompt: the logits that tokens were drawn from, or what was told of them."""
    logits: dict[tuple[int, ...], list[F32 | Likeliest]] = {}
    draw = Sequence.draw

    def spy(generation: Sequence, row: F32 | Likeliest) -> int | None:
        logits.setdefault(tuple(generation.prompt), []).append(row if isinstance(row, Likeliest) else row[0].copy())
        return draw(generation, row)

    monkeypatch.setattr(Sequence, "draw", spy)
    return logits


def result(output: Output) -> tuple[list[int], str, str]:
    return output.token_ids, output.text, output.finish_reason


@pytest.mark.parametrize("setting", quick(QUICK, SETTINGS), ids=[str(setting.seed) for setting in SETTINGS])
def test_the_same_tokens_and_logits(
    models: Models,
    setting: Setting,
    drawn_from: dict[tuple[int, ...], list[F32 | Likeliest]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All logits of guesses, or the likeliest tokens where these are enough."""
    if setting.seed % 2:
        monkeypatch.setattr(Sequence, "takes_likeliest", False)
    plain, params = models.plain(setting), setting.params()
    tokens = prompts(setting, plain)
    expected = [plain.generate([prompt], params)[0] for prompt in tokens]
    expected_logits = {prompt: rows.copy() for prompt, rows in drawn_from.items()}
    drawn_from.clear()
    with guessing(models, setting) as llm:
        outputs = llm.generate(tokens, params)
        assert (llm.weights.streamed_bytes > 0) == setting.streamed
    assert [result(output) for output in outputs] == [result(output) for output in expected]
    assert drawn_from.keys() == expected_logits.keys()
    for prompt, rows in expected_logits.items():
        # What follows a stop string may have been drawn in the same pass, and is dropped.
        assert len(drawn_from[prompt]) == len(rows) or (setting.stop and len(drawn_from[prompt]) > len(rows))
        for row, other in zip(rows, drawn_from[prompt], strict=False):
            assert isinstance(row, np.ndarray)
            if isinstance(other, Likeliest):
                assert not setting.seed % 2
                assert (row.max(), row.argmax()) == (other.peaks[0], other.tokens[0, 0])
            else:
                assert np.array_equal(row.view(np.uint32), other.view(np.uint32))
