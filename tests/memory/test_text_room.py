"""Texts that become tokens: those that cannot fit the context do not, and the ceiling has room for the others."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import penstock.batch.run
from helpers.batches import ask, write_requests
from helpers.rooms import set_budget
from helpers.serving import serving
from helpers.watched import Watched, watch
from penstock import LLM, SamplingParams
from penstock.batch.run import BatchSettings, run
from penstock.cli import standard_input
from penstock.errors import ContextError, MemoryCeilingError
from penstock.memory.text_room import BYTES_TO_TOKENIZE, LONG_TEXT
from penstock.sessions.session import Session
from penstock.system import machine
from penstock.system.machine import Footprint
from penstock.system.sizes import MIB

CONTEXT = 200
TOO_LONG = "1" * (CONTEXT * 41)
"""The longest token of the demo has 41 characters."""
LONG = "def add(a, b):\n" * (1 << 18)
TWO = SamplingParams(temperature=0, max_tokens=2)


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def short() -> Iterator[tuple[LLM, Watched]]:
    """A model with a small context."""
    with LLM.open("demo", context=CONTEXT, draft="none") as llm:
        yield llm, watch(llm.tokenizer)


def ask_session(llm: LLM, text: str) -> None:
    with Session(llm) as session:
        list(session.ask(text, TWO))


def complete_in_session(llm: LLM, text: str) -> None:
    with Session(llm) as session:
        list(session.complete("def", TWO))
        list(session.complete(text, TWO))


WAYS: dict[str, Callable[[LLM, str], object]] = {
    "generate": lambda llm, text: llm.generate(["def", text], TWO),
    "stream": lambda llm, text: list(llm.stream(text, TWO)),
    "chat": lambda llm, text: llm.chat(chat(text), TWO),
    "check": lambda llm, text: llm.check(text, TWO),
    "submit": lambda llm, text: llm.submit(text, TWO),
    "text_prompt": lambda llm, text: llm.text_prompt(text),
    "ask": ask_session,
    "complete": complete_in_session,
}


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose size stays."""
    monkeypatch.setattr(machine, "footprint", lambda: Footprint(1000 * MIB, 0))


class TestContext:
    @pytest.mark.parametrize("way", WAYS)
    def test_what_cannot_fit_is_refused_before_it_is_divided(self, short: tuple[LLM, Watched], way: str) -> None:
        llm, watched = short
        watched.divided.clear()
        with pytest.raises(ContextError, match="tokens at least; there is room for 199"):
            WAYS[way](llm, TOO_LONG)
        assert max(watched.divided, default=0) < 10

    def test_what_may_fit_is_divided(self, short: tuple[LLM, Watched]) -> None:
        llm, watched = short
        text = TOO_LONG[: (CONTEXT - 1) * 41]
        with pytest.raises(ContextError, match=r"prompt has \d+ tokens"):
            llm.generate([text], TWO)
        assert watched.divided[-1] == len(text)

    def test_encoding_by_itself_knows_no_context(self, short: tuple[LLM, Watched]) -> None:
        assert len(short[0].encode(TOO_LONG)) > CONTEXT

    def test_a_template_is_stopped_as_its_text_grows(self, short: tuple[LLM, Watched]) -> None:
        llm = short[0]
        endless = "{% for i in range(90000) %}{{ messages[0].content }}{% endfor %}"
        before = dict(llm.text_side()._sources), dict(llm.text_side()._templates)
        try:
            llm.text_side()._sources, llm.text_side()._templates = {"default": endless}, {}
            with pytest.raises(ContextError):
                llm.chat(chat("x" * 1000), TWO)
        finally:
            llm.text_side()._sources, llm.text_side()._templates = before

    @pytest.mark.parametrize("url", ["/v1/completions", "/v1/chat/completions"])
    def test_the_server(self, short: tuple[LLM, Watched], url: str) -> None:
        llm, watched = short
        watched.divided.clear()
        body = {"prompt": TOO_LONG} if url == "/v1/completions" else {"messages": chat(TOO_LONG)}
        with serving(llm) as server:
            response = server.post(url, json=body)
        assert response.status_code == 400
        assert "tokens at least" in response.json()["error"]["message"]
        assert watched.divided == []

    def test_a_line_of_a_batch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        divided: list[int] = []

        def opened(*arguments: object, **options: object) -> LLM:
            llm = LLM.open_with(*arguments, **options)  # type: ignore[arg-type]
            watch(llm.tokenizer).divided = divided
            return llm

        monkeypatch.setattr(penstock.batch.run, "LLM", type("Opening", (), {"open_with": staticmethod(opened)}))
        source = write_requests(tmp_path / "in.jsonl", [ask("long", prompt=TOO_LONG), ask("short")])
        out = tmp_path / "out.jsonl"
        summary = run(BatchSettings(model="demo", source=source, out=out, context=CONTEXT, draft="none"))
        assert (summary.answered, summary.failed) == (1, 1)
        assert "tokens at least" in json.loads(out.read_text().splitlines()[0])["error"]["message"]
        assert max(divided) < 100


class Pipe:
    """Standard input of so many characters, or without an end."""

    def __init__(self, left: float) -> None:
        self.left, self.taken = left, 0

    def read(self, count: int) -> str:
        count = int(min(count, self.left))
        self.left, self.taken = self.left - count, self.taken + count
        return "1" * count


