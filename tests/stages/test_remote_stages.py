"""Stages in other processes: the bits of one process, and answers that go on when one is lost."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers.adapters import LoraCase
from helpers.cases import CASES, random_tokens
from helpers.checkpoints import write_checkpoint
from helpers.packed_files import packable_config
from helpers.process_fleet import ProcessFleet, ProcessNode
from penstock import LLM, SamplingParams, Session, _core
from penstock.errors import ClusterError, ClusterWarning, StageLostError, UsageError
from penstock.models.stage import Share
from penstock.options import OpenOptions
from penstock.packing.pack import pack
from penstock.stages import crew
from penstock.stages.choose_cut import choose_cut
from penstock.stages.messages import HostSettings

VOCAB = 61
SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, seed=5, max_tokens=14, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed, of six layers, with an adapter beside it."""
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder / "raw", packable_config() | {"num_hidden_layers": 6})
    pack(folder / "raw", folder / "packed")
    LoraCase(rank=3).write(folder / "lora", folder / "raw")
    return folder / "packed"


@pytest.fixture(autouse=True)
def dealt_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models this small are quickest on one machine."""

    def choose(parts: Any, nodes: Sequence[Any], network: Any, wanted: Any) -> Any:
        layers, count = len(parts.layers), len(nodes)
        owners = [layer % count if wanted == "dealt" else layer * count // layers for layer in range(layers)]
        held = [tuple(layer for layer in range(layers) if owners[layer] == place) for place in range(count)]
        return SimpleNamespace(shares=[Share(own, not place, not place) for place, own in enumerate(held)])

    monkeypatch.setattr(crew, "choose_cut", choose)


@contextmanager
def shared_out(model: Path, nodes: Sequence[ProcessNode], **options: Any) -> Iterator[tuple[LLM, ProcessFleet]]:
    """The model with some of its layers on these nodes, all of which the fleet ends."""
    fleet = ProcessFleet(nodes)
    try:
        with LLM.open_with(model, OpenOptions(fleet=fleet, memory="2GiB", **options)) as llm:
            yield llm, fleet
    finally:
        fleet.close()


def observe(llm: LLM) -> list[Any]:
    """Logits of a long prompt, answers to prompts that share passes and begin alike, a score, a vector."""
    prompt = random_tokens(150, VOCAB, 1)
    seen: list[Any] = [llm.logits(prompt).tobytes()]
    prompts = [prompt, [*prompt[:90], 3], [5, 6, 7] * 8]
    seen += [output.token_ids for output in llm.generate(prompts, SAMPLED)]
    seen.append(llm.generate([prompt[:40]], replace(SAMPLED, temperature=0))[0].token_ids)
    if llm.adapters:
        seen.append(llm.generate([prompt[:40]], SAMPLED, adapter="lora")[0].token_ids)
    seen.append(llm.score([prompt[:50]])[0].logprobs.tobytes())
    seen.append(llm.embed([prompt[:70]]).tobytes())
    return seen


def isas() -> list[str]:
    """All but the slowest, which the default of one node is."""
    return [isa for isa in _core.isas() if isa != "scalar"]


@pytest.mark.parametrize("cut", ["runs", "dealt"])
def test_the_bits_of_one_process(cut: str, model: Path) -> None:
    """With unlike instruction sets, guesses, an adapter; the head here, layers there, packed here and raw there."""
    options: dict[str, Any] = {"adapters": (str(model.parent / "lora"),)}
    with LLM.open(model, memory="2GiB", **options) as llm:
        alone = observe(llm)
    raw = ProcessNode("raw", change=lambda settings: replace(settings, model=str(model.parent / "raw")))
    nodes = [ProcessNode("scalar", isa="scalar"), raw]
    with shared_out(model, nodes, cut=cut, **options) as (llm, _):
        assert {stage.share.layers for stage in llm.chain.stages} == {
            "runs": {(0, 1), (2, 3), (4, 5)},
            "dealt": {(0, 3), (1, 4), (2, 5)},
        }[cut]
        assert observe(llm) == alone


def test_a_mixture_of_experts(tmp_path: Path) -> None:
    case = CASES["qwen3-moe"]
    case.write(tmp_path)
    params = replace(SAMPLED, max_tokens=6)
    tokens = random_tokens(40, 60, 3)
    with LLM.open(tmp_path, memory="2GiB") as llm:
        alone = llm.logits(tokens).tobytes(), llm.generate([tokens], params)[0].token_ids
    with shared_out(tmp_path, [ProcessNode("one")]) as (llm, _):
        assert (llm.logits(tokens).tobytes(), llm.generate([tokens], params)[0].token_ids) == alone


def answer(llm: LLM, at: dict[int, Any]) -> list[int]:
    """One answer, with something done after some of its pieces."""
    tokens: list[int] = []
    for number, piece in enumerate(llm.stream(random_tokens(80, VOCAB, 2), replace(SAMPLED, max_tokens=24))):
        tokens += piece.token_ids
        if number in at:
            at[number]()
    return tokens


def test_lost_stages_cost_no_token(model: Path) -> None:
    """Killed, or silent: the tokens are those that would have come."""
    nodes = [ProcessNode("one"), ProcessNode("two", silence=5.0)]
    with LLM.open(model, memory="2GiB", draft="none") as llm:
        alone = answer(llm, {})
    with shared_out(model, nodes, draft="none") as (llm, _):
        started = [len(node.lines) for node in nodes]
        silence = {3: nodes[0].kill, 9: lambda: nodes[1].signal(signal.SIGSTOP), 15: nodes[1].kill}
        assert answer(llm, silence) == alone
        assert [len(node.lines) for node in nodes] == [started[0] + 1, started[1] + 2]
        assert answer(llm, {}) == alone


def test_layers_of_a_machine_that_stays_away_go_to_the_others(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "PATIENCE_SECONDS", 0.0)
    nodes = [ProcessNode("one"), ProcessNode("two")]

    def away() -> None:
        nodes[0].up = False
        nodes[0].kill()

    with LLM.open(model, memory="2GiB", draft="none") as llm:
        alone = answer(llm, {})
    with shared_out(model, nodes, draft="none") as (llm, _):
        assert answer(llm, {5: away}) == alone
        assert [getattr(stage, "name", "here") for stage in llm.chain.stages] == ["here", "two"]
        assert sorted(layer for stage in llm.chain.stages for layer in stage.share.layers) == list(range(6))


def test_a_session_survives(model: Path, tmp_path: Path) -> None:
    """A stage is lost amid an answer, and another process goes on with the session, shared out or not."""
    prompt, params = random_tokens(40, VOCAB, 2), replace(SAMPLED, max_tokens=20)
    with LLM.open(model, memory="2GiB", draft="none") as llm:
        alone = llm.generate([prompt], params)[0].token_ids
        after = llm.generate([[*prompt, *alone, 4]], params)[0].token_ids
    nodes = [ProcessNode("one")]
    with shared_out(model, nodes, draft="none") as (llm, _), Session(llm, tmp_path / "session") as session:
        for number, _ in enumerate(session.complete(prompt, params)):
            if number in (2, 8):
                nodes[0].kill()
            if number == 11:
                break
    with (
        shared_out(model, [ProcessNode("one")], draft="none") as (llm, _),
        Session(llm, tmp_path / "session") as session,
    ):
        passes = sum(1 for _ in session.go_on())
        assert session.turn is not None
        assert session.turn.drawn == alone
        assert passes < 20
    with LLM.open(model, memory="2GiB", draft="none") as llm, Session(llm, tmp_path / "session") as session:
        list(session.complete([4], params))
        assert session.turn is not None
        assert session.turn.drawn == after


def test_keys_and_values_that_are_kept_on_the_disk(model: Path, tmp_path: Path) -> None:
    """A prefix cache that one process filled serves layers in several, and the other way round."""
    prompt = random_tokens(200, VOCAB, 4)
    options: dict[str, Any] = {"draft": "none", "prefix_cache": str(tmp_path / "cache")}
    with shared_out(model, [ProcessNode("one")], **options) as (llm, _):
        first = llm.generate([prompt], SAMPLED)[0]
    for nodes in ([], [ProcessNode("two")]):
        with shared_out(model, nodes, **options) as (llm, _):
            again = llm.generate([prompt], SAMPLED)[0]
        assert again.token_ids == first.token_ids
        assert again.stats.cached_tokens >= 128


def test_changed_bytes_are_sent_again(model: Path) -> None:
    node, chance = ProcessNode("one"), random.Random(1)

    def garble(data: bytes) -> bytes:
        if chance.random() < 0.9:
            return data
        at = chance.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]

    with LLM.open(model, memory="2GiB", draft="none") as llm:
        alone = answer(llm, {})
    with shared_out(model, [node], draft="none") as (llm, _):
        node.garble = garble
        assert answer(llm, {}) == alone
        node.garble = lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:]
        with pytest.raises(ClusterError, match="one"):
            llm.generate([[1, 2, 3]], SAMPLED)
        node.garble = bytes
        assert answer(llm, {}) == alone


@pytest.mark.parametrize("what", ["weights", "config"])
def test_a_node_with_another_model_is_refused(what: str, model: Path, tmp_path: Path) -> None:
    """By name, with what differs; nothing is left running."""
    config = packable_config() | {"num_hidden_layers": 6}
    if what == "config":
        config |= {"rms_norm_eps": 1e-3}
    write_checkpoint(tmp_path, config, seed=1 if what == "weights" else 0)

    def other(settings: HostSettings) -> HostSettings:
        return replace(settings, model=str(tmp_path))

    node = ProcessNode("liar", change=other)
    with pytest.raises(ClusterError, match="liar has another"), shared_out(model, [node]):
        pass
    assert not any(line.process.is_alive() for line in node.lines)


def test_a_node_without_room_says_so(model: Path) -> None:
    with (
        pytest.raises(UsageError, match="small: A memory ceiling"),
        shared_out(model, [ProcessNode("small", 30 << 20)]),
    ):
        pass


def test_machines_that_would_only_cost_time_are_left_out(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And this one guesses as it does alone."""
    monkeypatch.setattr(crew, "choose_cut", choose_cut)
    fleet = ProcessFleet([ProcessNode("one")])
    with pytest.warns(ClusterWarning, match="left out"):
        llm = LLM.open_with(model, OpenOptions(fleet=fleet, memory="2GiB"))
    with llm:
        assert len(llm.chain.stages) == 1
        assert fleet.closed
        assert "coarse" in [drafter.name for drafter in llm.engine.speculator.drafters]


