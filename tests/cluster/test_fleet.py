"""A model over the machines of a Ray cluster: the same tokens, and it goes on when one dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.cases import DEMO, random_tokens
from penstock import LLM, SamplingParams, Session
from penstock.cluster import actor, fleet
from penstock.errors import ClusterError, ClusterWarning
from penstock.stages import crew

from .conftest import MACHINE_MIB, add_machine

ray = pytest.importorskip("ray")
PARAMS = SamplingParams(temperature=0.7, seed=3, max_tokens=16, ignore_eos=True)
PROMPT = random_tokens(120, 400, 1)
OPTIONS: dict[str, Any] = {"memory": "2GiB", "draft": "none"}


@contextmanager
def over(machines: Any, **options: Any) -> Iterator[LLM]:
    options.setdefault("cut", "0-1,2-3,4-5")
    with LLM.open(DEMO, cluster=machines.address, **OPTIONS, **options) as llm:
        yield llm


def stage_of(llm: LLM, name: str) -> Any:
    return next(stage for stage in llm.chain.stages if getattr(stage, "name", None) == name)


def process_of(llm: LLM, name: str) -> int:
    """Of the host on a machine."""
    asked = stage_of(llm, name).line._actor.__ray_call__.remote(lambda _: os.getpid())
    return int(ray.get(asked))


def answer(llm: LLM, at: Mapping[int, Callable[[], None]] = {}) -> list[int]:
    tokens: list[int] = []
    for number, piece in enumerate(llm.stream(PROMPT, PARAMS)):
        tokens += piece.token_ids
        if number in at:
            at[number]()
    return tokens


@pytest.fixture(scope="module")
def alone() -> list[int]:
    with LLM.open(DEMO, **OPTIONS) as llm:
        return answer(llm)


def test_the_tokens_of_one_machine(machines: Any, alone: list[int]) -> None:
    with over(machines) as llm:
        assert [getattr(stage, "name", "here") for stage in llm.chain.stages] == ["here", "one", "two"]
        assert stage_of(llm, "one").room.share.budget.ceiling == MACHINE_MIB << 20
        assert answer(llm) == alone
        together = llm.generate([PROMPT, PROMPT[:50]], PARAMS)
        assert together[0].token_ids == alone
    with over(machines, cut="0,1-2,3-5") as llm:
        assert answer(llm) == alone
    with pytest.warns(ClusterWarning, match="left out"):
        llm = LLM.open(DEMO, cluster=machines.address, **OPTIONS)
    with llm:
        assert answer(llm) == alone


def test_killed_and_stopped_hosts(machines: Any, alone: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "SILENCE_SECONDS", 8.0)
    with over(machines) as llm:
        done = {
            3: lambda: os.kill(process_of(llm, "one"), signal.SIGKILL),
            8: lambda: os.kill(process_of(llm, "two"), signal.SIGSTOP),
        }
        assert answer(llm, done) == alone


def test_a_session_survives(machines: Any, tmp_path: Path) -> None:
    with LLM.open(DEMO, **OPTIONS) as llm:
        expected = llm.generate([PROMPT], PARAMS)[0].token_ids
    with over(machines) as llm, Session(llm, tmp_path / "session") as session:
        for number, _ in enumerate(session.complete(PROMPT, PARAMS)):
            if number == 4:
                os.kill(process_of(llm, "two"), signal.SIGKILL)
            if number == 7:
                break
    with over(machines) as llm, Session(llm, tmp_path / "session") as session:
        list(session.go_on())
        assert session.turn is not None
        assert session.turn.drawn == expected


def test_a_machine_that_is_gone_and_one_that_comes_back(
    machines: Any, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its layers go to those that are left; the next model that is opened uses it again."""
    monkeypatch.setattr(crew, "PATIENCE_SECONDS", 0.0)
    third = add_machine(machines, "three")
    cut = "0,1-2,3,4-5"
    with over(machines, cut=cut) as llm:
        assert stage_of(llm, "three")

        def remove() -> None:
            os.kill(process_of(llm, "three"), signal.SIGKILL)
            machines.remove_node(third, allow_graceful=False)

        assert answer(llm, {4: remove}) == alone
        assert "three" not in {getattr(stage, "name", "here") for stage in llm.chain.stages}
    again = add_machine(machines, "three")
    try:
        with over(machines, cut=cut) as llm:
            assert stage_of(llm, "three")
            assert answer(llm) == alone
    finally:
        machines.remove_node(again)


def test_who_is_there(machines: Any) -> None:
    there = fleet.RayFleet(machines.address)
    nodes = there.nodes()
    assert [node.name for node in nodes] == ["one", "two"]
    assert {node.ceiling for node in nodes} == {MACHINE_MIB << 20}
    there.close()


def test_a_model_that_is_not_there_is_told(machines: Any, tmp_path: Path) -> None:
    """As the machine says it, with its name."""
    there = fleet.RayFleet(machines.address)
    try:
        with LLM.open(DEMO, **OPTIONS) as llm:
            share = replace(llm.stages[0].share, layers=(1,), embedding=False, head=False)
        from penstock.stages.messages import HostSettings

        settings = HostSettings(str(tmp_path / "nothing"), share, 512, "bf16", None)
        with pytest.raises(Exception, match="one: "):
            there.nodes()[0].start(settings)
    finally:
        there.close()


def test_without_a_cluster(token: Path) -> None:
    with pytest.raises(ClusterError, match="No cluster answers at"):
        LLM.open(DEMO, cluster="127.0.0.1:1", **OPTIONS)
