"""Mixtures of experts give the same bits whatever is in memory, and read no more than their rows need."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from helpers.assembled import commit, generate, new_cache, open_engine
from helpers.cases import MOE_CASES, random_tokens
from helpers.numerics_oracles import same_bits
from helpers.thorough import quick
from penstock import LLM, SamplingParams
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.errors import ChecksumError, ReadError
from penstock.options import OpenOptions
from penstock.packed_format.reader import read_packed
from penstock.packing.pack import pack
from penstock.weights.identity import model_identity

LENGTH = 60
NAMES = quick(["qwen3-moe", "glm4-moe-groups"], list(MOE_CASES))


@pytest.fixture(params=["raw", "packed"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def written(path: Path, name: str, form: str) -> Path:
    case = MOE_CASES[name]
    wide = {"hidden_size": 256, "moe_intermediate_size": 256, "intermediate_size": 256} if form == "packed" else {}
    own = {key: value for key, value in wide.items() if key in case.config or key != "moe_intermediate_size"}
    raw = type(case)(case.config | own, case.dtype, case.files, case.nulls).write(path / "raw")
    if form == "raw":
        return raw
    pack(raw, path / "packed")
    return path / "packed"


@pytest.mark.parametrize("resident", quick({0.3, 8}, (0, 0.3, 2, 8, 40)))  # small parts take a page and more
@pytest.mark.parametrize("name", NAMES)
def test_residency_chunks_and_threads(tmp_path: Path, name: str, form: str, resident: float) -> None:
    path, tokens = written(tmp_path, name, form), random_tokens(LENGTH, 61)
    with open_engine(path) as engine:
        expected = commit(engine, new_cache(engine), tokens)
    with open_engine(path, resident=resident, threads=2, piece_bytes=700) as engine:
        for chunk in (LENGTH, 7, 1, 1):  # the first fills what may be in memory
            assert same_bits(commit(engine, new_cache(engine), tokens, chunk), expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_instruction_set(tmp_path: Path, name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, tokens = written(tmp_path, name, "raw"), random_tokens(24, 61)
    with open_engine(path) as engine:
        expected = commit(engine, new_cache(engine), tokens)
    monkeypatch.setenv("PENSTOCK_ISA", isa)
    with open_engine(path) as engine:
        assert same_bits(commit(engine, new_cache(engine), tokens, 5), expected)


@pytest.mark.parametrize("name", NAMES)
def test_alone_and_in_company(tmp_path: Path, name: str, form: str) -> None:
    path, prompts = written(tmp_path, name, form), [random_tokens(n, 61, seed=n) for n in (31, 3, 18)]
    params = SamplingParams(temperature=0.8, top_k=20, seed=5)
    expected = []
    for prompt in prompts:
        with open_engine(path) as engine:
            expected += generate(engine, [prompt], 8, params)
    with open_engine(path, max_rows=9, threads=2, resident=8) as engine:
        together = generate(engine, prompts, 8, params)
    for (tokens, logits), (alone, alone_logits) in zip(together, expected, strict=True):
        assert tokens == alone
        assert same_bits(logits, alone_logits)


def test_guesses_change_no_token(tmp_path: Path, form: str) -> None:
    path, prompt = written(tmp_path, "qwen3-moe", form), random_tokens(8, 61) * 3
    answers = []
    for nodes in (0, 12):
        with LLM.open(path, draft_nodes=nodes) as llm:
            [output] = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=24, ignore_eos=True))
            answers.append(output.token_ids)
    assert answers[0] == answers[1]


def test_only_what_rows_need_is_read(tmp_path: Path) -> None:
    """A row's pass reads its experts; a pass of many rows reads each once."""
    path = MOE_CASES["qwen3-moe"].write(tmp_path)
    with open_engine(path) as engine:
        [stage] = engine.chain.stages
        weights, cache = stage.weights, new_cache(engine)  # type: ignore[attr-defined]
        sizes = {name: tensor.nbytes for name, tensor in weights.tensors.items() if "experts" in name}
        dense = weights.pass_bytes - sum(sizes.values())
        expert = 3 * sizes["model.layers.0.mlp.experts.0.up_proj.weight"]
        layers, chosen = 2, 2

        def read_by(tokens: list[int]) -> int:
            before = weights.totals.bytes_read
            commit(engine, cache, tokens)
            return int(weights.totals.bytes_read - before)

        assert read_by([5]) == dense + layers * chosen * expert
        assert read_by([6]) == dense + layers * chosen * expert
        assert read_by(random_tokens(50, 61)) <= weights.pass_bytes


def test_prompts_of_many_rows_read_ahead(tmp_path: Path) -> None:
    """Where a layer needs nearly all experts, the next layer's are on their way before its router is asked."""
    path = MOE_CASES["qwen3-moe"].write(tmp_path)
    with open_engine(path) as engine:
        [stage] = engine.chain.stages
        weights, asked = stage.weights, []  # type: ignore[attr-defined]
        demand = weights._stream.demand
        weights._stream.demand = lambda indices: (asked.append(len(indices)), demand(indices))[1]
        commit(engine, new_cache(engine), random_tokens(60, 61))
        assert weights._scanning
        assert sum(count > 0 for count in asked) < 3


