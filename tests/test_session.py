"""Sessions go on with the tokens that they would have had, whatever cut them off, and compute nothing twice."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import CASES, DEMO, random_tokens
from checkpoints import random_tensors, tiny_config, write_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock import LLM, SamplingParams, Session, machine
from penstock.errors import ContextError, MemoryCeilingError, PenstockError, ReadError, SessionError, UsageError
from penstock.llm import Options
from penstock.packing.pack import pack
from penstock.session_log import SessionLog, SessionWarning
from penstock.session_state import PASS, TURN

SAMPLED = SamplingParams(temperature=0.9, top_k=50, repetition_penalty=1.1, seed=3, max_tokens=14, ignore_eos=True)
TEXT = "def add(a, b):\n    return a + b\n\n\ndef mul("


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM.open("demo", draft="none") as llm:
        yield llm


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "demo"
    pack(DEMO, path)
    return path


def told(pieces: Iterator[object]) -> str:
    return "".join(piece.text for piece in pieces)  # type: ignore[attr-defined]


def kills(session: Session, pieces: Iterator[object], path: Path) -> list[Path]:
    """The file as a kill after each pass would leave it; what is there is on the disk before a piece is told."""
    copies = []
    for _ in pieces:
        copies.append(path.with_name(f"killed{len(copies)}"))
        shutil.copy(path, copies[-1])
    return copies


def rows_of_passes(llm: LLM, session: Session, pieces: Iterator[object]) -> list[int]:
    last = None
    for piece in pieces:
        last = piece
    return [] if last is None else [totals.rows for totals in last.stats.log]  # type: ignore[attr-defined]


class TestResuming:
    @pytest.mark.parametrize(
        ("options", "params"),
        [
            ({"guesses": False}, SAMPLED),
            ({"guesses": False, "kv_dtype": "f32"}, SAMPLED),
            ({"draft_nodes": 8}, replace(SAMPLED, temperature=0, max_tokens=40)),
            ({"guesses": False}, replace(SAMPLED, stop=("e", "re"), max_tokens=60)),
            ({"max_resident": 0, "guesses": False}, SAMPLED),
        ],
        ids=["sampled", "f32", "guesses", "stop strings", "streamed"],
    )
    def test_after_a_kill_at_every_pass(
        self, tmp_path: Path, options: dict[str, object], params: SamplingParams
    ) -> None:
        with LLM(DEMO, Options(**options)) as llm:  # type: ignore[arg-type]
            [expected] = llm.generate([TEXT], params)
            with Session(llm, tmp_path / "talk") as session:
                copies = kills(session, session.complete(TEXT, params), tmp_path / "talk")
                assert told(session.retell()) == expected.text
            assert len(copies) == len(expected.token_ids) or "draft_nodes" in options or params.stops
            for copy in copies:
                with Session(llm, copy) as session:
                    if session.unfinished:
                        assert session.rows_to_come == 2  # the last token, and the position that is a test
                        assert told(session.go_on()) == expected.text
                    turn = session.turn
                    assert turn is not None
                    assert (turn.drawn, turn.end, turn.text) == (
                        expected.token_ids,
                        expected.finish_reason,
                        expected.text,
                    )

    def test_nothing_but_the_last_position_is_computed_twice(self, llm: LLM, tmp_path: Path) -> None:
        path = tmp_path / "talk"
        with Session(llm, path) as session:
            pieces = session.complete(TEXT, SAMPLED)
            for _ in range(6):
                next(pieces)
            shutil.copy(path, tmp_path / "killed")
        with Session(llm, tmp_path / "killed") as session:
            assert rows_of_passes(llm, session, session.go_on()) == [2, *[1] * 7]

    def test_killed_again_and_again(self, llm: LLM, tmp_path: Path) -> None:
        """A process that is killed after every single pass."""
        [expected] = llm.generate([TEXT], SAMPLED)
        path, count = tmp_path / "talk", 0
        with Session(llm, path) as session:
            session.complete(TEXT, SAMPLED)
        while True:
            with Session(llm, path) as session:
                if not session.unfinished:
                    break
                pieces, count = session.go_on(), count + 1
                had = session.tokens
                while session.tokens == had:
                    next(pieces)
        assert session.turn is not None
        assert session.turn.text == expected.text
        assert count == len(expected.token_ids)

    def test_in_raw_and_packed_form_and_with_other_memory(self, packed: Path, tmp_path: Path) -> None:
        path = tmp_path / "talk"
        low = machine.footprint().nbytes + (100 << 20)
        forms = [("demo", None), (packed, None), ("demo", low), (packed, low), (packed, "1GiB")]
        with LLM.open("demo") as llm:
            [expected] = llm.generate([TEXT], SAMPLED)
            with Session(llm, path) as session:
                session.complete(TEXT, SAMPLED)
        for model, memory in forms:
            with LLM.open(model, memory=memory, draft="none") as llm, Session(llm, path) as session:
                pieces = session.go_on()
                next(pieces)
                next(pieces)
                had = session.tokens
        assert had == llm_tokens(expected.token_ids, session_prompt=TEXT)[: len(had)]
        with LLM.open(packed) as llm, Session(llm, path) as session:
            assert told(session.go_on()) == expected.text

    def test_a_read_error_leaves_it_to_be_gone_on_with(
        self, llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        [expected] = llm.generate([TEXT], SAMPLED)
        step, count = llm.step, 0

        def failing() -> object:
            nonlocal count
            count += 1
            if count % 3 == 0:
                raise ReadError("The disk failed.")
            return step()

        monkeypatch.setattr(llm, "step", failing)
        with Session(llm, tmp_path / "talk") as session:
            pieces = session.complete(TEXT, SAMPLED)
            for _ in range(20):
                try:
                    text = told(pieces)
                except ReadError:
                    pieces = session.go_on()
                else:
                    break
            assert text == expected.text

    def test_ctrl_c_at_any_place_in_a_pass(self, llm: LLM, tmp_path: Path) -> None:
        [expected] = llm.generate([TEXT], SAMPLED)
        layer, passed = 0, 0

        def interrupt(event: object) -> None:
            nonlocal layer
            layer += 1
            if layer % 61 == 0:
                raise KeyboardInterrupt

        with Session(llm, tmp_path / "talk") as session:
            pieces = session.complete(TEXT, SAMPLED)
            llm.events.listeners.append(interrupt)
            try:
                while True:
                    try:
                        text = told(pieces)
                    except KeyboardInterrupt:
                        session.stop()
                        passed += 1
                        pieces = session.go_on()
                    else:
                        break
            finally:
                llm.events.listeners.remove(interrupt)
            assert text == expected.text
            assert passed > 1
        with Session(llm, tmp_path / "talk") as session:
            assert told(session.retell()) == expected.text

    def test_stopped_by_a_length_or_a_string_that_is_there_already(self, llm: LLM, tmp_path: Path) -> None:
        """A kill between the draw and the record of the end cannot be told from one before: tokens count."""
        with Session(llm, tmp_path / "talk") as session:
            pieces = session.complete(TEXT, SAMPLED)
            for _ in range(5):
                next(pieces)
            pieces.close()  # type: ignore[attr-defined]
            assert session.turn is not None
            session.turn.params = replace(SAMPLED, max_tokens=5)
            assert told(session.go_on()) == session.turn.text
            assert session.turn.end == "length"
        with Session(llm, tmp_path / "talk") as session:
            assert not session.unfinished


def llm_tokens(drawn: list[int], session_prompt: str) -> list[int]:
    with LLM.open("demo", draft="none") as llm:
        return llm.encode(session_prompt) + drawn


@pytest.fixture(scope="module")
def untrimmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """The demo model with a template that leaves messages as they are."""
    path = tmp_path_factory.mktemp("untrimmed") / "demo"
    shutil.copytree(DEMO, path)
    template = path / "chat_template.jinja"
    assert "| trim" in template.read_text()
    template.write_text(template.read_text().replace("| trim", ""))
    with LLM.open(path, draft="none") as llm:
        yield llm


class TestFollowUps:
    @pytest.mark.parametrize("restarted", [False, True])
    def test_a_question_costs_no_prefill_of_what_was_said(
        self, untrimmed: LLM, tmp_path: Path, restarted: bool
    ) -> None:
        llm, path = untrimmed, tmp_path / "talk"
        session = Session(llm, path)
        for question in ("write a class", "and another", "and a test"):
            held = session.tokens
            pieces = list(session.ask(question, SAMPLED))
            assert session.turn is not None
            prompt = session.turn.prompt
            assert prompt[: len(held)] == held
            # The last token of an answer has not been computed yet, and after a restart one position is a test.
            computed = len(held) - 1 - restarted if held else 0
            assert [totals.rows for totals in pieces[-1].stats.log] == [len(prompt) - computed, *[1] * 13]
            if restarted:
                session.close()
                session = Session(llm, path)
        assert [message["role"] for message in session.messages] == ["user", "assistant"] * 3
        session.close()

    def test_what_a_template_trims_is_all_that_is_computed_anew(self, llm: LLM, tmp_path: Path) -> None:
        """The demo model's template trims answers, which often begin with a space here."""
        with Session(llm, tmp_path / "talk") as session:
            list(session.ask("write a class", SAMPLED))
            assert session.turn is not None
            held, answer = session.tokens, len(session.turn.drawn)
            list(session.ask("and another", SAMPLED))
            assert session.tokens[: len(held) - answer] == held[: len(held) - answer]

    def test_it_is_answered_as_its_tokens_would_be(self, llm: LLM, tmp_path: Path) -> None:
        params = replace(SAMPLED, temperature=0, max_tokens=12)
        with Session(llm, tmp_path / "talk") as session:
            list(session.ask("write a class", params))
        with Session(llm, tmp_path / "talk") as session:
            list(session.ask("and another", params))
            turn = session.turn
        assert turn is not None
        [expected] = llm.generate([turn.prompt], params)
        assert turn.drawn == expected.token_ids
        assert llm.tokenizer is not None
        rendered = llm.tokenizer.chat_template().render(turn.messages or [])
        assert llm.tokenizer.decode(turn.prompt, skip_special_tokens=False) == rendered

    def test_text_goes_on(self, llm: LLM, tmp_path: Path) -> None:
        with Session(llm, tmp_path / "talk") as session:
            first = told(session.complete("def add(a, b):", SAMPLED))
        with Session(llm, tmp_path / "talk") as session:
            rows = rows_of_passes(llm, session, session.complete("\n\nclass ", SAMPLED))
            assert session.turn is not None
            assert llm.tokenizer is not None
            text = llm.tokenizer.decode(session.turn.prompt)
        assert text == "def add(a, b):" + first + "\n\nclass "
        assert rows[0] == 2 + len(llm.encode("\n\nclass ")) - 1

    def test_what_was_cut_stays_as_far_as_it_came(self, llm: LLM, tmp_path: Path) -> None:
        with Session(llm, tmp_path / "talk") as session:
            pieces = session.ask("write a class", SAMPLED)
            said = next(pieces).text + next(pieces).text + next(pieces).text
            session.stop()
            assert session.messages[-1] == {"role": "assistant", "content": said}
        with Session(llm, tmp_path / "talk") as session:
            assert session.messages[-1] == {"role": "assistant", "content": said}
            list(session.ask("and another", SAMPLED))
            assert [m["role"] for m in session.messages] == ["user", "assistant", "user", "assistant"]
            assert session.turn is not None
            assert session.turn.drawn == llm.generate([session.turn.prompt], SAMPLED)[0].token_ids

    def test_a_question_that_was_stopped_before_its_answer_goes(self, llm: LLM, tmp_path: Path) -> None:
        with Session(llm, tmp_path / "talk") as session:
            list(session.ask("write a class", SAMPLED))
            before = session.messages
            session.ask("never mind", SAMPLED)
            session.stop()
            assert session.messages == before
        with Session(llm, tmp_path / "talk") as session:
            assert session.messages == before
            list(session.ask("and another", SAMPLED))
            assert "never mind" not in json.dumps(session.messages)

    def test_reset_forgets_and_the_file_shrinks(self, llm: LLM, tmp_path: Path) -> None:
        with Session(llm, tmp_path / "talk") as session:
            list(session.ask("write a class", SAMPLED))
            first = session.tokens
            size = (tmp_path / "talk").stat().st_size
            session.reset()
            assert (session.messages, session.tokens) == ([], [])
            assert (tmp_path / "talk").stat().st_size < min(size, 2000)
            list(session.ask("write a class", SAMPLED))
            assert session.tokens == first

    def test_a_file_that_is_mostly_of_no_use_is_written_anew(
        self, llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("penstock.session.SLACK_BYTES", 10_000)
        path = tmp_path / "talk"
        for number in range(6):
            with Session(llm, path) as session:
                list(session.complete(random_tokens(40, 4000, number), SAMPLED))
                assert session.turn is not None
                session.turn.drawn, session.turn.prompt = [], session.turn.prompt[:20]  # as if all else had changed
                list(session.complete(random_tokens(40, 4000, 10 + number), SAMPLED))
        with Session(llm, path) as session:
            held = session._saved * session._cache.shape.slot_bytes
            assert path.stat().st_size < 2 * held + 20_000
            assert session.turn is not None
            assert session.turn.drawn == llm.generate([session.turn.prompt], SAMPLED)[0].token_ids


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
                session._cache.append_slot(bytes(session._cache.shape.slot_bytes))
            assert session.turn is not None
            session._save(session.turn)
        low = machine.footprint().nbytes + (88 << 20)
        with LLM.open("demo", draft="none", kv_dtype="f32", memory=low) as llm, pytest.raises(MemoryCeilingError):
            Session(llm, tmp_path / "talk")
        with LLM.open("demo", draft="none", kv_dtype="f32") as llm, Session(llm, tmp_path / "talk") as session:
            assert len(session.tokens) == 9000

    def test_records_that_make_no_sense(self, llm: LLM, tmp_path: Path) -> None:
        path = tmp_path / "talk"
        with Session(llm, path) as session:
            list(session.complete(TEXT, SAMPLED))
        content = path.read_bytes()
        for kind, change in ((TURN, {"params": {"temperature": 9}}), (PASS, {"at": 9999}), ("what", {})):
            path.write_bytes(content)
            log = SessionLog(path)
            records = list(log.replay())
            meta = next((r.meta for r in records if r.kind == kind), {})
            log.append(type("R", (), {"kind": kind, "meta": meta | change, "payload": (), "payload_bytes": 0})())
            log.close()
            with pytest.raises(SessionError, match="says what no session says"):
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

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
        for size in range(len(content) - 1, 0, -1873):
            (tmp_path / "talk").write_bytes(content[:size])
            self.goes_on(llm, tmp_path / "talk", tokens)

    def test_no_room_on_the_disk(self, llm: LLM, tmp_path: Path, talk: tuple[bytes, list[int], str]) -> None:
        from test_session_log import room_for

        content, tokens, text = talk
        path = tmp_path / "talk"
        path.write_bytes(content)
        with Session(llm, path) as session:
            with room_for(len(content) + 2000), pytest.raises(SessionError, match=r"(?s)cannot be written.*Make room"):
                list(session.go_on())
            assert told(session.go_on()) == text
        with Session(llm, path) as session:
            assert session.tokens == tokens


def test_without_a_file(llm: LLM) -> None:
    with Session(llm) as session:
        first = told(session.ask("write a class", SAMPLED))
        list(session.ask("more", SAMPLED))
        assert session.messages[1]["content"] == first


def test_closing_frees_the_memory(llm: LLM, tmp_path: Path) -> None:
    before = llm.memory._taken()
    with Session(llm, tmp_path / "talk") as session:
        list(session.ask("write a class", SAMPLED))
        assert llm.memory._taken() > before
    assert llm.memory._taken() == before


def test_errors_are_all_of_ours() -> None:
    assert issubclass(SessionError, PenstockError)
