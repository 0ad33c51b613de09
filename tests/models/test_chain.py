"""However the layers are shared out among stages, the logits are those of one stage, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from helpers.assembled import commit, generate, new_cache, open_engine
from helpers.cases import DEMO, random_tokens
from helpers.checkpoints import random_tensors, tiny_config, write_checkpoint
from helpers.thorough import examples, quick
from penstock import LLM, SamplingParams, Session, _core
from penstock.errors import MemoryCeilingError, UsageError
from penstock.models.kv_cache import BLOCK_SLOTS
from penstock.models.rows import Rows, SequenceRows
from penstock.models.stage import Share
from penstock.options import OpenOptions
from penstock.packing.pack import pack
from penstock.system import machine
from penstock.system.machine import Footprint

VOCAB = 96
SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, seed=5)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Models with 1 to 6 layers."""
    kv_heads, queries = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 4]))
    return tiny_config(
        num_hidden_layers=draw(st.integers(1, 6)),
        hidden_size=draw(st.sampled_from([16, 33, 48])),
        intermediate_size=draw(st.sampled_from([24, 50])),
        num_key_value_heads=kv_heads,
        num_attention_heads=kv_heads * queries,
        head_dim=draw(st.sampled_from([2, 8, 18])),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
    )


@st.composite
def cuts(draw: st.DrawFn, layers: int, most: int = 5) -> list[Share]:
    """The layers in runs, dealt out round-robin, or anyhow, to 1 to 5 stages."""
    count = draw(st.integers(1, most))
    how = draw(st.sampled_from(["runs", "dealt", "anyhow"]))
    owners = {
        "runs": [layer * count // layers for layer in range(layers)],
        "dealt": [layer % count for layer in range(layers)],
        "anyhow": draw(st.lists(st.integers(0, count - 1), min_size=layers, max_size=layers)),
    }[how]
    embedding, head = draw(st.integers(0, count - 1)), draw(st.integers(0, count - 1))
    return [
        Share(tuple(i for i in range(layers) if owners[i] == stage), stage == embedding, stage == head)
        for stage in range(count)
    ]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def observe(path: Path, shares: Sequence[Share] = (), isas: Sequence[str] = (), **options: Any) -> list[np.ndarray]:
    """Logits of a prompt in chunks, of a tree, of what is kept of it, of prompts that begin alike and share passes."""
    prompt, seen = random_tokens(70, VOCAB, 1), []
    with open_engine(path, shares=shares, isas=isas, **options) as engine:
        cache = new_cache(engine)
        seen.append(commit(engine, cache, prompt[:50], chunk=23))
        tree = SequenceRows.tree(cache, prompt[50:56], [-1, 0, 0, 1, 2, 4])
        seen.append(engine.chain.run(Rows([tree]))[0])
        cache.keep([cache.length + node for node in (0, 2, 4)])
        other = new_cache(engine)
        other.adopt(cache, 1)
        seen.append(commit(engine, other, prompt[BLOCK_SLOTS:40]))
        other.truncate(BLOCK_SLOTS - 5)  # back into a block that is shared
        seen.append(commit(engine, other, prompt[:9]))
        seen.append(commit(engine, cache, prompt[56:60]))
        slot = engine.chain.read_slot(cache, cache.length - 1)
        seen.append(np.frombuffer(slot, np.uint8))
        cache.truncate(cache.length - 1)
        engine.chain.append_slot(cache, slot)
        again = new_cache(engine)
        for index in range(cache.length // BLOCK_SLOTS):
            engine.chain.append_block(again, np.concatenate(engine.chain.read_block(cache, index)))
        seen.append(commit(engine, again, prompt[60:]))
        seen.append(commit(engine, cache, prompt[60:]))
        begun_alike = [[*prompt[:40], *random_tokens(n, VOCAB, n)] for n in (1, 9, 30)]
        for tokens, logits in generate(engine, [prompt, *begun_alike], 4, SAMPLED):
            seen += [np.array(tokens), logits]
    return seen


@settings(
    max_examples=examples(20),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
@given(st.data())
def test_any_cut_of_any_model_gives_the_bits_of_one_stage(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    config = data.draw(configs())
    path = tmp_path_factory.mktemp("model")
    write_checkpoint(path, config, tensors=random_tensors(config, seed=data.draw(st.integers(0, 99))))
    shares = data.draw(cuts(config["num_hidden_layers"]))
    isas = data.draw(st.lists(st.sampled_from(_core.isas()), min_size=len(shares), max_size=len(shares)))
    resident, kv = data.draw(st.sampled_from([0, 0.5, 1])), data.draw(st.sampled_from(["bf16", "f32"]))
    expected = observe(path, kv=kv)
    found = observe(path, shares, isas, kv=kv, resident=resident)
    assert all(map(same, found, expected)), (shares, isas)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "demo"
    pack(DEMO, path)
    return path


DEALT = (Share((0, 3), head=False), Share((1, 2, 5), embedding=False, head=False), Share((4,), embedding=False))
RUNS = (Share((0, 1, 2), head=False), Share((3, 4, 5), embedding=False))


@pytest.mark.parametrize("shares", [DEALT, RUNS])
class TestOpenModels:
    """Through LLM: packed weights, guesses of the coarse tier, ceilings, sessions."""

    PARAMS = SamplingParams(temperature=0.7, seed=3, max_tokens=24, ignore_eos=True)
    TEXT = "def add(a, b):\n    return a + b\n\n\ndef mul("

    @pytest.mark.parametrize("draft_nodes", quick([12], [0, 12]))
    def test_the_same_answers(self, packed: Path, shares: tuple[Share, ...], draft_nodes: int) -> None:
        answers = []
        for cut in ((), shares):
            options = OpenOptions(draft_nodes=draft_nodes, threads=1, shares=cut)
            with LLM(packed, options) as llm:
                answers.append([o.token_ids for o in llm.generate([self.TEXT, "import os\n"], self.PARAMS)])
                logits = llm.logits(llm.encode(self.TEXT))
                answers[-1].append(logits.tobytes())
        assert answers[0] == answers[1]

    def test_a_session_goes_on_over_other_stages(self, packed: Path, shares: tuple[Share, ...], tmp_path: Path) -> None:
        with LLM(packed, OpenOptions(draft="none", threads=1)) as llm:
            (whole,) = llm.generate([self.TEXT], self.PARAMS)
            with Session(llm, tmp_path / "log") as session:
                pieces = session.complete(self.TEXT, self.PARAMS)
                for _ in range(5):
                    next(pieces)
                pieces.close()  # type: ignore[attr-defined]
        with (
            LLM(packed, OpenOptions(draft="none", threads=1, shares=shares)) as llm,
            Session(llm, tmp_path / "log") as session,
        ):
            assert session.rows_to_come == 2, "keys and values come from the file, and one position for proof"
            assert "".join(piece.text for piece in session.go_on()) == whole.text

    def test_every_stage_keeps_to_its_part_of_the_ceiling(
        self, packed: Path, shares: tuple[Share, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # What the process takes, and with it the size of the rings, is another beside other tests.
        monkeypatch.setattr(machine, "footprint", lambda: Footprint(200 << 20, 0))
        ceiling = 640 << 20
        with LLM(packed, OpenOptions(draft="none", threads=1, memory=ceiling, shares=shares)) as llm:
            llm.generate([self.TEXT], replace(self.PARAMS, max_tokens=4))
            rooms = llm.memory.rooms
            assert sum(room.share.budget.ceiling for room in rooms) <= ceiling
            for room, stage in zip(rooms, llm.chain.stages, strict=True):
                assert stage.weights.resident_bytes <= room.plan.resident  # type: ignore[attr-defined]
        with pytest.raises(MemoryCeilingError, match="least that works"):
            LLM(packed, OpenOptions(draft="none", threads=1, memory=60 << 20, shares=shares))


@pytest.mark.parametrize(
    "shares",
    [
        [Share((0,))],
        [Share((0, 1)), Share((1,), embedding=False, head=False)],
        [Share((0,), embedding=False), Share((1,), embedding=False, head=False)],
        [Share((0,)), Share((1,), embedding=False)],
    ],
    ids=["a layer is missing", "a layer twice", "no embedding", "two heads"],
)
def test_a_cut_that_is_none(tmp_path: Path, shares: list[Share]) -> None:
    write_checkpoint(tmp_path, tiny_config())
    with pytest.raises(UsageError, match="Cut it otherwise"), open_engine(tmp_path, shares=shares):
        pass


@pytest.fixture(autouse=True)
def _isa() -> Iterator[None]:
    before = _core.isa()
    yield
    _core.set_isa(before)
