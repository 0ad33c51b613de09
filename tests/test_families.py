"""Whatever is the same to the bit for one family is so for all: chunks, threads, instruction sets, residency, trees,
company, packed weights, guesses, stages, shared prefixes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.assembled import commit, new_cache, open_engine
from helpers.cases import FAMILY_CASES, random_tokens
from helpers.checkpoints import safetensors_bytes
from helpers.numerics_oracles import same_bits
from helpers.thorough import quick
from penstock import LLM, SamplingParams, _core
from penstock.compute.kernels import F32
from penstock.errors import CheckpointWarning
from penstock.models.rows import Rows, SequenceRows
from penstock.models.stage import Share
from penstock.packing.pack import pack
from penstock.safetensors_header import read_header

LENGTH = 70
TOKENS = random_tokens(LENGTH, 61)
PARENTS = [-1, 0, 1, 1, 3, -1, 5, 6, 7, 4, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
"""A tree with paths longer than the windows of the cases, and short ones."""
PACKABLE = {"hidden_size": 280, "intermediate_size": 500, "vocab_size": 700, "shared_intermediate_size": 500}


QUICK = ("qwen3", "olmo3", "gemma2", "gemma3", "phi4-mini", "granite", "smollm3-window")
"""Between them they have every flag."""


@pytest.fixture(scope="module", params=quick(QUICK, FAMILY_CASES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILY_CASES[request.param].write(tmp_path_factory.mktemp("family") / "model")


@pytest.fixture(scope="module", params=quick(QUICK, FAMILY_CASES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model that is worth packing, and the same, packed."""
    case, folder = FAMILY_CASES[request.param], tmp_path_factory.mktemp("pair")
    sizes = {key: value for key, value in PACKABLE.items() if not key.startswith("shared") or key in case.config}
    raw = replace(case, config=case.config | sizes).write(folder / "raw")
    pack(raw, folder / "packed")
    return raw, folder / "packed"


def logits(path: Path, chunk: int = LENGTH, **options: object) -> F32:
    with open_engine(path, **options) as engine:  # type: ignore[arg-type]
        return commit(engine, new_cache(engine), TOKENS, chunk)


@pytest.fixture(scope="module")
def expected(model: Path) -> F32:
    return logits(model)


@pytest.mark.parametrize("chunk", quick(1, [7, 33, 1]))
def test_chunks_threads_residency_and_pieces(model: Path, expected: F32, chunk: int) -> None:
    assert same_bits(logits(model, chunk, threads=2, resident=0.5, piece_bytes=700), expected)


def test_instruction_sets(model: Path, expected: F32, isa: str) -> None:
    assert same_bits(logits(model, 31), expected)
    assert _core.isa() == isa


def test_stages(model: Path, expected: F32) -> None:
    count = len(PARENTS)
    with open_engine(model) as engine:
        layers = range(len(engine.chain.stages[0].share.layers))
    shares = [Share(tuple(layers[::2]), embedding=True, head=False), Share(tuple(layers[1::2]), embedding=False)]
    with open_engine(model, shares=shares) as engine:
        cache = new_cache(engine)
        assert same_bits(commit(engine, cache, TOKENS, 40), expected)
        tree, _ = engine.chain.run(Rows([SequenceRows.tree(cache, TOKENS[:count], PARENTS)]))
    assert same_bits(tree, tree_logits(model, LENGTH, TOKENS[:count]))


def tree_logits(path: Path, prefix: int, tokens: list[int]) -> F32:
    with open_engine(path, threads=2) as engine:
        cache = new_cache(engine)
        commit(engine, cache, TOKENS[:prefix])
        out, _ = engine.chain.run(Rows([SequenceRows.tree(cache, tokens, PARENTS)]))
        return out


@pytest.mark.parametrize("prefix", quick(1, [32, 1, 41]))
def test_trees_are_plain_sequences(model: Path, prefix: int) -> None:
    """Beside another sequence in the pass; and the cache goes on from the path that is kept."""
    tokens, following = random_tokens(len(PARENTS), 61, seed=1), random_tokens(3, 61, seed=2)
    with open_engine(model) as engine:
        for end in (8, len(PARENTS) - 1):
            nodes = path_to(end)
            cache, other = new_cache(engine), new_cache(engine)
            commit(engine, cache, TOKENS[:prefix])
            rows = Rows([SequenceRows.plain(other, TOKENS[:5], range(5)), SequenceRows.tree(cache, tokens, PARENTS)])
            out, _ = engine.chain.run(rows)
            plain = commit(engine, new_cache(engine), [*TOKENS[:prefix], *(tokens[n] for n in nodes), *following])
            length = prefix + len(nodes)
            assert same_bits(out[5:][nodes], plain[prefix:length])
            cache.keep(prefix + np.array(nodes))
            assert same_bits(commit(engine, cache, following), plain[length:])


