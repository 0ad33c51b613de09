"""Adapters through the Python interface: which are there, what they take, and that guesses change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.adapters import LoraCase
from helpers.cases import random_tokens
from helpers.checkpoints import write_checkpoint
from helpers.numerics_oracles import same_bits
from helpers.packed_files import packable_config
from penstock import LLM, SamplingParams
from penstock.errors import MemoryCeilingError, UsageError
from penstock.packing.pack import pack

PROMPT = random_tokens(20, 61)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed one, with a coarse tier to guess with."""
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder / "raw", packable_config())
    pack(folder / "raw", folder / "model")
    LoraCase(rank=8).write(folder / "one", folder / "raw")
    LoraCase(rank=3).write(folder / "two", folder / "raw", seed=1)
    return folder / "model"


def both(model: Path) -> list[Path]:
    return [model.parent / "one", model.parent / "two"]


def test_each_prompt_through_its_own(model: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    with LLM.open(model, draft="none", adapters=both(model)) as llm:
        names = ("one", None, "two", "one")
        alone = [llm.generate([PROMPT], params, adapter=name)[0].token_ids for name in names]
        together = [llm.submit(PROMPT, params, adapter=name) for name in names]
        for _ in llm.drive(together):
            pass
        streamed = [t for piece in llm.stream(PROMPT, params, adapter="two") for t in piece.token_ids]
    assert [completion.sequence.token_ids for completion in together] == alone
    assert alone[0] == alone[3] != alone[1] != alone[2] == streamed


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_guesses_change_nothing(model: Path, temperature: float) -> None:
    """The coarse drafter guesses through the adapter, and is right more often than one that does not would be."""
    params = SamplingParams(temperature=temperature, seed=5, max_tokens=40, ignore_eos=True)
    with LLM.open(model, draft="none", adapters=both(model)) as llm:
        plain = [llm.generate([PROMPT], params, adapter=name)[0].token_ids for name in ("one", "two")]
    with LLM.open(model, draft_nodes=6, adapters=both(model)) as llm:
        assert [d.name for d in llm.engine.speculator.drafters if d.name == "coarse"]
        guessed = [llm.submit(PROMPT, params, adapter=name) for name in ("one", "two")]
        for _ in llm.drive(guessed):
            pass
        assert sum(completion.stats.passes for completion in guessed) < 2 * 40
    assert [completion.sequence.token_ids for completion in guessed] == plain


def test_a_cache_has_an_adapter(model: Path) -> None:
    with LLM.open(model, adapters=both(model)) as llm:
        cache = llm.new_cache("one")
        assert same_bits(llm.model.forward(PROMPT, 0, cache), llm.logits(PROMPT, adapter="one"))
        with pytest.raises(UsageError, match="of another adapter"):
            llm.submit([*PROMPT, 1], cache=cache, adapter="two")


def test_what_they_take(model: Path) -> None:
    with LLM.open(model) as llm:
        without = llm.plan_pass()
        assert without.adapters == llm.memory.budget.adapter_rank == 0
        assert "adapters" not in str(without)
    with LLM.open(model, adapters=both(model)) as llm:
        plan = llm.plan_pass()
        files = sum((path / "adapter_model.safetensors").stat().st_size for path in both(model))
        assert 0.9 * files < plan.adapters < files
        assert plan.adapters == sum(adapter.nbytes for adapter in llm.adapters.values())
        assert llm.memory.budget.adapter_rank == 8
        assert plan.activations > without.activations
        assert "adapters" in str(plan)


def test_they_count_under_the_ceiling(model: Path) -> None:
    large = LoraCase(rank=1000).write(model.parent / "large", model.parent / "raw")

    def least(*adapters: Path) -> int:
        with pytest.raises(MemoryCeilingError) as error:
            LLM.open(model, memory="64MiB", draft="none", adapters=adapters)
        words = error.value.remedy.split()
        return int(words[words.index("MiB:") - 1]) << 20

    nbytes = (large / "adapter_model.safetensors").stat().st_size
    assert nbytes > 20 << 20
    without = least()  # first: an error keeps what was open for a while
    assert 0.8 * nbytes < least(large) - without < 1.5 * nbytes


def test_names_that_are_not_there(model: Path) -> None:
    with LLM.open(model, adapters=[f"style={both(model)[0]}"]) as llm:
        for call in (
            lambda: llm.generate([PROMPT], adapter="one"),
            lambda: llm.logits(PROMPT, adapter="one"),
            lambda: llm.submit(PROMPT, adapter="one"),
            lambda: llm.new_cache("one"),
        ):
            with pytest.raises(UsageError, match="no adapter called 'one'") as error:
                call()
            assert error.value.remedy == "Those that are open: 'style'."
        assert not llm.busy
    with LLM.open(model) as llm, pytest.raises(UsageError) as error:
        llm.generate([PROMPT], adapter="one")
    assert error.value.remedy == "Open the model with it: adapters=[DIR]."
