"""Logits through adapters: near the float64 reference, and the same bits whatever the pass looks like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.adapters import LoraCase, read_adapter
from helpers.cases import CASES, Case, random_tokens
from helpers.checkpoints import write_checkpoint
from helpers.numerics_oracles import same_bits
from helpers.packed_files import packable_config
from helpers.reference import F32, Reference
from helpers.rounding_noise import expected_logits
from penstock import LLM, _core
from penstock.models.kv_cache import KvCache
from penstock.models.rows import Rows, SequenceRows
from penstock.models.stage import Share
from penstock.options import OpenOptions
from penstock.packing.pack import pack

LENGTH = 40
LORA = {
    "plain": LoraCase(),
    "rslora": LoraCase(rank=5, alpha=3, rslora=True, dtype="BF16"),
    "patterns": LoraCase(rank=2, ranks={"k_proj": 7, "down_proj": 17}, alphas={"o_proj": 1, "up_proj": 30}),
    "few": LoraCase(rank=1, parts=("o_proj", "down_proj", "output_linear"), dtype="F16"),
}
MODELS = ["gqa-4", "biases", "qwen2-window", "gemma3", "phi3", "granite-4", "olmo2", "qwen3-moe", "glm4-moe", "mixtral"]


@pytest.mark.parametrize("lora", LORA)
@pytest.mark.parametrize("name", MODELS)
def test_near_the_reference(tmp_path: Path, name: str, lora: str) -> None:
    model = CASES[name].write(tmp_path / "model")
    path = LORA[lora].write(tmp_path / "style", model)
    reference = Reference(model, adapter=read_adapter(path, LORA[lora]))
    tokens = random_tokens(LENGTH, reference.config["vocab_size"])
    expected = expected_logits(reference, tokens)
    with LLM.open(model, kv_dtype="f32", adapters=[path]) as llm:
        expected.assert_near(llm.logits(tokens, adapter="style"))
        plain = llm.logits(tokens)
    with pytest.raises(AssertionError):
        expected.assert_near(plain)
    expected_logits(Reference(model), tokens).assert_near(plain)


def test_the_names_of_a_model_that_sees_pictures(tmp_path: Path) -> None:
    """PEFT's names are those of the model's own modules."""
    model = CASES["gqa-4"].write(tmp_path / "model")
    path = LORA["plain"].write(tmp_path / "style", model)
    tokens = random_tokens(LENGTH, 96)
    with LLM.open(model, adapters=[path]) as llm:
        expected = llm.logits(tokens, adapter="style")
    file = path / "adapter_model.safetensors"
    head, data = file.read_bytes()[8:].split(b"}}", 1)
    head = head.replace(b"model.model.layers", b"model.model.language_model.layers") + b"}}"
    data = data.lstrip(b" ")
    head += b" " * (-len(head) % 8)
    file.write_bytes(len(head).to_bytes(8, "little") + head + data)
    with LLM.open(model, adapters=[path]) as llm:
        assert same_bits(llm.logits(tokens, adapter="style"), expected)


@pytest.fixture(scope="module", params=["dense", "experts"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With pieces of several kinds once it is packed, and biases; or with experts."""
    path = tmp_path_factory.mktemp("bits")
    experts = CASES["qwen3-moe"].config | {"moe_intermediate_size": 256} if request.param == "experts" else {}
    config = {
        key: value for key, value in packable_config(**experts | {"attention_bias": True}).items() if value is not None
    }
    write_checkpoint(path / "model", config)
    for seed, name in enumerate(("one", "two")):
        LORA["patterns" if seed else "plain"].write(path / name, path / "model", seed)
    return path / "model"


def places(model: Path) -> tuple[str, ...]:
    return str(model.parent / "one"), str(model.parent / "two")


def logits(model: Path, tokens: Sequence[int], adapter: str | None = "one", chunk: int = LENGTH, **options: Any) -> F32:
    with LLM.open_with(model, OpenOptions(adapters=places(model), **options)) as llm:
        cache, parts = llm.new_cache(adapter), []
        for begin in range(0, len(tokens), chunk):
            parts.append(run(llm, [(cache, tokens[begin : begin + chunk])])[0])
            cache.truncate(cache.length + len(tokens[begin : begin + chunk]))
        return np.concatenate(parts)


