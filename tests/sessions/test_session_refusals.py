"""Sessions that are refused, by name, and sessions that are damaged."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.cases import CASES, random_tokens
from helpers.checkpoints import random_tensors, tiny_config, write_checkpoint
from helpers.thorough import examples
from penstock import LLM, SamplingParams, Session
from penstock.errors import ContextError, MemoryCeilingError, SessionError, UsageError
from penstock.sessions.log import SessionLog, SessionWarning
from penstock.sessions.state import PASS, TURN

pytestmark = pytest.mark.usefixtures("no_fsync")

SAMPLED = SamplingParams(temperature=0.9, top_k=50, repetition_penalty=1.1, seed=3, max_tokens=14, ignore_eos=True)
TEXT = "def add(a, b):\n    return a + b\n\n\ndef mul("


def told(pieces: Iterator[object]) -> str:
    return "".join(piece.text for piece in pieces)  # type: ignore[attr-defined]


def least_ceiling(**options: str) -> int:
    with pytest.raises(MemoryCeilingError) as error:
        LLM.open("demo", draft="none", memory="1MiB", **options)  # type: ignore[arg-type]
    words = error.value.remedy.split()
    return int(words[words.index("MiB:") - 1]) << 20


class TestRefusals:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        return CASES["gqa-4"].write(tmp_path / "model")

    def begin(self, model: Path, path: Path, **options: str) -> None:
        with LLM.open(model, draft="none", **options) as llm, Session(llm, path) as session:  # type: ignore[arg-type]
            list(session.complete([5, 6, 7], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)))

    def refusal(self, model: Path, path: Path, **options: str) -> str:
        with LLM.open(model, draft="none", **options) as llm, pytest.raises(SessionError) as error:  # type: ignore[arg-type]
            Session(llm, path)
        return str(error.value)

    def test_other_weights_of_the_same_shape(self, model: Path, tmp_path: Path) -> None:
        self.begin(model, tmp_path / "talk")
        other = CASES["gqa-4"].write(tmp_path / "other", seed=1)
        assert self.refusal(other, tmp_path / "talk") == (
            f"{tmp_path}/talk was made with another model than {other}, with {model}: the shape is the same, the "
            "weights are others.\nOpen it with the model that made it, or begin another session."
        )

    def test_another_shape(self, model: Path, tmp_path: Path) -> None:
        self.begin(model, tmp_path / "talk")
        other = CASES["gqa-8"].write(tmp_path / "other")
        assert "num_key_value_heads is 2, not 1" in self.refusal(other, tmp_path / "talk")

    def test_another_kv_type(self, model: Path, tmp_path: Path) -> None:
        self.begin(model, tmp_path / "talk", kv_dtype="f32")
        told = self.refusal(model, tmp_path / "talk")
        assert "has keys and values in f32, and this run would have them in bf16" in told
        assert "Add --kv-dtype f32" in told

    def test_weights_that_differ_where_nobody_looks(self, tmp_path: Path) -> None:
        """One row of one matrix: the position that is computed again tells."""
        config = tiny_config()
        tensors = random_tensors(config)
        write_checkpoint(tmp_path / "model", config, tensors=tensors)
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = tensors[name].copy()
        tensors[name][3] ^= np.uint16(0x8000)
        write_checkpoint(tmp_path / "other", config, tensors=tensors)
        self.begin(tmp_path / "model", tmp_path / "talk")
        params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
        with (
            LLM.open(tmp_path / "other", draft="none") as llm,
            Session(llm, tmp_path / "talk") as session,
            pytest.raises(SessionError, match="was made with other weights: these give position 5 other keys"),
        ):
            list(session.complete([9], params))
        for use in (session.go_on, session.reset, lambda: session.complete([9], params)):
            with pytest.raises(UsageError, match="has been closed"):  # nothing of it gets into the file
                use()
        with LLM.open(tmp_path / "model", draft="none") as llm, Session(llm, tmp_path / "talk") as session:
            assert len(list(session.go_on())) > 1

    def test_a_fine_tune_by_low_rank(self, tmp_path: Path) -> None:
        config = tiny_config()
        tensors = random_tensors(config)
        write_checkpoint(tmp_path / "model", config, tensors=tensors)
        for name in tensors:
            if name.endswith("1.self_attn.q_proj.weight"):
                tensors[name] = tensors[name] ^ np.uint16(1)
        write_checkpoint(tmp_path / "tuned", config, tensors=tensors)
        self.begin(tmp_path / "model", tmp_path / "talk")
        assert "the weights are others" in self.refusal(tmp_path / "tuned", tmp_path / "talk")

    def test_text_and_conversation(self, llm: LLM, tmp_path: Path) -> None:
        with Session(llm, tmp_path / "talk") as session:
            list(session.ask("write a class", SAMPLED))
            with pytest.raises(UsageError, match="holds a conversation, not a text"):
                session.complete("x")
        with Session(llm, tmp_path / "text") as session:
            list(session.complete("x", SAMPLED))
            with pytest.raises(UsageError, match="holds a text, not a conversation"):
                session.ask("x")

    def test_too_long_a_question_leaves_it_as_it_was(self, tmp_path: Path) -> None:
        with LLM.open("demo", draft="none", context=60) as llm, Session(llm, tmp_path / "talk") as session:
            list(session.ask("write a class", SAMPLED))
            before = session.messages, session.tokens
            with pytest.raises(ContextError):
                session.ask("word " * 60, SAMPLED)
            assert (session.messages, session.tokens) == before
            list(session.ask("go", replace(SAMPLED, max_tokens=2)))

    def test_more_than_the_ceiling_has_room_for(self, tmp_path: Path) -> None:
        with LLM.open("demo", draft="none", kv_dtype="f32") as llm, Session(llm, tmp_path / "talk") as session:
            session.complete(random_tokens(9000, 4000), SAMPLED)
            session.stop()
            for _ in range(8999):
                llm.chain.append_slot(session._cache, bytes(llm.kv_shape.slot_bytes))
            assert session.turn is not None
            session._save(session.turn)
        low = least_ceiling(kv_dtype="f32") + (12 << 20)  # where the keys and values take 26
        with LLM.open("demo", draft="none", kv_dtype="f32", memory=low) as llm, pytest.raises(MemoryCeilingError):
            Session(llm, tmp_path / "talk")
        with LLM.open("demo", draft="none", kv_dtype="f32") as llm, Session(llm, tmp_path / "talk") as session:
            assert len(session.tokens) == 9000

    def test_an_answer_that_the_ceiling_has_no_room_for_any_more(self, llm: LLM, tmp_path: Path) -> None:
        with Session(llm, tmp_path / "talk") as session:
            next(session.complete(TEXT, replace(SAMPLED, max_tokens=llm.context - 100)))
        low = least_ceiling() + (1 << 20)
        with LLM.open("demo", draft="none", memory=low) as other, Session(other, tmp_path / "talk") as session:
            with pytest.raises(MemoryCeilingError, match="do not fit"):
                session.go_on()
            list(session.complete(" x", replace(SAMPLED, max_tokens=2)))

    def test_records_that_make_no_sense(self, llm: LLM, tmp_path: Path) -> None:
        path = tmp_path / "talk"
        with Session(llm, path) as session:
            list(session.complete(TEXT, SAMPLED))
        content = path.read_bytes()
        for kind, change in (
            (TURN, {"params": {"temperature": 9}}),
            (PASS, {"at": 9999}),
            (PASS, {"first": 15}),
            ("what", {}),
        ):
            path.write_bytes(content)
            log = SessionLog(path)
            records = list(log.replay())
            meta = next((r.meta for r in records if r.kind == kind), {})
            log.append(type("R", (), {"kind": kind, "meta": meta | change, "payload": (), "payload_bytes": 0})())
            log.close()
            with pytest.raises(SessionError, match="has intact records that make no sense together"):
                Session(llm, path)


@pytest.fixture(scope="module")
def talk(llm: LLM, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int], str]:
    """The bytes of a session that a kill cut off, its tokens to the end, and its text."""
    path = tmp_path_factory.mktemp("talk") / "talk"
    with Session(llm, path) as session:
        list(session.complete(TEXT, replace(SAMPLED, max_tokens=3)))
        pieces = session.complete("\n\n", SAMPLED)
        for _ in range(4):
            next(pieces)
        content = path.read_bytes()
        told(pieces)
        return content, session.tokens, session.turn.text if session.turn else ""


class TestDamage:
    def goes_on(self, llm: LLM, path: Path, tokens: list[int]) -> None:
        """What is there is what was said, and the rest is what would have come, to the end of the one or other text."""
        first = len(llm.encode(TEXT)) + 3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SessionWarning)
            with Session(llm, path) as session:
                assert session.tokens == tokens[: len(session.tokens)]
                if session.unfinished:
                    list(session.go_on())
                    assert session.tokens == tokens[: len(session.tokens)]
                    assert len(session.tokens) in (len(tokens), first)

    @settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(bit=st.integers(min_value=0))
    def test_a_flipped_bit_never_makes_a_wrong_token(
        self, llm: LLM, tmp_path: Path, talk: tuple[bytes, list[int], str], bit: int
    ) -> None:
        content, tokens, _ = talk
        damaged = bytearray(content)
        damaged[bit // 8 % len(content)] ^= 1 << bit % 8
        (tmp_path / "talk").write_bytes(damaged)
        with suppress(SessionError):
            self.goes_on(llm, tmp_path / "talk", tokens)

    def test_torn_anywhere(self, llm: LLM, tmp_path: Path, talk: tuple[bytes, list[int], str]) -> None:
        content, tokens, _ = talk
        for size in range(len(content) - 1, 0, -2711):
            (tmp_path / "talk").write_bytes(content[:size])
            self.goes_on(llm, tmp_path / "talk", tokens)

    def test_no_room_on_the_disk(self, llm: LLM, tmp_path: Path, talk: tuple[bytes, list[int], str]) -> None:
        from helpers.full_disk import room_for

        content, tokens, text = talk
        path = tmp_path / "talk"
        path.write_bytes(content)
        with Session(llm, path) as session:
            with room_for(len(content) + 2000), pytest.raises(SessionError, match=r"(?s)cannot be written.*Make room"):
                list(session.go_on())
            assert told(session.go_on()) == text
        with Session(llm, path) as session:
            assert session.tokens == tokens
