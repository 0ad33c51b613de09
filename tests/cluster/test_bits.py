"""However layers are cut over Ray's nodes, with whatever instruction sets: the bits of one process."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.adapters import LoraCase
from helpers.cases import CASES, random_tokens
from helpers.checkpoints import write_checkpoint
from helpers.packed_files import packable_config
from helpers.thorough import quick
from penstock import LLM, SamplingParams, Session
from penstock.models.stage import Share
from penstock.packing.pack import pack
from penstock.stages import crew

from .conftest import add_machine

pytest.importorskip("ray")
SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, seed=5, max_tokens=10, ignore_eos=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """A packed one with an adapter, and a mixture of experts."""
    folder = tmp_path_factory.mktemp("models")
    write_checkpoint(folder / "raw", packable_config() | {"num_hidden_layers": 5})
    pack(folder / "raw", folder / "packed")
    LoraCase(rank=3).write(folder / "lora", folder / "raw")
    CASES["qwen3-moe"].write(folder / "moe")
    return {"packed": (folder / "packed", (str(folder / "lora"),)), "mixture": (folder / "moe", ())}


@pytest.fixture(scope="module")
def unlike(machines: Any) -> Iterator[Any]:
    """The cluster, with a third machine whose kernels are the plain ones."""
    third = add_machine(machines, "three", PENSTOCK_ISA="scalar")
    yield machines
    machines.remove_node(third)


def observe(llm: LLM, folder: Path) -> list[Any]:
    """A long prompt, prompts that share passes, guesses, an adapter, a session that goes on."""
    prompt = random_tokens(100, 60, 1)
    seen: list[Any] = [llm.logits(prompt).tobytes()]
    seen += [output.token_ids for output in llm.generate([prompt, [*prompt[:50], 3], [5, 6, 7] * 8], SAMPLED)]
    seen.append(llm.generate([[1, 2, 3] * 9], replace(SAMPLED, temperature=0))[0].token_ids)
    for name in llm.adapters:
        seen.append(llm.generate([prompt[:40]], SAMPLED, adapter=name)[0].token_ids)
    for _ in range(2):
        with Session(llm, folder / "session") as session:
            seen.append([token for piece in session.complete(prompt[:20], SAMPLED) for token in piece.token_ids])
    return seen


@pytest.mark.parametrize("model", ["packed", "mixture"])
@pytest.mark.parametrize("seed", quick(1, range(10)))
def test_any_cut(
    seed: int, model: str, models: dict[str, Any], unlike: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, adapters = models[model]
    options: dict[str, Any] = {"memory": "2GiB", "adapters": adapters}
    with LLM.open(path, **options) as llm:
        (tmp_path / "alone").mkdir()
        alone = observe(llm, tmp_path / "alone")
    chance = random.Random(seed)

    def choose(parts: Any, nodes: Sequence[Any], network: Any, wanted: Any) -> Any:
        owners = [chance.randrange(len(nodes)) for _ in parts.layers]
        owners[chance.randrange(len(owners))] = 0  # this machine has one at least
        held = [tuple(layer for layer, owner in enumerate(owners) if owner == place) for place in range(len(nodes))]
        return SimpleNamespace(
            shares=[Share(own, not place, not place) if own else None for place, own in enumerate(held)]
        )

    monkeypatch.setattr(crew, "choose_cut", choose)
    with LLM.open(path, cluster=unlike.address, **options) as llm:
        assert observe(llm, tmp_path) == alone
