"""The same bits: logits depend on the weights, the tokens before them and the KV type, and on nothing else."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.assembled import GREEDY, commit, generate, new_cache, open_engine
from helpers.cases import CASES, DEMO, Case, demo_tokens, random_tokens
from helpers.numerics_oracles import same_bits
from helpers.thorough import quick
from penstock import LLM, SamplingParams, _core
from penstock.compute.kernels import F32
from penstock.models.rows import Rows, SequenceRows

PROMPT, LENGTH = 41, 70
MODELS = ["gqa-4", "odd-sizes", "rope-parameters", "f32", "tied", "biases"]
VARIANTS: dict[str, dict[str, Any]] = {
    "two threads": {"threads": 2},
    "three threads": {"threads": 3},
    "half resident": {"resident": 0.5},
    "all resident": {"resident": 1},
    "whole matrices": {"piece_bytes": 1 << 20},
    "two threads, half resident, other pieces": {"threads": 2, "resident": 0.5, "piece_bytes": 700},
}
LAYOUTS = ["shards", "split"]


@pytest.fixture(params=quick(["odd-sizes", "biases"], MODELS))
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return CASES[request.param].write(tmp_path / "model")


@pytest.fixture(params=["bf16", "f32"])
def kv(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def whole(path: Path, kv: str, tokens: Sequence[int], **options: Any) -> F32:
    """Logits of all tokens in one pass: what all others must equal."""
    with open_engine(path, kv=kv, **options) as engine:
        return commit(engine, new_cache(engine), tokens)


def test_chunks(model: Path, kv: str) -> None:
    tokens = random_tokens(LENGTH, 61)
    with open_engine(model, kv=kv) as engine:
        expected = commit(engine, new_cache(engine), tokens)
        for chunk in (33, 7, 1):
            assert same_bits(commit(engine, new_cache(engine), tokens, chunk), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["odd-sizes", "tied"])
def test_threads_residency_and_pieces(tmp_path: Path, name: str, variant: str) -> None:
    path, tokens = CASES[name].write(tmp_path), random_tokens(LENGTH, 61)
    expected = whole(path, "bf16", tokens)
    with open_engine(path, **VARIANTS[variant]) as engine:
        for chunk in (LENGTH, 7):  # the first pass fills what may be resident, those after it use it
            assert same_bits(commit(engine, new_cache(engine), tokens, chunk), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_the_files(tmp_path: Path, layout: str) -> None:
    """The same tensors, in other files."""
    tokens = random_tokens(LENGTH, 61)
    base = {"num_hidden_layers": 3}
    expected = whole(Case(base).write(tmp_path / "single"), "bf16", tokens)
    other = Case(base, files=CASES[layout].files).write(tmp_path / layout)
    assert same_bits(whole(other, "bf16", tokens), expected)


@pytest.mark.parametrize("name", quick(["odd-sizes"], MODELS))
def test_every_instruction_set(tmp_path: Path, name: str, kv: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, tokens = CASES[name].write(tmp_path), random_tokens(LENGTH, 61)
    monkeypatch.setenv("PENSTOCK_ISA", _core.isas()[0])
    expected = whole(path, kv, tokens)
    monkeypatch.setenv("PENSTOCK_ISA", isa)
    with open_engine(path, kv=kv) as engine:
        assert _core.isa() == isa
        for chunk in (LENGTH, 5, 1):
            assert same_bits(commit(engine, new_cache(engine), tokens, chunk), expected)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="FMA is everywhere on ARM64")
def test_the_scalar_kernels_emulate_fma_on_x86(monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    """So that the comparison above is one of the emulation, wherever there is a vector set to compare with."""
    if len(_core.isas()) > 1:
        assert _core.emulates_fma() == (isa == "scalar")


def test_the_demo_model_on_every_instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = demo_tokens(24)
    monkeypatch.setenv("PENSTOCK_ISA", _core.isas()[0])
    expected = whole(DEMO, "bf16", tokens, piece_bytes=1 << 20)
    monkeypatch.setenv("PENSTOCK_ISA", isa)
    with open_engine(DEMO, threads=2, piece_bytes=1 << 20) as engine:
        assert same_bits(commit(engine, new_cache(engine), tokens, 16), expected)


@pytest.mark.parametrize("max_rows", quick([7], [4096, 7, 1]))
def test_generation_alone_and_in_company(tmp_path: Path, max_rows: int) -> None:
    """The engine's own chunks: three prompts that share passes of few rows draw what each draws alone."""
    path = CASES["gqa-4"].write(tmp_path)
    prompts = [random_tokens(n, 61, seed=n) for n in (PROMPT, 3, 18)]
    params = SamplingParams(temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=1.1, seed=5)
    expected = []
    for prompt in prompts:
        with open_engine(path) as engine:
            expected += generate(engine, [prompt], 8, params)
    with open_engine(path, max_rows=max_rows, threads=2, resident=0.5) as engine:
        together = generate(engine, prompts, 8, params)
    for (tokens, logits), (expected_tokens, expected_logits) in zip(together, expected, strict=True):
        assert tokens == expected_tokens
        assert same_bits(logits, expected_logits)