def test_a_cut_that_is_asked_for(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "choose_cut", choose_cut)
    with shared_out(model, [ProcessNode("one"), ProcessNode("two")], cut="0,1-5") as (llm, _):
        assert [stage.share.layers for stage in llm.chain.stages] == [(0,), (1, 2, 3, 4, 5)]
    with pytest.raises(UsageError, match="layer 6"), shared_out(model, [ProcessNode("one")], cut="0-3,4-6"):
        pass


def test_a_cut_needs_machines() -> None:
    with pytest.raises(UsageError, match="nothing to cut"):
        OpenOptions(cut="dealt")


def test_losses_without_end_are_told(model: Path) -> None:
    """A host that dies of whatever it is asked."""
    node = ProcessNode("one")
    with shared_out(model, [node], draft="none") as (llm, _):
        start = node.start

        def dying(settings: HostSettings) -> Any:
            line = start(settings)
            node.kill()
            return line

        node.start = dying  # type: ignore[method-assign]
        node.kill()
        with pytest.raises(StageLostError, match="one"):
            llm.generate([[1, 2, 3]], SAMPLED)


def test_memory_of_both_sides_counts(model: Path) -> None:
    """What no stage has room for is refused, wherever that is."""
    with shared_out(model, [ProcessNode("one", 300 << 20)]) as (llm, _):
        here, there = (room.share for room in llm.memory.rooms)
        assert there.budget.ceiling == 300 << 20
        assert here.budget.remote
        assert there.budget.remote
        assert not there.with_engine
        with pytest.raises(UsageError, match=r"ceiling of (300|2048) MiB"):
            llm.memory.most_tokens([1], 10**9, 1 << 40)


def test_parts_of_a_pass_tell_of_the_network(model: Path) -> None:
    with shared_out(model, [ProcessNode("one")], draft="none") as (llm, _):
        layers: list[int] = []
        llm.on_layer = lambda index, *_: layers.append(index)
        completion = llm.submit([1, 2, 3], replace(SAMPLED, max_tokens=1))
        stats = llm.step()
        assert completion.sequence.token_ids
    names = [part.name for part in stats.parts]
    assert names == [
        "embedding",
        "layer 0",
        "layer 1",
        "layer 2",
        "network one",
        "layer 3",
        "layer 4",
        "layer 5",
        "head",
    ]
    assert layers == list(range(6))
    assert np.isfinite([part.wait_seconds for part in stats.parts]).all()
