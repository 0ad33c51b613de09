"""Sessions go on with the tokens that they would have had, whatever cut them off, and compute nothing twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.cases import DEMO, random_tokens
from penstock import LLM, SamplingParams, Session
from penstock.errors import ContextError, MemoryCeilingError, PenstockError, ReadError, SessionError
from penstock.options import OpenOptions
from penstock.packing.pack import pack

pytestmark = pytest.mark.usefixtures("no_fsync")

SAMPLED = SamplingParams(temperature=0.9, top_k=50, repetition_penalty=1.1, seed=3, max_tokens=14, ignore_eos=True)
TEXT = "def add(a, b):\n    return a + b\n\n\ndef mul("


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
            ({"draft": "none"}, SAMPLED),
            ({"draft": "none", "kv_dtype": "f32"}, replace(SAMPLED, max_tokens=6)),
            pytest.param(
                {"draft_nodes": 8}, replace(SAMPLED, temperature=0, max_tokens=30), marks=pytest.mark.thorough
            ),
            ({"draft": "none"}, replace(SAMPLED, stop=("e", "re"), max_tokens=60)),
            ({"max_resident": 0, "draft": "none"}, replace(SAMPLED, max_tokens=6)),
        ],
        ids=["sampled", "f32", "guesses", "stop strings", "streamed"],
    )
    def test_after_a_kill_at_every_pass(
        self, tmp_path: Path, options: dict[str, object], params: SamplingParams
    ) -> None:
        with LLM(DEMO, OpenOptions(**options)) as llm:  # type: ignore[arg-type]
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

    @pytest.mark.thorough
    def test_in_raw_and_packed_form_and_with_other_memory(self, packed: Path, tmp_path: Path) -> None:
        path = tmp_path / "talk"
        with pytest.raises(MemoryCeilingError) as least:
            LLM.open(packed, draft="none", memory="1MiB")
        words = least.value.remedy.split()
        low = (int(words[words.index("MiB:") - 1]) + 8) << 20
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

    @pytest.mark.parametrize("context", [48, None])
    def test_it_ends_where_it_would_have_ended(self, llm: LLM, tmp_path: Path, context: int | None) -> None:
        """Without max_tokens the context ends it, or what memory had room for as it began."""
        params = replace(SAMPLED, max_tokens=None)
        with LLM.open("demo", draft="none", context=context, memory="1GiB") as other:
            with Session(other, tmp_path / "talk") as session:
                pieces = session.complete(TEXT, params)
                next(pieces)
                assert session._running is not None
                limit = session._running.sequence.max_tokens
            if context is not None:
                [expected] = other.generate([TEXT], params)
                assert limit == len(expected.token_ids) == context - len(other.encode(TEXT))
        with Session(llm, tmp_path / "talk") as session:
            pieces = session.go_on()
            assert session._running is not None
            assert session._running.sequence.max_tokens == limit
            if context is not None:
                assert (told(pieces), session.turn and session.turn.end) == (expected.text, "length")

    def test_with_a_smaller_context(self, llm: LLM, tmp_path: Path) -> None:
        with Session(llm, tmp_path / "talk") as session:
            next(session.complete(TEXT, replace(SAMPLED, max_tokens=40)))
        with LLM.open("demo", draft="none", context=50) as other, Session(other, tmp_path / "talk") as session:
            with pytest.raises(ContextError, match=r"room for 40 tokens after the prompt's .* a context of 50"):
                session.go_on()
            list(session.complete(" x", replace(SAMPLED, max_tokens=2)))

    def test_tokens_that_a_stop_string_takes_back(self, llm: LLM, tmp_path: Path) -> None:
        """Ctrl-C came after they were drawn, and before their text was looked at."""
        [whole] = llm.generate([TEXT], SAMPLED)
        assert llm.tokenizer is not None
        params = replace(SAMPLED, stop=(llm.tokenizer.decode(whole.token_ids[4:6]),))
        [expected] = llm.generate([TEXT], params)
        with Session(llm, tmp_path / "talk") as session:
            pieces = session.complete(TEXT, SAMPLED)
            for _ in range(10):
                next(pieces)
            assert session.turn is not None
            session.turn.params = params
            pieces.close()  # type: ignore[attr-defined]
            assert told(session.go_on()) == expected.text
        with Session(llm, tmp_path / "talk") as session:
            assert session.turn is not None
            assert (session.turn.drawn, session.turn.text) == (expected.token_ids, expected.text)


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
        monkeypatch.setattr("penstock.sessions.session.SLACK_BYTES", 10_000)
        path = tmp_path / "talk"
        for number in range(3):
            with Session(llm, path) as session:
                list(session.complete(random_tokens(40, 4000, number), SAMPLED))
                assert session.turn is not None
                session.turn.drawn, session.turn.prompt = [], session.turn.prompt[:20]  # as if all else had changed
                list(session.complete(random_tokens(40, 4000, 10 + number), SAMPLED))
        with Session(llm, path) as session:
            held = session._saved * llm.kv_shape.slot_bytes
            assert path.stat().st_size < 2 * held + 20_000
            assert session.turn is not None
            assert session.turn.drawn == llm.generate([session.turn.prompt], SAMPLED)[0].token_ids


def test_without_a_file(llm: LLM) -> None:
    with Session(llm) as session:
        first = told(session.ask("write a class", SAMPLED))
        list(session.ask("more", SAMPLED))
        assert session.messages[1]["content"] == first


def test_closing_frees_the_memory(llm: LLM, tmp_path: Path) -> None:
    with Session(llm, tmp_path / "talk") as session:
        list(session.ask("write a class", SAMPLED))
        assert session._cache.n_blocks
    assert not session._cache.n_blocks


def test_errors_are_all_of_ours() -> None:
    assert issubclass(SessionError, PenstockError)


def test_an_answer_that_is_held_to_a_form_goes_on_in_it(tmp_path: Path) -> None:
    """After every pass, with the biases and penalties that it began with."""
    wanted = SamplingParams(
        temperature=0.9,
        seed=4,
        max_tokens=30,
        regex="[a-z]{3}(, [a-z]{3,5}){6}[.]",
        frequency_penalty=0.5,
        logit_bias={60: 1.5, 70: -2.0},
    )
    with LLM.open("demo", draft="none") as llm:
        [expected] = llm.generate(["def f"], wanted)
        path = tmp_path / "talk.session"
        with Session(llm, path) as session:
            next(session.complete("def f", wanted))
        for _ in range(40):
            with Session(llm, path) as session:
                if session.turn is None or not session.turn.unfinished:
                    break
                pieces = session.go_on()
                next(pieces)  # what was drawn before
                next(pieces, None)
        with Session(llm, path) as session:
            assert session.turn is not None
            assert session.turn.drawn == expected.token_ids
            assert session.turn.end == "stop"