def run(llm: LLM, sequences: Sequence[tuple[KvCache, Sequence[int]]]) -> list[F32]:
    """Logits of all tokens of each sequence, in one pass."""
    rows = Rows([SequenceRows.plain(cache, tokens, range(len(tokens))) for cache, tokens in sequences])
    need = llm.memory.need({cache: cache.length + len(tokens) for cache, tokens in sequences}, len(rows), len(rows))
    out, _ = llm.chain.run(rows, need)
    return [out[span] for span in rows.spans]


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return random_tokens(LENGTH, 61)


@pytest.fixture(scope="module")
def expected(model: Path, tokens: list[int]) -> dict[str | None, F32]:
    return {name: logits(model, tokens, name) for name in ("one", "two", None)}


OPTIONS: dict[str, dict[str, Any]] = {
    "chunks of 7": {"chunk": 7},
    "single tokens": {"chunk": 1},
    "three threads": {"threads": 3},
    "nothing resident": {"max_resident": 0},
    "half resident": {"max_resident": 100_000, "chunk": 11},
    "two stages": {"shares": (Share((0,), head=False), Share((1,), embedding=False))},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("packed", [False, True])
def test_bits(
    model: Path, tokens: list[int], expected: dict[str | None, F32], option: str, packed: bool, tmp_path: Path
) -> None:
    path = model
    if packed:
        pack(model, tmp_path / "packed")
        path = tmp_path / "packed"
        for name in ("one", "two"):
            (tmp_path / name).symlink_to(model.parent / name)
    for name, bits in expected.items():
        assert same_bits(logits(path, tokens, name, **OPTIONS[option]), bits)


def test_every_instruction_set(model: Path, tokens: list[int], expected: dict[str | None, F32], isa: str) -> None:
    assert _core.isa() == isa
    for name, bits in expected.items():
        assert same_bits(logits(model, tokens, name), bits)


def test_without_the_option_nothing_changes(model: Path, tokens: list[int], expected: dict[str | None, F32]) -> None:
    with LLM.open(model) as llm:
        assert same_bits(llm.logits(tokens), expected[None])


@pytest.mark.parametrize(
    "company",
    [("one", "two"), ("one", None, "two", None), ("two", "one", "one", None, "one"), (None, "one"), ("one", None)],
)
def test_company(
    model: Path, tokens: list[int], expected: dict[str | None, F32], company: tuple[str | None, ...]
) -> None:
    """Each through its own, wherever its rows are in the pass."""
    with LLM.open(model, adapters=places(model)) as llm:
        caches = [llm.new_cache(name) for name in company]
        for part in (slice(0, 23), slice(23, None)):
            together = run(llm, [(cache, tokens[part]) for cache in caches])
            for cache, name, out in zip(caches, company, together, strict=True):
                assert same_bits(out, expected[name][part])
                cache.truncate(cache.length + len(out))


def test_rows_that_are_gathered_in_parts(tmp_path: Path) -> None:
    path = CASES["gqa-4"].write(tmp_path / "model")
    style = LORA["plain"].write(tmp_path / "style", path)
    tokens = random_tokens(300, 61)
    with LLM.open(path, adapters=[style]) as llm:
        expected = llm.logits(tokens, adapter="style")
        caches = [llm.new_cache(name) for name in ("style", None, "style")]
        first, _, last = run(llm, [(caches[0], tokens), (caches[1], tokens[:5]), (caches[2], tokens)])
    assert same_bits(first, expected)
    assert same_bits(last, expected)


class TestRows:
    @pytest.fixture
    def caches(self, tmp_path: Path) -> Iterator[dict[str | None, KvCache]]:
        model = Case({}).write(tmp_path / "model")
        paths = [LORA["few"].write(tmp_path / name, model) for name in ("a", "b")]
        with LLM.open(model, adapters=paths) as llm:
            yield {name: llm.new_cache(name) for name in ("a", "b", None)}

    def by_adapter(self, caches: dict[str | None, KvCache], *sequences: tuple[str | None, int]) -> dict[str, Any]:
        return Rows([SequenceRows.plain(caches[name], range(count)) for name, count in sequences]).by_adapter()

    def test_rows_beside_each_other_are_a_slice(self, caches: dict[str | None, KvCache]) -> None:
        found = self.by_adapter(caches, ("a", 2), ("a", 3), (None, 1), ("b", 2))
        assert found == {"a": slice(0, 5), "b": slice(6, 8)}

    def test_others_are_named_one_by_one(self, caches: dict[str | None, KvCache]) -> None:
        found = self.by_adapter(caches, ("a", 2), (None, 1), ("a", 1))
        assert found["a"].tolist() == [0, 1, 3]
        assert found["a"].dtype == np.int32