def test_generation_is_a_function_of_prompt_and_prefix(tmp_path: Path, kv: str) -> None:
    """Tokens drawn one by one see what a pass over all of them at once sees."""
    path = CASES["odd-sizes"].write(tmp_path)
    prompt = random_tokens(PROMPT, 61)
    with open_engine(path, kv=kv) as engine:
        [(tokens, logits)] = generate(engine, [prompt], 12, GREEDY)
    assert same_bits(logits, whole(path, kv, prompt + tokens)[PROMPT - 1 : -1])


@pytest.mark.parametrize("name", quick(["odder-sizes", "tied"], [*MODELS, "odder-sizes"]))
def test_what_memory_held_before(tmp_path: Path, name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in every new array, in the free slots of the cache and in the kernels' scratch reaches no logit."""
    monkeypatch.setenv("PENSTOCK_ISA", isa)
    path, tokens, parents = CASES[name].write(tmp_path), random_tokens(LENGTH, 61), random_tree(30, 0)

    def logits() -> list[F32]:
        with open_engine(path, threads=2) as engine:
            nan = np.full((64, 3000), np.nan, np.float32)
            engine._kernels.matmul(nan, nan.view(np.uint8).ravel(), "F32", np.zeros((64, 64), np.float32))
            cache = new_cache(engine)
            plain = commit(engine, cache, tokens, 31)
            tree, _ = engine.chain.run(Rows([SequenceRows.tree(cache, tokens[:30], parents)]))
            return [plain, tree]

    expected = logits()
    monkeypatch.setattr(np, "empty", nan_filled)
    monkeypatch.setattr(np, "empty_like", lambda x: nan_filled(x.shape, x.dtype))
    for got, clean in zip(logits(), expected, strict=True):
        assert np.isfinite(got).all()
        assert same_bits(got, clean)


def nan_filled(shape: Any, dtype: Any = float) -> Any:
    """An array of which every byte is 0xFF: NaN in every type of float."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.full(count, 0xFF, np.uint8).view(dtype).reshape(shape)


@pytest.mark.parametrize("chunk", quick([7], [1, 7]))
def test_a_chunk_that_ends_anywhere_in_a_block(tmp_path: Path, chunk: int) -> None:
    """Lengths around a cache block's 32 slots."""
    path, tokens = CASES["gqa-4"].write(tmp_path), random_tokens(LENGTH, 61)
    expected = whole(path, "bf16", tokens)
    with open_engine(path) as engine:
        for begin in (30, 31, 32, 33):
            cache = new_cache(engine)
            commit(engine, cache, tokens[:begin])
            assert same_bits(commit(engine, cache, tokens[begin:], chunk), expected[begin:])


def test_python_interface(model: Path, kv: str) -> None:
    tokens = random_tokens(LENGTH, 61)
    expected = whole(model, kv, tokens)
    with LLM.open(model, kv_dtype=kv) as llm:
        assert same_bits(llm.logits(tokens), expected)
        cache = llm.new_cache()
        assert same_bits(llm.model.forward(tokens[:PROMPT], 0, cache), expected[:PROMPT])
        assert same_bits(llm.model.forward(tokens[PROMPT:], PROMPT, cache), expected[PROMPT:])
        assert same_bits(llm.model.forward(tokens[PROMPT:], PROMPT, cache), expected[PROMPT:])


def paths(parents: Sequence[int]) -> list[list[int]]:
    """The nodes from the root to each node, itself included."""
    out: list[list[int]] = []
    for node, parent in enumerate(parents):
        out.append([*(out[parent] if parent >= 0 else []), node])
    return out


def random_tree(nodes: int, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return [-1, *(int(rng.integers(-1, node)) for node in range(1, nodes))]


CHAIN = [-1, *range(44)]
TREES = {
    "one node": [-1],
    "siblings": [-1] * 5,
    "chain": CHAIN,
    "random": random_tree(50, 0),
    "bush": random_tree(9, 1),
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("prefix", quick([31], [1, 31, 32, 41]))
def test_tree_rows(tmp_path: Path, kv: str, tree: str, prefix: int) -> None:
    """Each node's logits are those of its path as a plain sequence; the cache goes on from any path that is kept."""
    path, parents = CASES["gqa-4"].write(tmp_path), TREES[tree]
    committed, tokens = random_tokens(prefix, 61), random_tokens(len(parents), 61, seed=1)
    following = random_tokens(3, 61, seed=2)
    with open_engine(path, kv=kv) as engine:
        for nodes in paths(parents)[:: max(1, len(parents) // 6)]:
            cache = new_cache(engine)
            commit(engine, cache, committed)
            logits, _ = engine.chain.run(Rows([SequenceRows.tree(cache, tokens, parents)]))
            plain = commit(engine, new_cache(engine), [*committed, *(tokens[n] for n in nodes), *following])
            end = prefix + len(nodes)
            assert same_bits(logits[nodes], plain[prefix:end])

            cache.keep(prefix + np.array(nodes))
            assert cache.length == end
            assert same_bits(commit(engine, cache, following), plain[end:])


@pytest.mark.parametrize("threads", [1, 2])
def test_trees_and_plain_rows_in_one_pass(
    tmp_path: Path, kv: str, isa: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_ISA", isa)
    path, parents = CASES["odd-sizes"].write(tmp_path), TREES["random"]
    histories = [random_tokens(n, 61, seed=n) for n in (35, 2, 64)]
    tokens = random_tokens(len(parents), 61, seed=9)
    with open_engine(path, kv=kv, threads=threads) as engine:
        caches = [new_cache(engine) for _ in histories]
        for cache, history in zip(caches, histories, strict=True):
            commit(engine, cache, history)
        plain = tokens[:6]
        together, _ = engine.chain.run(
            Rows(
                [
                    SequenceRows.tree(caches[0], tokens, parents),
                    SequenceRows.plain(caches[1], plain, range(len(plain))),
                    SequenceRows.tree(caches[2], tokens, parents),
                ]
            )
        )
        n = len(parents)
        assert same_bits(together[n : n + 6], commit(engine, caches[1], plain))
        for cache, part in ((caches[0], together[:n]), (caches[2], together[n + 6 :])):
            alone, _ = engine.chain.run(Rows([SequenceRows.tree(cache, tokens, parents)]))
            assert same_bits(part, alone)


def test_the_kv_type_is_one_of_the_few_things_that_matter(tmp_path: Path) -> None:
    path, tokens = CASES["gqa-4"].write(tmp_path), random_tokens(LENGTH, 61)
    assert not same_bits(whole(path, "bf16", tokens), whole(path, "f32", tokens))