def path_to(node: int) -> list[int]:
    return [*(path_to(PARENTS[node]) if PARENTS[node] >= 0 else []), node]


def test_what_memory_held_before(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in every new array, and in the free slots of the cache, reaches no logit."""
    clean, tree = logits(model, 31), tree_logits(model, 40, TOKENS[: len(PARENTS)])

    def nan_filled(shape: object, dtype: object = float) -> np.ndarray:
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize  # type: ignore[call-overload]
        return np.full(count, 0xFF, np.uint8).view(dtype).reshape(shape)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(np, "empty", nan_filled)
    monkeypatch.setattr(np, "empty_like", lambda x: nan_filled(x.shape, x.dtype))
    assert same_bits(logits(model, 31), clean)
    assert same_bits(tree_logits(model, 40, TOKENS[: len(PARENTS)]), tree)


@pytest.mark.parametrize("resident", quick(1, [0.4, 0, 1]))
def test_packed_weights(pair: tuple[Path, Path], resident: float) -> None:
    raw, small = pair
    assert same_bits(logits(small, 40, resident=resident, piece_bytes=200_000), logits(raw))


def repeated(seed: int, times: int = 3) -> list[int]:
    """A text that comes again and again, for guesses to hit."""
    return random_tokens(9, 61, seed=seed) * times


def answers(llm: LLM, prompts: list[list[int]], temperature: float) -> Iterator[tuple[list[int], list[float]]]:
    params = SamplingParams(temperature=temperature, seed=4, max_tokens=24, ignore_eos=True, logprobs=1)
    for output in llm.generate(prompts, params):
        yield output.token_ids, [entry.logprob for entry in output.logprobs or ()]


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_guesses_company_and_shared_prefixes(pair: tuple[Path, Path], temperature: float) -> None:
    """Guesses, of the coarse tier, too; prompts in one run of passes, which share the beginnings of two."""
    raw, small = pair
    prompts = [repeated(0), [*repeated(0), 5, 9], random_tokens(40, 61, seed=3)]
    with LLM.open(raw, draft="none") as llm:
        alone = [answer for prompt in prompts for answer in answers(llm, [prompt], temperature)]
    with LLM.open(small, draft_nodes=16) as llm:
        together = list(answers(llm, prompts, temperature))
        again = list(answers(llm, prompts[:1], temperature))
    assert together == alone
    assert again == alone[:1]


class TestTextSide:
    """A checkpoint of a model that sees pictures: the text side's tensors lie under other names, beside the rest."""

    @pytest.mark.parametrize("prefix", ["language_model.", "model.language_model."])
    def test_is_the_model(self, tmp_path: Path, prefix: str) -> None:
        case = FAMILY_CASES["gemma3"]
        plain = case.write(tmp_path / "plain")
        whole = self.write(tmp_path / "whole", plain, prefix)
        with pytest.warns(CheckpointWarning, match="passing over what sees pictures: 2 tensors"):
            assert same_bits(logits(whole), logits(plain))
        pack(whole, tmp_path / "packed")
        with pytest.warns(CheckpointWarning):
            assert same_bits(logits(tmp_path / "packed"), logits(plain))

    def write(self, path: Path, plain: Path, prefix: str) -> Path:
        text = json.loads((plain / "config.json").read_text())
        header = read_header(plain / "model.safetensors")
        data = np.fromfile(plain / "model.safetensors", np.uint8)
        tensors = {}
        for name, tensor in header.tensors.items():
            other = prefix + (name.removeprefix("model.") if prefix.startswith("model.") else name)
            tensors[other] = data[tensor.begin : tensor.end].view(np.uint16).reshape(tensor.shape)
        side = "model." if prefix.startswith("model.") else ""
        tensors[f"{side}vision_tower.encoder.weight"] = np.zeros((4, 4), np.uint16)
        tensors[f"{side}multi_modal_projector.weight"] = np.zeros((4, 4), np.uint16)
        path.mkdir()
        (path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        config = {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": text,
            "vision_config": {},
        }
        (path / "config.json").write_text(json.dumps(config))
        return path