@pytest.mark.parametrize("broken", [True, False])
def test_a_read_error_ends_one_pass_not_all(tmp_path: Path, broken: bool) -> None:
    path, tokens = MOE_CASES["olmoe"].write(tmp_path), random_tokens(9, 61)
    with open_engine(path, resident=8) as engine:
        expected = commit(engine, new_cache(engine), tokens)
    with open_engine(path, resident=8) as engine:
        [stage] = engine.chain.stages
        files, cache = stage.weights._files, new_cache(engine)  # type: ignore[attr-defined]
        read = files.read
        state: dict[str, Any] = {"left": 40}

        def failing(*arguments: Any) -> Any:
            state["left"] -= 1
            if broken and state["left"] == 0:
                raise OSError("a broken disk")
            return read(*arguments)

        files.read = failing
        try:
            commit(engine, cache, tokens)
        except OSError:
            assert broken
        cache.truncate(0)
        assert same_bits(commit(engine, cache, tokens), expected)


def test_indexed_once_needed_again(tmp_path: Path) -> None:
    """Where all of a packed model fits, an expert becomes indexed rows when it is used the second time; and when memory
    becomes short, packed again."""
    path, tokens = written(tmp_path, "qwen3-moe", "packed"), random_tokens(30, 61)
    with open_engine(path) as engine:
        expected = commit(engine, new_cache(engine), tokens)
    with open_engine(path, resident=40) as engine:
        [stage] = engine.chain.stages
        weights = stage.weights  # type: ignore[attr-defined]
        experts = {weights._by_name[name][0][0] for name in weights.tensors if "experts" in name}
        counts = []
        ample = 40 * weights.pass_bytes
        for limit in (ample, ample, ample, weights.indexed_bytes - 1, ample, ample):
            stage.room.max_resident = limit  # type: ignore[attr-defined]
            weights.limit_resident(limit)
            assert same_bits(commit(engine, new_cache(engine), tokens), expected)
            counts.append(len(experts & weights._indexed.keys()))
        assert counts[0] == counts[3] == 0 < counts[1] == counts[2] == counts[4] == counts[5]
        assert weights._away[1] == sum(
            part.nbytes for i, part in enumerate(weights._parts) if i in weights._of_experts - weights._in_memory
        )


def test_experts_go_first_when_memory_is_short(tmp_path: Path) -> None:
    path, tokens = written(tmp_path, "qwen3-moe", "raw"), random_tokens(30, 61)
    with open_engine(path, resident=40) as engine:
        [stage] = engine.chain.stages
        weights = stage.weights  # type: ignore[attr-defined]
        expected = commit(engine, new_cache(engine), tokens)
        dense = weights.pass_bytes - weights.expert_bytes
        assert len(weights._experts) > 0
        weights.limit_resident(dense)
        assert len(weights._experts) == 0
        assert weights.resident_bytes == dense
        stage.room.max_resident = dense  # type: ignore[attr-defined]
        assert same_bits(commit(engine, new_cache(engine), tokens), expected)


@pytest.mark.parametrize("tier", ["coarse", "fine"])
def test_a_flipped_bit_in_an_expert_gives_no_token(tmp_path: Path, tier: str) -> None:
    """It is found when the expert is needed, by name; others are not held up; and mended, all goes on."""
    path, tokens = written(tmp_path, "qwen3-moe", "packed"), random_tokens(60, 61)
    with LLM.open(path) as llm:
        expected = llm.logits(tokens)
    file, name = path / "model.safetensors", "model.layers.1.mlp.experts.3.up_proj.weight"
    tensor = read_packed(file).tensors[name]
    place = tensor.coarse_begin if tier == "coarse" else tensor.fine_begin

    def flip() -> None:
        with file.open("r+b") as opened:
            opened.seek(place + 9)
            [byte] = opened.read(1)
            opened.seek(place + 9)
            opened.write(bytes([byte ^ 4]))

    flip()
    with LLM.open(path, memory="2GiB") as llm:
        for _ in range(2):
            with pytest.raises(ChecksumError, match=name):
                llm.logits(tokens)
        flip()
        assert same_bits(llm.logits(tokens), expected)


def test_a_shard_that_shrinks(tmp_path: Path) -> None:
    path, tokens = written(tmp_path, "olmoe", "raw"), random_tokens(60, 61)
    file = path / "model.safetensors"
    content = file.read_bytes()
    with LLM.open_with(path, OpenOptions(max_resident=0)) as llm:
        expected = llm.logits(tokens)
        os.truncate(file, len(content) // 2)
        with pytest.raises(ReadError, match="shrank"):
            llm.logits(tokens)
        file.write_bytes(content)
        assert same_bits(llm.logits(tokens), expected)


def test_what_a_session_knows_a_mixture_by(tmp_path: Path) -> None:
    """A few experts a layer, raw or packed."""
    raw = written(tmp_path, "qwen3-moe", "packed").parent / "raw"
    identities = [model_identity(c.config, c.tensors) for c in map(open_checkpoint, (raw, tmp_path / "packed"))]
    assert identities[0] == identities[1]
    other = MOE_CASES["qwen3-moe"]
    again = type(other)(other.config | {"hidden_size": 256, "moe_intermediate_size": 256, "intermediate_size": 256})
    checkpoint = open_checkpoint(again.write(tmp_path / "other", seed=1))
    assert model_identity(checkpoint.config, checkpoint.tensors) != identities[0]