class TestStandardInput:
    def read(self, monkeypatch: pytest.MonkeyPatch, pipe: Pipe, check: Callable[[int], None]) -> str:
        monkeypatch.setattr(standard_input.sys, "stdin", pipe)
        return standard_input.read_text(check)

    def test_all_of_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.read(monkeypatch, Pipe(200_000), lambda characters: None) == "1" * 200_000

    def test_a_pipe_without_an_end(self, short: tuple[LLM, Watched], monkeypatch: pytest.MonkeyPatch) -> None:
        pipe = Pipe(float("inf"))
        with pytest.raises(ContextError):
            self.read(monkeypatch, pipe, short[0].check_length)
        assert pipe.taken <= len(TOO_LONG) + standard_input.CHARACTERS_AT_ONCE

    @pytest.mark.usefixtures("steady")
    def test_the_ceiling_that_is_told_has_room_for_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with LLM.open("demo", memory="1200MiB", draft="none") as llm:
            with pytest.raises(MemoryCeilingError) as whole:
                llm.check_length(3_000_000)
            with pytest.raises(MemoryCeilingError) as read:
                self.read(monkeypatch, Pipe(3_000_000), llm.check_length)
        assert str(read.value) == str(whole.value)

    def test_what_has_no_room_is_counted_so_far_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(characters: int) -> None:
            raise MemoryCeilingError("no room", str(characters))

        monkeypatch.setattr(standard_input, "MOST_COUNTED", 1 << 20)
        pipe = Pipe(float("inf"))
        with pytest.raises(MemoryCeilingError):
            self.read(monkeypatch, pipe, refuse)
        assert pipe.taken <= (1 << 20) + standard_input.CHARACTERS_AT_ONCE


@pytest.mark.usefixtures("steady")
class TestCeiling:
    def test_no_room(self) -> None:
        with LLM.open("demo", memory="1200MiB", draft="none") as llm:
            watched = watch(llm.tokenizer)
            with pytest.raises(MemoryCeilingError) as caught:
                llm.generate([LONG], TWO)
            assert watched.divided == []
        least = re.search(r"least that works is (\d+) MiB", caught.value.remedy)
        assert least is not None
        for spare, fits in ((0, True), (-1, False)):
            with LLM.open("demo", memory=(int(least[1]) + spare) * MIB, draft="none") as llm:
                watched = watch(llm.tokenizer)
                watched.encode = lambda text, **_: type("Encoding", (), {"ids": [1] * 9})  # type: ignore[method-assign]
                if fits:
                    assert llm.encode(LONG) == [1] * 9
                else:
                    with pytest.raises(MemoryCeilingError):
                        llm.encode(LONG)

    def test_weights_give_way(self) -> None:
        text = "x" * (LONG_TEXT * 5 // 4)
        with LLM.open("demo", memory="1200MiB", draft="none") as llm:
            llm.generate(["def"], TWO)
            everything = llm.weights.resident_bytes
            plan = llm.memory.plan
            # As much beside the weights as there was, but for half of the text.
            spare = plan.ceiling - sum((plan.process, plan.ring, plan.allowance, plan.kv, plan.activations))
            filled = spare - plan.scratch - everything - BYTES_TO_TOKENIZE * len(text) // 2
            held = llm.memory.budget
            set_budget(llm, process=held.process + filled)
            llm.encode(text)
            given_back = everything - llm.weights.resident_bytes
            assert given_back > BYTES_TO_TOKENIZE * len(text) // 4
            set_budget(llm, process=held.process)
            assert llm.generate(["def"], TWO)[0].token_ids
            assert llm.weights.resident_bytes == everything

    def test_short_texts_take_nothing_from_the_weights(self) -> None:
        with LLM.open("demo", memory="1200MiB", draft="none") as llm:
            llm.generate(["def"], TWO)
            plan, resident = llm.memory.plan, llm.weights.resident_bytes
            llm.encode("x" * LONG_TEXT)
            assert (llm.memory.plan, llm.weights.resident_bytes) == (plan, resident)

    def test_room_that_is_kept(self) -> None:
        """Other threads may divide texts then: nothing is done with the weights."""
        with LLM.open("demo", memory="1300MiB", draft="none") as plain:
            process = plain.memory.budget.process
        with LLM.open("demo", memory="1300MiB", draft="none", longest_text=1 << 16) as llm:
            assert llm.memory.budget.process == process + BYTES_TO_TOKENIZE * (1 << 16)
            plan = llm.memory.plan
            llm.encode("x" * (1 << 16))
            assert llm.memory.plan is plan
            with pytest.raises(MemoryCeilingError, match=r"65,537 bytes.*room is kept for 65,536"):
                llm.encode("x" * ((1 << 16) + 1))

    def test_special_tokens_take_little(self) -> None:
        """So a body of short messages has room, however much the template puts around each."""
        opened = LLM.open("demo", memory="1300MiB", draft="none", longest_text=1 << 16)
        with opened as llm:
            assert len(llm.encode("<|eot_id|>" * 20_000)) == 20_001
            with pytest.raises(MemoryCeilingError, match="66,000 bytes"):
                llm.encode("<|eot_id|>" * 22_000)

    def test_characters_of_several_bytes_count_as_these(self) -> None:
        opened = LLM.open("demo", memory="1300MiB", draft="none", longest_text=1 << 16)
        with opened as llm, pytest.raises(MemoryCeilingError, match="98,304 bytes"):
            llm.encode("…" * (1 << 15))


@pytest.mark.usefixtures("steady")
def test_a_tokenizer_that_outlives_its_model_is_as_before() -> None:
    with LLM.open("demo", memory="1200MiB", draft="none") as llm:
        tokenizer = llm.text_side()
        with pytest.raises(MemoryCeilingError):
            tokenizer.encode("1" * 1_000_000)
    assert tokenizer.encode("1" * 20_000)
